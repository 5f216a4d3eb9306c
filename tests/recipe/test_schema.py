"""The JSON Schema that editors use, and what the room may load."""

import subprocess
import sys

from surgery.recipe import recipe_schema


def test_the_schema_describes_every_key_and_allows_no_other() -> None:
    kinds = recipe_schema()
    assert [kind["$ref"].rpartition("/")[2] for kind in kinds["anyOf"]] == ["Recipe", "GuideRecipe"]
    parts = kinds["$defs"]
    assert {"surgery", "base", "edits"} <= set(parts["Recipe"]["required"])
    assert {"surgery", "base", "guide"} <= set(parts["GuideRecipe"]["required"])
    assert all(part["additionalProperties"] is False for part in parts.values())
    for part in ("Offsets", "ConceptDiffusion", "ScalingConcept", "GuidedPatch"):
        assert all("description" in field for field in parts[part]["properties"].values())


def test_the_schema_offers_both_spellings_of_layers_and_seeds() -> None:
    definitions = recipe_schema()["$defs"]
    spellings = definitions["Sample"]["properties"]["seeds"]["anyOf"]
    assert {spelling["type"] for spelling in spellings} == {"array", "integer"}


def test_the_room_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, surgery.recipe; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
