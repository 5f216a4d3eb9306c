"""Debiasing between recipe and method: groups, phrases, and mixtures filled in."""

from typing import Any

import pytest
import torch

from surgery.errors import MethodError
from surgery.methods.emcid import ConceptEdit, EmcidModels, OffsetSettings
from surgery.methods.emcid.debias import groups_of, preserved, refuse_untuned, untuned, with_mixtures
from surgery.methods.emcid.distance import distant_weights
from surgery.methods.emcid.recipe import edits_of
from surgery.recipe import Emcid, parse_recipe
from tests.support.recipes import emcid_of

RECIPE = """surgery: 1
base: pocket-sd
edits:
  - emcid:
      concepts:
        - {source: cat, destination: dog}
        - {source: doctor, kind: debias, shares: {gender: [woman, man], skin: {light: 0.25, dark: 0.75}}}
      preserve: [nurse]
      debias: {phrases: {woman: "female {}", man: "male {}", dark: "{} with dark skin"}}
"""
TEXT = OffsetSettings(mode="text", metric="cross_attention", steps=4, keep_unconverged=True)


def entry(**overrides: str) -> Emcid:
    given = {f"edits[0].emcid.debias.{name}": value for name, value in overrides.items()}
    return emcid_of(parse_recipe(RECIPE, overrides=given))


def test_each_combination_is_asked_for_attribute_by_attribute() -> None:
    groups = groups_of(entry().concepts[1], entry())
    assert [group.phrase for group in groups] == [
        "light female doctor",
        "female doctor with dark skin",
        "light male doctor",
        "male doctor with dark skin",
    ]
    assert [group.share for group in groups] == pytest.approx([0.125, 0.375, 0.125, 0.375])
    assert [group.weight for group in groups] == pytest.approx([0.125, 0.375, 0.125, 0.375])


def test_an_entry_becomes_plain_edits_and_blends() -> None:
    cat, doctor = edits_of(entry(), parse_recipe(RECIPE))
    assert (cat.destination, cat.blend) == ("dog", ())
    assert (doctor.kind, doctor.destination) == ("update", None)
    assert [phrase for phrase, _ in doctor.blend][1] == "female doctor with dark skin"


def test_phrases_that_ask_outright_are_preserved_unless_the_recipe_says_otherwise() -> None:
    assert preserved(entry()) == (
        "nurse",
        "a light female doctor",
        "a female doctor with dark skin",
        "a light male doctor",
        "a male doctor with dark skin",
    )
    assert preserved(entry(keep_explicit="false")) == ("nurse",)


def test_found_mixtures_are_filled_in_and_nothing_is_left_to_tune() -> None:
    weights = (0.7, -0.1, 0.3, 0.1)
    assert list(untuned(entry())) == ["doctor"]
    filled = with_mixtures(entry(), {"doctor": weights})
    assert untuned(filled) == {}
    assert [group.weight for group in groups_of(filled.concepts[1], filled)] == pytest.approx(weights)
    refuse_untuned(filled)


def test_mixtures_that_need_pictures_are_refused_by_the_method_alone() -> None:
    with pytest.raises(MethodError, match="doctor: the mixture is to be tuned by pictures"):
        refuse_untuned(entry())
    refuse_untuned(entry(tuning="none"))


def blend(*phrases: str) -> ConceptEdit:
    return ConceptEdit(
        source="doctor", blend=tuple((phrase, 1 / len(phrases)) for phrase in phrases), templates=("a {}",)
    )


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.4, 0.6)])
def test_without_pictures_share_times_distance_is_equal(
    models: EmcidModels, shares: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.methods.emcid import distance

    seen: list[Any] = []
    plain = distance._balanced

    def noted(distances: Any, *rest: Any) -> Any:
        seen.append(distances)
        return plain(distances, *rest)

    monkeypatch.setattr(distance, "_balanced", noted)
    edit = blend("female doctor", "male doctor")
    weights = distant_weights(models, [edit], {"doctor": shares}, TEXT, layer=9)["doctor"]
    assert sum(weights) == pytest.approx(1)
    apart = seen[0](torch.tensor(weights).numpy())
    assert float(apart[0]) * shares[0] == pytest.approx(float(apart[1]) * shares[1], rel=0.02)


def test_a_larger_share_is_nearer_and_plain_edits_have_no_mixture(models: EmcidModels) -> None:
    edit, plain = blend("female doctor", "male doctor"), ConceptEdit(source="cat", destination="dog")
    even = distant_weights(models, [plain, edit], {"doctor": (0.5, 0.5)}, TEXT, layer=9)
    skewed = distant_weights(models, [edit], {"doctor": (0.6, 0.4)}, TEXT, layer=9)
    assert list(even) == ["doctor"]
    assert skewed["doctor"][0] > even["doctor"][0]
