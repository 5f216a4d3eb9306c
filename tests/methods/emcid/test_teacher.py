"""Questions and answers: noised as DDPM does, answered by the frozen U-Net, spread over the timesteps."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.anatomy import text_stack
from surgery.diffusion import encode_prompts, noise_schedule
from surgery.methods.emcid import ConceptEdit, EmcidModels, OffsetSettings
from surgery.methods.emcid.pictures import clean_latents
from surgery.methods.emcid.tail import encode
from surgery.methods.emcid.teacher import BankTeacher, FreshTeacher, Lesson, teacher_of
from surgery.methods.emcid.views import rows_of
from tests.support.concepts import CAT, PIZZA, concepts_of

QUICK = OffsetSettings(sampling_steps=2, bank_size=4)


def lesson(models: EmcidModels, settings: OffsetSettings, *edits: ConceptEdit) -> Lesson:
    stack = text_stack(models.text_encoder)
    concepts = concepts_of(models.tokenizer, *edits)
    pad, device = models.tokenizer.pad_token_id, torch.device("cpu")
    rows = rows_of(concepts, settings, positions=77, pad=pad, device=device)
    return Lesson(
        models=models,
        schedule=noise_schedule(models.scheduler),
        clean=clean_latents(models, rows.views, settings),
        rows=rows,
        goal=encode(stack, rows.goal),
        settings=settings,
    )


def test_answers_are_the_frozen_u_net_s_for_the_destination(models: Any) -> None:
    made = lesson(models, QUICK, CAT)
    question = BankTeacher(made).ask(1, torch.arange(3))
    text = encode_prompts(models.tokenizer, models.text_encoder, ["An image of dog", "A photo of dog", "dog"])
    with torch.no_grad():
        answer = models.unet(question.noisy, question.timesteps, encoder_hidden_states=text).sample
    torch.testing.assert_close(question.answer, answer)


def test_the_bank_asks_each_question_once_a_cycle(models: Any) -> None:
    teacher = BankTeacher(lesson(models, QUICK, CAT))
    cycle = torch.stack([teacher.ask(step, torch.arange(3)).timesteps for step in range(4)])
    again = torch.stack([teacher.ask(step, torch.arange(3)).timesteps for step in range(4, 8)])
    assert torch.equal(cycle, again)
    strata = (cycle * 4).div(1000, rounding_mode="floor")
    assert strata.sort(0).values.T.tolist() == [[0, 1, 2, 3]] * 3


def test_the_bank_s_noise_comes_in_opposite_pairs(models: Any) -> None:
    _, noise, _ = BankTeacher(lesson(models, QUICK, CAT))._draws()
    assert torch.equal(noise[:, 0], -noise[:, 1])
    assert not torch.equal(noise[:, 0], noise[:, 2])


@pytest.mark.parametrize("bank_size", [0, 4])
def test_a_concept_s_questions_do_not_depend_on_the_company(models: Any, bank_size: int) -> None:
    settings = replace(QUICK, bank_size=bank_size)
    both, alone = (teacher_of(lesson(models, settings, *edits)) for edits in ((CAT, PIZZA), (PIZZA,)))
    for step in range(2):
        one, other = both.ask(step, torch.arange(6)), alone.ask(step, torch.arange(3))
        assert torch.equal(one.timesteps[3:], other.timesteps)
        torch.testing.assert_close(one.noisy[3:], other.noisy)


def test_fresh_questions_are_new_at_every_step(models: Any) -> None:
    teacher = FreshTeacher(lesson(models, QUICK, CAT))
    one, other = (teacher.ask(step, torch.arange(3)).noisy for step in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("bank_size", [0, 4])
def test_timesteps_stay_in_their_range(models: Any, bank_size: int) -> None:
    settings = replace(QUICK, bank_size=bank_size, timesteps=(300, 302))
    teacher = teacher_of(lesson(models, settings, CAT))
    times = torch.cat([teacher.ask(step, torch.arange(3)).timesteps for step in range(4)])
    assert set(times.tolist()) <= {300, 301, 302}


def test_without_pictures_only_late_timesteps_are_asked(models: Any) -> None:
    teacher = teacher_of(lesson(models, replace(QUICK, images="none"), CAT))
    times = torch.cat([teacher.ask(step, torch.arange(3)).timesteps for step in range(4)])
    assert int(times.min()) >= 600


def test_the_truth_is_the_answer_where_it_is_asked_for(models: Any) -> None:
    made = lesson(models, replace(QUICK, target="truth"), CAT)
    teacher = BankTeacher(made)
    _, noise, _ = teacher._draws()
    assert torch.equal(teacher.ask(0, torch.tensor([0])).answer, noise[:1, 0])
