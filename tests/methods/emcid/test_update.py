"""Stage II: identities of section 8.2, modes, reports, refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.anatomy import Span, locate, text_stack, weights_digest
from surgery.delta import Dense, LowRank
from surgery.errors import ConceptError, MethodError
from surgery.methods.emcid import (
    CorpusSettings,
    KeyStatistics,
    Target,
    Update,
    UpdateSettings,
    collect_statistics,
    solve_updates,
)
from surgery.methods.emcid.reports import rounding_loss
from surgery.methods.emcid.sweeps import measure, subjects_of
from surgery.methods.emcid.walk import Stretch, Walk
from tests.support.concepts import CAT, DOCTOR, FORGET, PIZZA, captions, concepts_of, random_targets

LAYERS = (2, 6, 10)
PLAIN = UpdateSettings(layers=LAYERS, ridge=50.0, keys="mean")


@pytest.fixture(scope="module")
def statistics(encoder: Any, tokenizer: Any) -> KeyStatistics:
    return collect_statistics(
        encoder, tokenizer, captions(), LAYERS, CorpusSettings(shrinkage=0.1, include_padding=False)
    )


@pytest.fixture(scope="module")
def targets(encoder: Any, tokenizer: Any) -> list[Target]:
    return random_targets(encoder, concepts_of(tokenizer, CAT, PIZZA, DOCTOR, FORGET))


def changes(update: Update) -> list[Tensor]:
    return [update.delta.materialise(report.name) for report in update.layers]


def shares(update: Update) -> Tensor:
    return torch.tensor([report.attained_share for report in update.edits])


def close(one: Update, other: Update, tolerance: float = 1e-5) -> bool:
    pairs = zip(changes(one), changes(other), strict=True)
    return all(float((a - b).norm()) <= tolerance * float(b.norm()) for a, b in pairs)


@pytest.mark.parametrize("keys", ["mean", "all"])
def test_vanishing_ridge_attains_every_offset(encoder: Any, statistics: Any, targets: Any, keys: Any) -> None:
    found = solve_updates(encoder, targets, statistics, replace(PLAIN, ridge=1e-6, keys=keys))
    torch.testing.assert_close(shares(found), torch.ones(4), rtol=0.02, atol=0.0)
    assert all(report.residual_after < 0.1 * report.residual_before for report in found.edits)


def test_infinite_ridge_changes_nothing(encoder: Any, statistics: Any, targets: Any) -> None:
    found = solve_updates(encoder, targets, statistics, replace(PLAIN, ridge=1e12))
    assert all(float(change.norm()) < 1e-6 for change in changes(found))
    assert float(shares(found).abs().max()) < 1e-6


def test_more_ridge_attains_less(encoder: Any, statistics: Any, targets: Any) -> None:
    smallest = [
        float(shares(solve_updates(encoder, targets, statistics, replace(PLAIN, ridge=ridge))).min())
        for ridge in (1.0, 100.0, 10_000.0)
    ]
    assert smallest == sorted(smallest, reverse=True)


def test_one_layer_is_linear_in_the_residual(encoder: Any, statistics: Any, targets: Any) -> None:
    one = replace(PLAIN, layers=(10,))
    doubled = [replace(target, offset=2 * target.offset) for target in targets]
    plain, twice = (solve_updates(encoder, given, statistics, one) for given in (targets, doubled))
    torch.testing.assert_close(changes(twice)[0], 2 * changes(plain)[0], rtol=1e-4, atol=1e-5)


def test_permuting_the_concepts_changes_nothing(encoder: Any, statistics: Any, targets: Any) -> None:
    forth = solve_updates(encoder, targets, statistics, PLAIN)
    back = solve_updates(encoder, targets[::-1], statistics, PLAIN)
    assert close(forth, back)
    assert [report.label for report in back.edits] == [report.label for report in forth.edits][::-1]
    torch.testing.assert_close(shares(back).flip(0), shares(forth))


def test_one_concept_is_the_rank_one_form(encoder: Any, statistics: Any, targets: Any) -> None:
    # ΔW = r (B⁻¹ k)ᵀ / (1/a + kᵀ B⁻¹ k) with B = (1 - α) λ C
    found = solve_updates(encoder, targets[:1], statistics, replace(PLAIN, layers=(10,)))
    subjects, grouping = subjects_of(targets[:1])
    (keys,), _ = measure(text_stack(encoder), subjects, [10])
    key = grouping.mean(keys)[0].double()
    direction = torch.linalg.solve(0.5 * 50.0 * statistics.moment(10), key)
    expected = torch.outer(targets[0].offset.double(), direction) / (1 / 0.5 + key @ direction)
    torch.testing.assert_close(changes(found)[0], expected, rtol=1e-5, atol=1e-7)
    assert found.edits[0].gains[0] == pytest.approx(float(key @ direction / (2 + key @ direction)))


def test_alpha_and_ridge_count_only_as_their_ratio(encoder: Any, statistics: Any, targets: Any) -> None:
    one = solve_updates(encoder, targets, statistics, replace(PLAIN, ridge=4000.0, alpha=0.6))
    other = solve_updates(encoder, targets, statistics, replace(PLAIN, ridge=4000.0 * 0.4 / 0.6, alpha=0.5))
    assert close(one, other)


def test_a_heavier_edit_attains_more(encoder: Any, statistics: Any, targets: Any) -> None:
    concept = targets[0].concept
    heavy = replace(concept, edit=replace(concept.edit, weight=20.0))
    plain = solve_updates(encoder, targets, statistics, PLAIN)
    found = solve_updates(encoder, [replace(targets[0], concept=heavy), *targets[1:]], statistics, PLAIN)
    assert found.edits[0].attained_share > plain.edits[0].attained_share
    assert found.edits[0].gains[0] > plain.edits[0].gains[0]


def test_one_prompt_per_concept_makes_both_kinds_of_keys_the_same(
    encoder: Any, tokenizer: Any, statistics: Any
) -> None:
    single = [replace(edit, templates=("a photo of {}",)) for edit in (CAT, PIZZA)]
    given = random_targets(encoder, concepts_of(tokenizer, *single))
    one, other = (
        solve_updates(encoder, given, statistics, replace(PLAIN, keys=keys)) for keys in ("mean", "all")
    )
    assert close(one, other)


def test_reported_shares_are_what_the_changed_encoder_shows(
    encoder: Any, statistics: Any, targets: Any
) -> None:
    found = solve_updates(encoder, targets, statistics, PLAIN)
    stack = text_stack(encoder)
    weights = {
        report.layer: stack.weight(report.layer) + change.float()
        for report, change in zip(found.layers, changes(found), strict=True)
    }
    subjects, grouping = subjects_of(targets)
    before = measure(stack, subjects, LAYERS)[1]
    moved = grouping.mean(Walk(stack, subjects).stream_behind(10, weights) - before)
    offsets = torch.stack([target.offset for target in targets])
    expected = (moved * offsets).sum(1) / offsets.square().sum(1)
    torch.testing.assert_close(shares(found), expected, rtol=1e-3, atol=1e-5)


def test_further_sweeps_attain_more_and_stop_when_it_is_enough(
    encoder: Any, statistics: Any, targets: Any
) -> None:
    one = solve_updates(encoder, targets, statistics, PLAIN)
    three = solve_updates(encoder, targets, statistics, replace(PLAIN, sweeps=3))
    assert three.sweeps == 3
    assert bool((shares(three) > shares(one)).all())
    middle = float(shares(solve_updates(encoder, targets, statistics, replace(PLAIN, sweeps=2))).min())
    enough = solve_updates(
        encoder, targets, statistics, replace(PLAIN, sweeps=9, attained_share=middle - 1e-6)
    )
    assert enough.sweeps == 2
    assert enough.layers[0].rank == 2 * 4


def test_the_released_residual_overshoots_where_the_block_residual_does_not(
    encoder: Any, statistics: Any, targets: Any
) -> None:
    # 2.3 of the study: up to H_n times v*, and never more than the whole offset
    eleven = replace(PLAIN, ridge=1e-3, residual="mlp", anchor="first")
    released = solve_updates(encoder, targets, statistics, eleven)
    block = solve_updates(encoder, targets, statistics, replace(eleven, residual="block", anchor="mean"))
    assert float(shares(released).min()) > 1.3
    assert 0.9 < float(shares(block).min()) <= float(shares(block).max()) < 1.05


def preserved(tokenizer: Any) -> list[Span]:
    return [locate(tokenizer, template, "dog") for template in ("a photo of {}", "{}")]


def drift(encoder: Any, update: Update, spans: list[Span]) -> float:
    stack = text_stack(encoder)
    weights = {
        report.layer: stack.weight(report.layer) + change.float()
        for report, change in zip(update.layers, changes(update), strict=True)
    }
    walk = Walk(stack, [Stretch(ids=span.ids, start=span.start, end=len(span.ids)) for span in spans])
    return float((walk.stream_behind(11, weights) - walk.stream_behind(11, {})).norm())


def test_preserved_names_move_less(encoder: Any, tokenizer: Any, statistics: Any, targets: Any) -> None:
    spans = preserved(tokenizer)
    plain = solve_updates(encoder, targets, statistics, PLAIN)
    kept = solve_updates(encoder, targets, statistics, replace(PLAIN, preserve_weight=1e4), preserve=spans)
    assert drift(encoder, kept, spans) < 0.1 * drift(encoder, plain, spans)
    ignored = solve_updates(encoder, targets, statistics, replace(PLAIN, preserve_weight=0.0), preserve=spans)
    assert close(ignored, plain)


def test_in_null_space_mode_only_free_directions_change(encoder: Any, statistics: Any, targets: Any) -> None:
    found = solve_updates(encoder, targets, statistics, replace(PLAIN, null_space_threshold=0.3))
    for report, change in zip(found.layers, changes(found), strict=True):
        values, vectors = torch.linalg.eigh(statistics.moment(report.layer))
        used = vectors[:, values >= 0.3 * values.mean()]
        assert float((change @ used).norm()) < 1e-9 * float(change.norm())
        assert 0 < used.shape[1] < 128


def test_small_changes_are_low_rank_and_large_ones_dense(encoder: Any, statistics: Any, targets: Any) -> None:
    few = solve_updates(encoder, targets, statistics, PLAIN)
    assert all(isinstance(form, LowRank) and form.left.shape == (32, 4) for form in few.delta.terms.values())
    # two factors of 32 × r and r × 128 are smaller than 32 × 128 up to r = 25
    many = solve_updates(encoder, targets, statistics, replace(PLAIN, sweeps=7))
    assert all(isinstance(form, Dense) for form in many.delta.terms.values())
    assert {report.rank for report in many.layers} == {28}


def test_near_duplicate_sources_that_agree_get_the_mean(encoder: Any, statistics: Any, targets: Any) -> None:
    twin = replace(targets[0], offset=targets[0].offset * 1.2)
    found = solve_updates(encoder, [targets[0], twin], statistics, PLAIN)
    assert "near-duplicate" in {finding.kind for finding in found.findings}
    mean = replace(targets[0], offset=targets[0].offset * 1.1)
    assert close(found, solve_updates(encoder, [mean, mean], statistics, PLAIN))


def test_near_duplicate_sources_that_disagree_are_an_error(
    encoder: Any, statistics: Any, targets: Any
) -> None:
    opposite = replace(targets[0], offset=-targets[0].offset)
    with pytest.raises(ConceptError, match="can hardly tell the sources apart"):
        solve_updates(encoder, [targets[0], opposite], statistics, PLAIN)


def test_interference_names_the_partner(encoder: Any, statistics: Any, targets: Any) -> None:
    twin = replace(targets[0], concept=replace(targets[0].concept, edit=replace(CAT, destination="image")))
    found = solve_updates(encoder, [targets[0], twin, targets[2]], statistics, PLAIN)
    assert [report.partner for report in found.edits[:2]] == ["cat → 'image'", "cat → 'dog'"]
    assert found.edits[0].interference == pytest.approx(found.edits[0].gains[0], rel=1.0)
    alone = solve_updates(encoder, targets[:1], statistics, PLAIN)
    assert (alone.edits[0].partner, alone.edits[0].interference) == (None, 0.0)


def test_a_large_change_is_a_warning(encoder: Any, statistics: Any, targets: Any) -> None:
    large = [replace(target, offset=target.offset * 30) for target in targets]
    found = solve_updates(encoder, large, statistics, replace(PLAIN, ridge=1e-3))
    (told,) = [finding for finding in found.findings if finding.kind == "large-change"]
    assert told.subject == f"layers {', '.join(str(layer) for layer in PLAIN.layers)}"


def test_keys_that_can_hardly_be_told_apart_are_a_warning(
    encoder: Any, statistics: Any, targets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = replace(targets[0], concept=replace(targets[0].concept, edit=replace(CAT, destination="image")))
    found = solve_updates(encoder, [targets[2], targets[0], twin], statistics, PLAIN)
    told = [finding for finding in found.findings if finding.kind == "entangled-keys"]
    assert [finding.subject for finding in told] == [f"layer {layer}" for layer in PLAIN.layers]
    assert all("cat → 'dog' and cat → 'image' can be told apart least" in finding.message for finding in told)
    assert {layer.closest for layer in found.layers} == {("cat → 'dog'", "cat → 'image'")}
    apart = solve_updates(encoder, [targets[0], targets[2]], statistics, PLAIN)
    assert not [finding for finding in apart.findings if finding.kind == "entangled-keys"]


def test_an_offset_that_hardly_arrives_is_a_warning(encoder: Any, statistics: Any, targets: Any) -> None:
    found = solve_updates(encoder, targets, statistics, replace(PLAIN, ridge=1e30))
    told = [finding.subject for finding in found.findings if finding.kind == "hardly-attained"]
    assert told == [target.concept.label for target in targets]
    report = found.layers[0]
    weight = text_stack(encoder).weight(2).double()
    assert report.drift == pytest.approx(float(changes(found)[0].norm() / weight.norm()))


def test_a_singular_covariance_is_solved_with_help_and_says_so(
    encoder: Any, statistics: Any, targets: Any
) -> None:
    singular = replace(statistics, shrinkage=0.0)
    found = solve_updates(encoder, targets, singular, replace(PLAIN, ridge=1e-3))
    assert found.layers[0].jitter > 0
    assert "singular" in {finding.kind for finding in found.findings}


def test_rounding_to_half_precision_is_reported(encoder: Any, statistics: Any, targets: Any) -> None:
    half = solve_updates(encoder, targets, statistics, PLAIN, stored=torch.float16)
    single = solve_updates(encoder, targets, statistics, PLAIN)
    assert 1e-5 < half.layers[0].rounding_loss < 1
    assert single.layers[0].rounding_loss < 1e-4 * half.layers[0].rounding_loss * 100


def test_rounding_loss_is_relative_to_the_change() -> None:
    # 1 + 2⁻¹¹ lies between 1 and 1 + 2⁻¹⁰ in float16 and rounds to even: the change is lost whole
    assert rounding_loss(torch.ones(1), torch.full((1,), 2.0**-11), torch.float16) == 1.0
    assert rounding_loss(torch.ones(1), torch.full((1,), 2.0**-10), torch.float16) == 0.0
    assert rounding_loss(torch.ones(1), torch.zeros(1), torch.float16) == 0.0


def test_targets_learned_on_another_encoder_are_refused(encoder: Any, statistics: Any, targets: Any) -> None:
    foreign = replace(targets[0], encoder_digest="another")
    with pytest.raises(MethodError, match="Is this checkpoint edited already"):
        solve_updates(encoder, [foreign], statistics, PLAIN)


def test_targets_of_another_layer_are_refused(encoder: Any, statistics: Any, targets: Any) -> None:
    with pytest.raises(MethodError, match="the last edited one is 6"):
        solve_updates(encoder, targets[:1], statistics, replace(PLAIN, layers=(2, 6)))


def test_an_offset_that_is_not_finite_is_refused(encoder: Any, statistics: Any, targets: Any) -> None:
    broken = replace(targets[0], offset=targets[0].offset * float("nan"))
    with pytest.raises(MethodError, match="not finite"):
        solve_updates(encoder, [broken], statistics, PLAIN)


def test_statistics_that_are_not_finite_give_no_patch(encoder: Any, statistics: Any, targets: Any) -> None:
    broken = replace(
        statistics, moments={layer: moment * float("nan") for layer, moment in statistics.moments.items()}
    )
    with pytest.raises(Exception, match="NaN or infinity"):
        solve_updates(encoder, targets, broken, PLAIN)


def test_no_targets_change_nothing(encoder: Any, statistics: Any) -> None:
    assert solve_updates(encoder, [], statistics, PLAIN).delta.terms == {}


def test_the_encoder_is_not_changed(encoder: Any, statistics: Any, targets: Any) -> None:
    before = weights_digest(encoder)
    solve_updates(encoder, targets, statistics, replace(PLAIN, sweeps=2))
    assert weights_digest(encoder) == before
