"""Pictures of where concepts live: any name is drawn as it is written, and no number of them is too large."""

from io import BytesIO

import pytest
from PIL import Image

from surgery.errors import SurgeryError
from surgery.report.concept_map import ConceptMap, concept_maps

BLOCKS, ROLES = ["down 1", "mid"], ["ff_in", "ff_out"]


def drawn(*names: str) -> Image.Image:
    maps = [
        ConceptMap(name=name, positive={("mid", "ff_in"): 0.5}, negative={("down 1", "ff_out"): 0.5})
        for name in names
    ]
    overlaps = [[float(one == other) for one in names] for other in names]
    return Image.open(BytesIO(concept_maps(maps, BLOCKS, ROLES, overlaps)))


@pytest.mark.parametrize("name", [r"$\foo$", "c$_$d", "a $100 bill and a $5 coin", "100 % {x}^2"])
def test_a_name_is_no_formula(name: str) -> None:
    assert drawn(name, "cat").width > drawn("cat").width


def test_many_concepts_make_smaller_pictures_not_larger_files() -> None:
    many = drawn(*(f"concept {number}" for number in range(40)))
    assert 10e6 < many.width * many.height < 61e6


def test_a_map_of_nothing_is_refused() -> None:
    with pytest.raises(SurgeryError, match="a map of no concept"):
        concept_maps([], BLOCKS, ROLES, [])
