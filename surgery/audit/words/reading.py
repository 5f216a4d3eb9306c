"""Which changed weights read text, and the text encoder with the change in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from surgery.audit.operator import KEYS, VALUES
from surgery.audit.sides import Sides
from surgery.audit.words.inputs import FEATURES
from surgery.names import canonical
from surgery.record import Finding
from surgery.report.audit_record import TensorRow

ENCODER: Final = "text_encoder"
_TABLE: Final = "token_embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A changed weight that reads text.

    Attributes:
        row: The weight.
        module: The module of the text encoder whose input it reads; `FEATURES` for cross-attention, "" for
            the table of token vectors, which reads token numbers.
    """

    row: TensorRow
    module: str


def sites_in(encoder: nn.Module, width: int, changed: Sequence[TensorRow]) -> list[Site]:
    """The changed weights whose input the text encoder gives; ``width`` is that of its output."""
    linear = {
        canonical(ENCODER, f"{path}.weight"): path
        for path, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
    }
    sites = []
    for row in changed:
        if row.name in linear:
            sites.append(Site(row=row, module=linear[row.name]))
        elif row.component == ENCODER and row.role == _TABLE:
            sites.append(Site(row=row, module=""))
        elif _crosses(row) and row.columns[1] == width:
            sites.append(Site(row=row, module=FEATURES))
    return sites


@torch.no_grad()
def put_in(encoder: nn.Module, sides: Sides, changed: Sequence[TensorRow]) -> None:
    """Give an encoder, which was loaded for this, the edited weights."""
    parameters: dict[str, Any] = {
        canonical(ENCODER, path): parameter for path, parameter in encoder.named_parameters()
    }
    for row in changed:
        if row.name in parameters:
            weight = parameters[row.name]
            matrix = weight.view(row.rows[1], row.columns[1])
            for block in sides.blocks(row.name):
                rows, columns = block.after.shape
                place = (slice(block.row, block.row + rows), slice(block.column, block.column + columns))
                matrix[place] = block.after.to(matrix)


def unreadable(rows: Sequence[TensorRow]) -> Iterator[Finding]:
    """Why words cannot be looked for: the two text encoders are not one model."""
    for row in rows:
        if row.component == ENCODER and row.state in ("added", "missing", "reshaped"):
            message = f"words were not looked for: this tensor of the text encoder is {row.state}"
            yield Finding(kind="no-words", subject=row.name, message=message, severity="warning")
            return


def overlooked(sites: Sequence[Site], changed: Sequence[TensorRow]) -> Iterator[Finding]:
    """Changed weights that read text which this audit cannot make: SDXL's second encoder and its features."""
    looked_at = {site.row.name for site in sites}
    missed = [
        row
        for row in changed
        if (row.component == "text_encoder_2" or _crosses(row)) and row.name not in looked_at
    ]
    if missed:
        message = (
            f"{len(missed)} changed weights read the second text encoder; they count for no word, so a word "
            "may be missing"
        )
        yield Finding(kind="words-overlooked", subject=missed[0].name, message=message, severity="warning")


def _crosses(row: TensorRow) -> bool:
    return row.component == "unet" and row.role in (KEYS, VALUES) and len(row.shape) == 2
