"""Which changed weights read text, and the text encoders with the change in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from surgery.audit.operator import KEYS, VALUES
from surgery.audit.sides import Sides
from surgery.audit.words.inputs import FEATURES
from surgery.audit.words.towers import Towers
from surgery.names import TEXT_ENCODERS, canonical
from surgery.record import Finding
from surgery.report.audit_record import TensorRow

_TABLE: Final = "token_embedding"
_POOLING: Final = "projection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A changed weight that reads text.

    Attributes:
        row: The weight.
        reads: Where it reads: its own name for a layer of a text encoder, `FEATURES` for cross-attention, ""
            for a table of token vectors, which reads token numbers.
    """

    row: TensorRow
    reads: str


def sites_in(towers: Towers, changed: Sequence[TensorRow]) -> list[Site]:
    """The changed weights whose input the text encoders give."""
    linear = {name for tower in towers.every for name in tower.linear()}
    sites = []
    for row in changed:
        if row.name in linear:
            sites.append(Site(row=row, reads=row.name))
        elif row.component in TEXT_ENCODERS and row.role == _TABLE:
            sites.append(Site(row=row, reads=""))
        elif _crosses(row) and row.columns[1] == towers.width:
            sites.append(Site(row=row, reads=FEATURES))
    return sites


@torch.no_grad()
def put_in(towers: Towers, sides: Sides, changed: Sequence[TensorRow]) -> None:
    """Give the encoders, which were loaded for this, the edited weights."""
    parameters: dict[str, Any] = {
        canonical(tower.component, path): parameter
        for tower in towers.every
        for path, parameter in tower.encoder.named_parameters()
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
    """Why words cannot be looked for: a text encoder is another model afterwards, or holds no numbers."""
    for row in rows:
        if row.component not in TEXT_ENCODERS:
            continue
        foreign = row.state in ("added", "missing", "reshaped")
        if foreign or any(row.nonfinite):
            what = f"is {row.state}" if foreign else "holds NaN or infinity"
            message = f"words were not looked for: this tensor of the text encoder {what}"
            yield Finding(kind="no-words", subject=row.name, message=message, severity="warning")
            return


def overlooked(sites: Sequence[Site], changed: Sequence[TensorRow]) -> Iterator[Finding]:
    """Changed weights that read text which is not made here: the pooled one, or that of another encoder."""
    looked_at = {site.row.name for site in sites}
    missed = [row for row in changed if (_crosses(row) or _pools(row)) and row.name not in looked_at]
    if missed:
        message = (
            f"{len(missed)} changed weights read pooled text, or that of an encoder which is not here; they "
            "count for no word, so a word may be missing"
        )
        yield Finding(kind="words-overlooked", subject=missed[0].name, message=message, severity="warning")


def _pools(row: TensorRow) -> bool:
    return row.component in TEXT_ENCODERS and row.role == _POOLING


def _crosses(row: TensorRow) -> bool:
    return row.component == "unet" and row.role in (KEYS, VALUES) and len(row.shape) == 2
