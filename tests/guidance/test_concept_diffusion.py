"""Identities of ConceptDiffusion; numbers are those of section 4.2 of the study, all in float64."""

from dataclasses import replace
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from surgery.diffusion.algebra import along, cosine, inner, norm, trimmed
from surgery.guidance.concept_diffusion import (
    INITIAL,
    LATER,
    OURS,
    ConceptSettings,
    LaterGuide,
    abstract_part,
    combined,
)

SHUT = ConceptSettings(threshold=-2.0, over_threshold=None, abstract_threshold=-2.0)


Predictions: TypeAlias = tuple[Tensor, Tensor, list[Tensor]]


@pytest.fixture
def predictions() -> Predictions:
    """Without a prompt, with it, and of three subjects."""
    generator = torch.Generator().manual_seed(1)
    one, two, *rest = (torch.randn((2, 4, 8, 8), generator=generator, dtype=torch.float64) for _ in range(5))
    return one, two, rest


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)


def test_what_is_missing_of_a_subject_is_orthogonal_to_the_prompt(predictions: Predictions) -> None:  # 9
    base, prompt, subjects = predictions
    whole, score = prompt - base, subjects[0] - base
    missing = score - along(score, whole)
    assert float(inner(missing, whole).abs().max()) < 1e-10
    share = cosine(whole, score)
    near(norm(missing) / norm(score), (1 - share.square()).sqrt())


def test_the_abstract_part_is_orthogonal_to_the_subjects(predictions: Predictions) -> None:  # 9
    base, prompt, subjects = predictions
    whole, scores = prompt - base, [subject - base for subject in subjects]
    total = scores[0] + scores[1] + scores[2]
    published = abstract_part(whole, scores, "sum")
    assert float(inner(published, total).abs().max()) < 1e-10
    near(cosine(whole, published).abs(), (1 - cosine(whole, total).square()).sqrt())
    ours = abstract_part(whole, scores, "span")
    assert max(float(inner(ours, one).abs().max()) for one in scores) < 1e-10
    assert max(float(cosine(published, one).abs().max()) for one in scores) > 0.01


@pytest.mark.parametrize("settings", [INITIAL, OURS, SHUT])
def test_without_subjects_it_is_classifier_free_guidance(  # 10
    predictions: Predictions, settings: ConceptSettings
) -> None:
    base, prompt, subjects = predictions
    plain = base + 7.5 * (prompt - base)
    assert torch.equal(combined(base, prompt, [], settings, 0), plain)
    outside = replace(settings, first_step=3, last_step=5)
    assert torch.equal(combined(base, prompt, subjects, outside, 2), plain)
    assert torch.equal(combined(base, prompt, subjects, outside, 5), plain)
    inside = replace(INITIAL, threshold=2.0, last_step=5)
    assert not torch.equal(combined(base, prompt, subjects, inside, 4), plain)


def test_with_all_gates_shut_it_is_classifier_free_guidance(predictions: Predictions) -> None:  # 10
    base, prompt, subjects = predictions
    assert torch.equal(combined(base, prompt, subjects, SHUT, 0), base + 7.5 * (prompt - base))


@pytest.mark.parametrize("settings", [INITIAL, OURS])
def test_a_subject_that_is_the_prompt_adds_nothing(  # 10
    predictions: Predictions, settings: ConceptSettings
) -> None:
    base, prompt, _ = predictions
    open_ = replace(settings, threshold=2.0, over_threshold=None)
    near(combined(base, prompt, [prompt], open_, 0), base + 7.5 * (prompt - base))


def test_subjects_leave_the_prompt_s_own_weight_as_it_is(predictions: Predictions) -> None:  # 11
    base, prompt, subjects = predictions
    settings = replace(INITIAL, threshold=0.5, over_threshold=None, abstract_threshold=-2.0)
    found = combined(base, prompt, subjects, settings, 0)
    whole = prompt - base
    assert float((found - (base + 7.5 * whole)).abs().max()) > 0.1
    near(inner(found - base, whole) / inner(whole, whole), torch.full((2, 1, 1, 1), 7.5, dtype=torch.float64))


def test_a_neglected_subject_is_added_and_a_dominant_one_taken_off(predictions: Predictions) -> None:
    base, prompt, (first, *_) = predictions
    whole = prompt - base
    sideways = first - base - along(first - base, whole)
    alone = replace(INITIAL, abstract_threshold=-2.0)
    plain = base + 7.5 * whole
    for lean, sign in ((0.1, 1), (0.95, -1)):
        direction = lean * whole / norm(whole) + (1 - lean**2) ** 0.5 * sideways / norm(sideways)
        near(cosine(direction, whole), torch.full((2, 1, 1, 1), lean, dtype=torch.float64))
        found = combined(base, prompt, [base + direction], alone, 0) - plain
        near(cosine(found, sideways), torch.full((2, 1, 1, 1), float(sign), dtype=torch.float64))


def test_a_subject_that_points_against_the_prompt_is_missing_for_us_and_dominant_as_published(
    predictions: Predictions,
) -> None:
    base, prompt, (first, *_) = predictions
    whole = prompt - base
    sideways = first - base - along(first - base, whole)
    against = base - 0.9 * whole / norm(whole) + 0.19**0.5 * sideways / norm(sideways)
    plain = base + 7.5 * whole
    for settings, sign in ((INITIAL, -1), (replace(OURS, softness=0.0), 1)):
        found = combined(base, prompt, [against], replace(settings, abstract_threshold=-2.0), 0) - plain
        near(cosine(found, sideways), torch.full((2, 1, 1, 1), float(sign), dtype=torch.float64))


def test_soft_gates_become_hard_ones(predictions: Predictions) -> None:
    base, prompt, subjects = predictions
    near(
        combined(base, prompt, subjects, replace(INITIAL, softness=1e-6), 0),
        combined(base, prompt, subjects, INITIAL, 0),
    )


def test_the_later_release_by_hand(predictions: Predictions) -> None:
    base, prompt, subjects = predictions
    guide = LaterGuide(replace(LATER, first_step=1, threshold=2.0, abstract_threshold=2.0))
    plain = base + 7.5 * (prompt - base)
    assert torch.equal(guide.combined(base, prompt, subjects[:2], 0), plain)
    whole, *scores = (trimmed(one - base, 0.9) for one in (prompt, *subjects[:2]))
    abstract = whole - along(whole, scores[0])
    abstract = abstract - along(abstract, scores[1])
    momenta = [torch.zeros_like(base)] * 2
    for step in (1, 2):
        added = [score + 0.5 * momentum for score, momentum in zip(scores, momenta, strict=True)]
        momenta = [0.5 * old + 0.5 * new for old, new in zip(momenta, added, strict=True)]
        expected = plain + 8.5 * (added[0] + added[1]) - 8.5 * (whole - abstract)
        near(guide.combined(base, prompt, subjects[:2], step), expected)


def test_the_later_release_looks_at_earlier_steps_only(predictions: Predictions) -> None:
    base, prompt, _ = predictions
    guide = LaterGuide(replace(LATER, first_step=0, abstract_threshold=-2.0))
    same, plain = [prompt], base + 7.5 * (prompt - base)
    assert torch.equal(guide.combined(base, prompt, same, 0), plain)
    # a subject that vanishes now is found missing once the mean of the last steps has fallen
    elsewhere = [base + (prompt - base).flip(3)]
    changed = [not torch.equal(guide.combined(base, prompt, elsewhere, step), plain) for step in (1, 2, 3)]
    assert changed == [False, False, True]
