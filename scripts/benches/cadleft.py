"""What masks leave of a concept's direction at the ratio at which it is gone from the pictures, and below it.

Ratios come from the screening of ``cad-effect``: the smallest of a grid at which pictures no longer show the
concept; at half of it they still do. Cells that are missing are made first.
"""

from __future__ import annotations

import argparse

import numpy as np
from cadeffect import GRID, bank_of, cell_of, ground_of
from cadrules import RULES


def cad_left(options: argparse.Namespace) -> None:
    """Prints what is left with each mask that erases and with half of it, and what bound parts the two."""
    ground = ground_of(options)
    bank = bank_of(ground)
    gone, still = [], []
    print(f"{'concept':16}{'rule':10}{'ratio':>9}{'left':>8}{'at half of it':>16}")
    for concept in ground.screening:
        held_out = bank.held_out(concept)
        for name in options.rules:
            rule = RULES[name]
            cell = cell_of(ground, bank, name, rule, concept)
            masks, place = rule.masks(bank, concept), _place(cell.ratio)
            left, before = (
                held_out.left(masks(GRID[one]), rule.strength) if one >= 0 else 1.0
                for one in (place, place - 1)
            )
            if cell.reached:
                gone.append(left)
            still.append(before)
            print(
                f"{concept.name:16}{name:10}{100 * cell.ratio:8.3f}%{100 * left:7.0f}%{100 * before:15.0f}%",
                flush=True,
            )
    print(f"left where a concept is gone: {_range(gone)}")
    print(f"at half of the ratio, where it is not: {_range(still)}")
    best = max(sorted({*gone, *still}), key=lambda bound: _right(gone, still, bound))
    told, count = _right(gone, still, best), len(gone + still)
    print(f"at most {100 * best:.0f} % left tells the two apart in {told} of {count} cases")


def _place(ratio: float) -> int:
    """Of the grid; cells keep nine digits."""
    return int(np.argmin(np.abs(np.log(np.array(GRID) / ratio))))


def _range(shares: list[float]) -> str:
    if not shares:
        return "none"
    low, middle, high = np.percentile(shares, [0, 50, 100]) * 100
    return f"{low:.0f} to {high:.0f} %, median {middle:.0f} %"


def _right(gone: list[float], still: list[float], bound: float) -> int:
    """How many masks a bound sorts into those that erase and those that do not."""
    return sum(one <= bound for one in gone) + sum(one > bound for one in still)
