"""Which rows of a concept a step looks at."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.methods.emcid import ConceptEdit, EmcidModels, OffsetSettings
from surgery.methods.emcid.problem import problem_of
from surgery.methods.emcid.views import Rows, rows_of
from tests.support.concepts import CAT, FORGET, concepts_of


def rows(tokenizer: Any, edits: Sequence[ConceptEdit], settings: OffsetSettings) -> Rows:
    pad = tokenizer.pad_token_id
    return rows_of(
        concepts_of(tokenizer, *edits), settings, positions=77, pad=pad, device=torch.device("cpu")
    )


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, None])
def test_rows_are_due_in_turn_and_know_how_often_they_were(tokenizer: Any, at_once: int | None) -> None:
    found = rows(tokenizer, (CAT, FORGET), OffsetSettings())
    assert found.count.tolist() == [3, 3, 3, 2, 2]
    seen = torch.zeros(5, dtype=torch.long)
    for step in range(12):
        due = found.due(step, at_once)
        for owner, count in ((0, 3), (1, 2)):
            assert int(due[found.owner == owner].sum()) == min(count, at_once or count)
        assert torch.equal(found.turn(step, at_once)[due], seen[due])
        seen += due
    for owner in (0, 1):  # nobody is looked at more often than another by more than one
        mine = seen[found.owner == owner]
        assert int(mine.max() - mine.min()) <= 1


def test_a_round_looks_at_every_row(tokenizer: Any) -> None:
    found = rows(tokenizer, (CAT, FORGET), OffsetSettings())
    assert [found.round(at_once) for at_once in (1, 2, 3, None)] == [3, 2, 1, 1]


def test_one_row_a_step_gives_the_loss_of_all_over_a_round(models: EmcidModels) -> None:
    concepts = concepts_of(models.tokenizer, CAT, FORGET)
    whole = problem_of(models, concepts, OffsetSettings(mode="text"), 10)
    turns = problem_of(models, concepts, OffsetSettings(mode="text", rows_per_step=1), 10)
    offsets = torch.randn(whole.source.shape, generator=torch.Generator().manual_seed(0))
    everyone = torch.arange(2)
    expected = whole.losses(0, offsets, everyone)
    six = torch.stack([turns.losses(step, offsets, everyone) for step in range(6)])
    assert turns.cycle == 3
    torch.testing.assert_close(six.mean(0), expected)
    assert six.std(0).min() > 0


def test_a_row_that_is_not_due_asks_its_next_question_later(models: EmcidModels) -> None:
    settings = OffsetSettings(bank_size=2, sampling_steps=1, rows_per_step=1)
    problem = problem_of(models, concepts_of(models.tokenizer, CAT), settings, 10)
    assert problem.teacher is not None
    assert problem.cycle == 6
    asked = [
        (row := step % 3, int(problem.teacher.ask(step, torch.tensor([row])).timesteps)) for step in range(6)
    ]
    assert len(set(asked)) == 6


def test_the_first_steps_look_at_the_text_alone(models: EmcidModels) -> None:
    concepts, offsets = concepts_of(models.tokenizer, CAT), torch.zeros(1, 32)
    both = OffsetSettings(bank_size=1, sampling_steps=1)
    late = problem_of(models, concepts, replace(both, text_steps=2), 10)
    text = problem_of(models, concepts, replace(both, mode="text"), 10)
    whole = problem_of(models, concepts, both, 10)
    everyone = torch.arange(1)
    found = [late.losses(step, offsets, everyone) for step in range(3)]
    expected = [one.losses(0, offsets, everyone) for one in (text, text, whole)]
    torch.testing.assert_close(found, expected)
