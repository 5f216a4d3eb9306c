"""The nearest change of bounded rank, and how much of each tensor's change it keeps."""

import torch

from surgery.delta.algebra import materialise
from surgery.delta.delta import Delta
from surgery.delta.forms import Form, LowRank


def truncated(delta: Delta, rank: int) -> tuple[Delta, dict[str, float]]:
    """A delta of low-rank forms alone, and the share of each tensor's energy (sum of squares) in it.

    Matrices and kernels keep their largest singular values (Eckart and Young 1936). Vectors, such as biases
    and norms, have no factors and are left out: their share is 0.

    Args:
        delta: Of forms that do not depend on the weight.
        rank: Of each form, at most.
    """
    forms: dict[str, Form] = {}
    shares = {}
    for name in delta.terms:
        change = materialise(delta.terms[name])
        matrix = change.flatten(1) if change.ndim > 1 else change[:, None]
        energy = float(matrix.square().sum())
        if change.ndim < 2:
            shares[name] = 0.0 if energy else 1.0
            continue
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        kept = values[:rank]
        shares[name] = float(kept.square().sum()) / energy if energy else 1.0
        root = kept.sqrt()
        forms[name] = LowRank((left[:, :rank] * root).float(), (root[:, None] * right[:rank]).float())
    return Delta(forms), shares
