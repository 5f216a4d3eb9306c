"""A later edit leaves what an earlier one wrote where it is."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.anatomy import text_stack
from surgery.errors import MethodError
from surgery.methods.emcid import (
    CorpusSettings,
    Target,
    Update,
    UpdateSettings,
    collect_statistics,
    solve_updates,
)
from surgery.methods.emcid.earlier import WrittenKey, keys_from, still_valid, written_by
from surgery.methods.emcid.sweeps import measure, subjects_of
from tests.support.concepts import CAT, DOCTOR, PIZZA, captions, concepts_of, random_targets

LAYERS = (8, 9, 10)
SETTINGS = UpdateSettings(layers=LAYERS, ridge=0.2)
CORPUS = CorpusSettings(shrinkage=0.1, include_padding=False)


def solved(encoder: Any, tokenizer: Any, targets: list[Target], **options: Any) -> Update:
    statistics = collect_statistics(encoder, tokenizer, captions(), LAYERS, CORPUS)
    return solve_updates(encoder, targets, statistics, SETTINGS, **options)


def edited(encoder: Any, update: Update) -> Any:
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        for report in update.layers:
            weight = text_stack(changed).blocks[report.layer].mlp.fc2.weight
            weight += update.delta.materialise(report.name).float()
    return changed


def stream(encoder: Any, targets: list[Target]) -> Tensor:
    return measure(text_stack(encoder), subjects_of(targets)[0], LAYERS)[1]


def test_after_two_edits_the_first_is_kept_better_when_its_keys_are_known(
    encoder: Any, tokenizer: Any
) -> None:
    first = random_targets(encoder, concepts_of(tokenizer, CAT, DOCTOR))
    once = edited(encoder, solved(encoder, tokenizer, first))
    second = random_targets(once, concepts_of(tokenizer, PIZZA), seed=7)
    kept = keys_from([key.as_json() for key in written_by(first)])
    moved, attained = [], []
    for earlier in ((), kept):
        update = solved(once, tokenizer, second, earlier=earlier)
        twice = edited(once, update)
        moved.append(float((stream(twice, first) - stream(once, first)).norm()))
        attained.append(update.edits[0].attained_share)
    assert moved[1] < 0.5 * moved[0]
    assert attained[1] > 0.9 * attained[0]


def test_in_one_layer_protected_keys_are_edits_with_nothing_to_do(encoder: Any, tokenizer: Any) -> None:
    # the same normal equations: columns whose residual is zero
    one = UpdateSettings(layers=(10,), ridge=5.0)
    statistics = collect_statistics(encoder, tokenizer, captions(), (10,), CORPUS)
    targets = random_targets(encoder, concepts_of(tokenizer, PIZZA))
    earlier = written_by(random_targets(encoder, concepts_of(tokenizer, CAT)))
    found = solve_updates(encoder, targets, statistics, one, earlier=earlier)
    still = random_targets(encoder, concepts_of(tokenizer, CAT), length=0.0)
    together = solve_updates(encoder, [*targets, *still], statistics, one)
    for report in found.layers:
        torch.testing.assert_close(
            found.delta.materialise(report.name),
            together.delta.materialise(report.name),
            rtol=1e-5,
            atol=1e-7,
        )


def test_keys_travel_as_token_ids_and_each_prompt_comes_once(encoder: Any, tokenizer: Any) -> None:
    heavy = replace(CAT, weight=6.0)
    plain, heavier = (
        written_by(random_targets(encoder, concepts_of(tokenizer, edit))) for edit in (CAT, heavy)
    )
    (span, *_) = concepts_of(tokenizer, CAT)[0].spans
    assert plain[0].as_json() == {"ids": list(span.ids[: span.end]), "weight": 1 / 3}
    forth = keys_from([key.as_json() for key in (*plain, *heavier)])
    back = keys_from([key.as_json() for key in (*heavier, *plain)])
    assert forth == back == tuple(sorted(heavier))


@pytest.mark.parametrize(
    "raw", [{"ids": [], "weight": 1.0}, {"ids": [1, -2], "weight": 1.0}, {"ids": [1], "weight": 0}, [1], "x"]
)
def test_what_is_no_key_is_refused(raw: Any) -> None:
    with pytest.raises(MethodError, match="expected token ids and a positive weight"):
        keys_from([raw])


def test_a_source_that_is_edited_again_is_not_protected_from_its_own_edit(tokenizer: Any) -> None:
    concepts = concepts_of(tokenizer, CAT)
    keys = (*(WrittenKey(ids=span.ids[: span.end], weight=1.0) for span in concepts[0].spans),)
    other = WrittenKey(ids=(1, 2), weight=1.0)
    left, (finding,) = still_valid((*keys, other), concepts, vocabulary=1000, positions=77)
    assert left == (other,)
    assert (finding.kind, finding.subject) == ("edited-again", "cat → 'dog'")


def test_tokens_of_another_family_are_refused() -> None:
    for ids in ((1, 10), (1, 2, 3, 4)):
        with pytest.raises(MethodError, match="1 keys of earlier patches have tokens above 9"):
            still_valid((WrittenKey(ids=ids, weight=1.0),), (), vocabulary=10, positions=3)
