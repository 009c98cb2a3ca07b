"""Progress shows on a terminal and leaves no trace elsewhere."""

import io

import pytest
from rich.console import Console

from forkpoint import progress


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


def test_stages_inside_a_status(terminal):
    with progress.status("loading demo"), progress.stages("converting", total=2) as begin:
        begin("weights")
        begin("tokenizer")
    assert "loading demo" in terminal.getvalue()
    assert "converting: tokenizer" in terminal.getvalue()
