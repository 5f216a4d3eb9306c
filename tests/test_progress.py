"""Progress: what passes through is unchanged, and nothing is drawn where nobody watches."""

import io
import sys

import pytest

from surgery import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tracked_items_come_out_unchanged() -> None:
    assert list(progress.track([3, 1, 2], "counting")) == [3, 1, 2]


def test_nothing_is_drawn_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress.track(range(3), "counting"))
    with progress.bar(2, "filling") as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_the_description(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(progress.track(range(3), "counting"))
    assert "counting" in terminal.getvalue()


def test_silence_holds_inside_its_context_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.silence():
        list(progress.track(range(3), "quiet"))
    assert terminal.getvalue() == ""
    list(progress.track(range(3), "loud"))
    assert "loud" in terminal.getvalue()
