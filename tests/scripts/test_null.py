"""The null bench, on pools that nobody had to draw."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from surgery.evaluate import p_value


@pytest.fixture
def null(bench: Any) -> Any:
    """The bench's module."""
    return bench("null")


def hits(phrases: int, seeds: int = 6) -> np.ndarray[Any, Any]:
    """Pictures of phrases and prompts that differ in how often they succeed."""
    rng = np.random.default_rng(0)
    return rng.random((phrases, 6, seeds)) < rng.beta(4, 0.4, size=(phrases, 6, 1))


def pool(phrases: int) -> Any:
    """As the bench draws it, without its libraries."""
    rows = hits(phrases)
    return SimpleNamespace(hits=rows, pictures=rows.size, phrases=("thing",) * phrases)


def test_no_picture_is_in_both_sets_and_pairs_share_their_prompt(null: Any) -> None:
    numbers = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    first, second, phrases = null.disjoint(numbers, 3, np.random.default_rng(0))
    assert len(np.unique([first, second])) == 2 * 5 * 6 * 3
    assert (first // 7 == second // 7).all()
    assert (first // 42 == phrases).all()


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_a_planted_loss_has_its_size_and_turns_no_miss_into_a_hit(null: Any, share: float) -> None:
    pairs = null.disjoint(hits(3000), 3, np.random.default_rng(0))
    before, after, phrases = null.hurt(pairs, 0.05, share, np.random.default_rng(0))
    assert (before == pairs[0]).all()
    assert not (after & ~pairs[1]).any()
    lost = (pairs[1] & ~after).reshape(3000, -1).mean(axis=1)
    assert lost.mean() == pytest.approx(0.05, abs=0.008)
    assert (lost > 0).mean() <= share + 0.02
    assert len(phrases) == len(after)


def test_a_sound_evaluation_passes(null: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert null.null_test(pool(200), 30, 0.05, 1)
    said = capsys.readouterr().out
    assert "7200 pictures of 200 phrases" in said
    assert "A loss of 5 points takes" in said


def test_an_evaluation_that_sees_too_much_fails(null: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null, "p_value", lambda *rows: p_value(*rows) / 9)
    assert not null.null_test(pool(200), 20, 0.05, 1)


def test_a_pool_that_is_too_small_for_the_loss_is_named(null: Any) -> None:
    with pytest.raises(SystemExit, match="the pool has 12; enlarge it"):
        null.null_test(pool(12), 2, 0.05, 0)
