"""What a command leaves behind: the report before the files, each file that can't be written by name, and JSON alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tests.report import samples
from typer.testing import CliRunner

from forkpoint.cli import options
from forkpoint.cli.options import STDOUT
from forkpoint.cli.outcome import finish
from forkpoint.errors import InputError

ANSWERS = [("Hello", samples.semantic())]


def test_the_report_is_printed_before_a_file_is_written(capsys, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "forkpoint.cli.outcome._write", lambda path, answers: seen.append(capsys.readouterr().out)
    )
    with pytest.raises(typer.Exit):
        finish(ANSWERS, json=tmp_path / "it.json")
    assert "Semantic difference" in seen[0]


def test_each_file_that_cannot_be_written_is_named_and_the_other_is_there(capsys, tmp_path):
    with pytest.raises(InputError, match=r"none/a\.json"):
        finish(ANSWERS, json=tmp_path / "none/a.json", html=tmp_path / "b.html")
    assert "Semantic difference" in capsys.readouterr().out
    assert (tmp_path / "b.html").is_file()
    with pytest.raises(InputError, match=r"none/a\.json.*none/b\.html"):
        finish(ANSWERS, json=tmp_path / "none/a.json", html=tmp_path / "none/b.html")


@pytest.mark.parametrize("full", ["json", "html"])
def test_a_full_disk_is_named(full):
    with pytest.raises(InputError, match="/dev/full can't be written: No space left on device"):
        finish(ANSWERS, **{full: Path("/dev/full")})


def test_a_full_disk_behind_standard_output_is_said(tmp_path):
    ANSWERS[0][1].to_json(tmp_path / "it.json")
    command = [sys.executable, "-m", "forkpoint", "report", str(tmp_path / "it.json")]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "forkpoint: standard output can't be written: No space left on device\n"


def test_quiet_prints_nothing_and_the_status_tells(capsys):
    with pytest.raises(typer.Exit) as ended:
        finish(ANSWERS, quiet=True)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("answers", [ANSWERS, [*ANSWERS, ("there", samples.identical())]], ids=["one", "two"])
def test_json_on_standard_output_is_all_that_is_there(capfd, answers):
    with pytest.raises(typer.Exit):
        finish(answers, json=STDOUT)
    found = json.loads(capfd.readouterr().out)
    assert found["verdict"]["kind"] == "semantic" if len(answers) == 1 else len(found["prompts"]) == 2


def test_a_dash_is_standard_output():
    app = typer.Typer()
    taken = []

    @app.command()
    def command(json: options.Json = None) -> None:
        taken.append(json)

    for given in (["--json", "-"], ["--json", "a.json"], []):
        assert CliRunner().invoke(app, given).exit_code == 0
    assert taken == [STDOUT, Path("a.json"), None]
