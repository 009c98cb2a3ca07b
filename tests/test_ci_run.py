"""What a change has to pass: `.ci/run` with programs in place of those that it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNKNOWN = "playwright can't be installed here"


def put(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def ran(
    folder: Path, *, fails: str = "none", browser: bool = True, known: bool = False, installs: bool = True
) -> tuple[bool, list[str], str]:
    """Whether it was content, the targets that it made, and what it said.

    Args:
        folder: an empty one.
        fails: the target that fails.
        browser: whether Chromium is there.
        known: whether playwright is.
        installs: whether it can be installed.
    """
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    put(folder / "bin" / "make", f'echo "$1" >> made\ntest "$1" != {fails}')
    if browser:
        put(folder / "bin" / "chromium", "exit 1")
    put(
        folder / ".venv/bin/python",
        f'if test "$1" = -c; then exit {int(not known)}; fi\nexit {int(not installs)}',
    )
    for name in ("bash", "dirname"):
        (folder / "bin" / name).symlink_to(shutil.which(name) or "")
    done = subprocess.run(
        [folder / ".ci" / "run"],
        env={**os.environ, "PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0, (folder / "made").read_text().split(), done.stderr


@pytest.mark.parametrize("known", [True, False])
def test_the_page_is_looked_at_where_there_is_a_browser(tmp_path, known):
    assert ran(tmp_path, known=known, installs=not known) == (True, ["check", "test", "browser"], "")


def test_without_a_browser_it_is_not(tmp_path):
    assert ran(tmp_path, browser=False) == (True, ["check", "test"], "")


def test_where_playwright_cannot_be_installed_that_is_said(tmp_path):
    content, made, said = ran(tmp_path, installs=False)
    assert content
    assert made == ["check", "test"]
    assert UNKNOWN in said


@pytest.mark.parametrize("known", [True, False])
def test_a_test_that_fails_in_the_browser_is_not_forgiven(tmp_path, known):
    assert ran(tmp_path, fails="browser", known=known) == (False, ["check", "test", "browser"], "")


@pytest.mark.parametrize(("fails", "made"), [("check", ["check"]), ("test", ["check", "test"])])
def test_what_fails_before_ends_it(tmp_path, fails, made):
    assert ran(tmp_path, fails=fails) == (False, made, "")
