"""Which versions of Python, torch and transformers forkpoint was tried with: `make matrix`, or `python -m tests.matrix`.

A line for each cell: how many tests passed, or why it was not tried. A cell has a virtual environment of its own, with the
transformers of the cell and, behind that, the site-packages of an environment that has its torch, which is not installed
once more: this interpreter's own and those given by `--torch-from`. Exit status 1 if a test failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
TESTS = (
    "tests/models/test_models.py", "tests/questions/test_padding.py", "tests/questions/test_cache.py",
    "tests/questions/test_generate.py", "tests/test_oracle.py", "tests/explain/test_placement.py",
    "tests/test_comparison.py", "tests/runs/test_layout.py", "tests/test_cli.py", "tests/explain/test_locate.py",
    "tests/runs/test_returned.py", "tests/test_planted_faults.py", "tests/test_no_observer_effect.py",
    "tests/promotion/test_architectures.py", "tests/capture/test_recorder.py", "tests/capture/test_taps.py",
    "tests/native/test_shortcuts.py", "tests/scene/test_functions.py",
)  # fmt: skip
"""What touches torch's and transformers' own interfaces most."""


@dataclass(frozen=True)
class Site:
    """A folder of packages that has torch."""

    path: Path
    python: str
    torch: str

    @classmethod
    def of(cls, path: Path) -> Site:
        [info] = path.glob("torch-*.dist-info")
        python = re.search(r"python(\d+\.\d+)", str(path))
        assert python is not None, f"{path} doesn't say for which Python"
        return cls(path, python[1], info.name.removeprefix("torch-").removesuffix(".dist-info"))


@dataclass(frozen=True)
class Cell:
    """What was tried together.

    Attributes:
        site: where torch is; None where there is none for this Python.
        transformers: a requirement.
    """

    python: str
    site: Site | None
    transformers: str

    def __str__(self) -> str:
        torch = "any" if self.site is None else self.site.torch
        return f"Python {self.python}, torch {torch}, {self.transformers}"


def lower_bound(package: str) -> str:
    """The oldest version of a package that pyproject.toml allows."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    [found] = [line for line in wanted if re.split(r"[<>=~! ]", line)[0] == package]
    return found.partition(">=")[2].partition(",")[0]


def cells(sites: Sequence[Site]) -> Iterator[Cell]:
    """Every cell: each Python with each torch there is for it, with the oldest transformers and the newest."""
    for python, transformers in itertools.product(
        PYTHONS, (f"transformers=={lower_bound('transformers')}", "transformers")
    ):
        for site in [site for site in sites if site.python == python] or [None]:
            yield Cell(python, site, transformers)


def interpreter(version: str) -> str | None:
    """Where a Python is, on the path or among those of pyenv."""
    there = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    return next(iter(map(str, reversed(there))), None) or shutil.which(f"python{version}")


def environment_of(cell: Cell, folder: Path, shared: Path) -> Path:
    """The interpreter of a new environment with what a cell has.

    Args:
        cell: the cell.
        folder: where to make it.
        shared: packages that all cells of this interpreter's version have.

    Raises:
        subprocess.CalledProcessError: it can't be installed; `stderr` says why.
    """
    assert cell.site is not None
    python = interpreter(cell.python)
    assert python is not None
    _quiet(python, "-m", "venv", "--clear", "--without-pip", folder)
    own = folder / "lib" / f"python{cell.python}" / "site-packages"
    paths = dict.fromkeys(
        (cell.site.path, shared) if shared.parent.name == own.parent.name else (cell.site.path,)
    )
    (own / "zz_shared.pth").write_text("\n".join(map(str, paths)))
    made = folder / "bin" / "python"
    wanted = [cell.transformers] if "==" in cell.transformers else ["--upgrade", cell.transformers]
    _quiet(sys.executable, "-m", "pip", "--python", made, "install", "-q", *wanted)
    return made


def _quiet(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def versions(python: Path) -> str:
    """Which torch and transformers an environment really has."""
    code = (
        "import platform, torch, transformers\n"
        "print(f'Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}')"
    )
    return _quiet(python, "-c", code).strip()


def tested(python: Path, tests: Sequence[str], every: int) -> tuple[bool, str]:
    """Whether some tests pass there, or every so manyeth of them, and what pytest's last line says."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    if every > 1:
        tests = [line for line in run("--collect-only", *tests).stdout.splitlines() if "::" in line][::every]
    done = run("-rfE", *tests)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    for line in failed:
        print(f"  {line[:200]}")
    return done.returncode == 0, lines[-1] if lines else done.stderr.strip()[-300:]


def tried(cell: Cell, folder: Path, shared: Path, tests: Sequence[str], every: int) -> tuple[bool, str, str]:
    """Whether no test of a cell failed, what it is, and how it went."""
    if interpreter(cell.python) is None:
        return True, str(cell), "not tried: no such Python here"
    if cell.site is None:
        return (
            True,
            str(cell),
            "not tried: no torch for this Python here (--torch-from names a folder that has one)",
        )
    try:
        python = environment_of(cell, folder, shared)
        named = versions(python)
    except subprocess.CalledProcessError as error:
        return True, str(cell), f"not tried: {(error.stderr.strip().splitlines() or ['?'])[-1][:200]}"
    passed, last = tested(python, tests, every)
    return passed, named, last


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the environments")
    parser.add_argument("--torch-from", type=Path, action="append", default=[], metavar="SITE-PACKAGES")
    parser.add_argument("--only", default="", help="cells whose line holds this text")
    parser.add_argument("--every", type=int, default=1, help="take every so manyeth test")
    parser.add_argument("tests", nargs="*", default=TESTS, help="by default a quick part of them all")
    given = parser.parse_args(arguments)
    shared = Path(sysconfig.get_path("purelib"))
    sites = [Site.of(path.absolute()) for path in (shared, *given.torch_from)]
    passed = True
    for number, cell in enumerate(cells(sites)):
        if given.only in str(cell):
            good, named, outcome = tried(
                cell, given.folder.absolute() / f"{number}", shared, given.tests, given.every
            )
            passed &= good
            print(f"{named}: {outcome}", flush=True)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
