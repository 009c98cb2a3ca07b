"""Progress shows on a terminal and leaves no trace elsewhere."""

import io

import pytest
from rich.console import Console

from forkpoint.support import progress


@pytest.fixture
def terminal(monkeypatch):
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "error_console", lambda: console)
    return written


def test_nothing_but_on_a_terminal(capfd):
    with progress.status("loading"), progress.stages("converting", total=2) as begin:
        begin("weights")
        begin("tokenizer")
    assert capfd.readouterr() == ("", "")


def test_nobody_is_asked_but_on_a_terminal(capfd):
    with progress.watching() as told:
        told.begin("tracing")
        told.count(lambda: 1 // 0, total=2)
    assert capfd.readouterr() == ("", "")


def test_a_bar_asks_how_far_a_stage_is(terminal):
    done = [0]
    with progress.watching() as told:
        told.begin("tracing run A")
        told.count(lambda: done[0], None)
        told.begin("tracing run B")
        told.count(lambda: done[0], 4)
        for done[0] in (1, 5):
            told.refresh()
        told.begin("comparing")  # of which nothing is known: not what the last one said
    shown = terminal.getvalue()
    assert all(text in shown for text in ("tracing run A", "tracing run B", "25%", "100%"))
    assert "%" not in shown[shown.rindex("comparing") :]


def test_stages_inside_a_status(terminal):
    with progress.status("loading demo"), progress.stages("converting", total=2) as begin:
        begin("weights")
        begin("tokenizer")
    assert "loading demo" in terminal.getvalue()
    assert "converting: tokenizer" in terminal.getvalue()
