"""Tests with the C under the address and undefined-behaviour sanitisers: `make sanitize`.

`python -m tests.native.sanitized [TESTS...]` copies the package to a temporary folder, builds its extension there with
`-fsanitize=address,undefined`, and runs the tests on that. Python takes each object's memory from the C library then, so
that the sanitiser knows it; the first finding ends the run with what it is and where. Needs GCC and Linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/native",
    "tests/capture",
    "tests/runs/test_state.py",
    "tests/test_no_observer_effect.py",
    "tests/trust",
)
SANITIZERS = "-fsanitize=address,undefined"


def copied(folder: Path) -> Path:
    """The package with an extension of its own, in a new folder that Python finds it in.

    Raises:
        RuntimeError: the compiler made none.
    """
    shutil.copytree(
        ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    flags = {
        "CC": "gcc",
        "CFLAGS": f"{SANITIZERS} -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g",
        "LDFLAGS": SANITIZERS,
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | flags, capture_output=True, text=True, check=False
    )
    if not list((folder / "src/forkpoint/native").glob("compiled*.so")):
        raise RuntimeError(f"the extension was not built: {done.stderr}")
    return folder / "src"


def environment(package: Path) -> dict[str, str]:
    """What a process needs that loads what was built with sanitisers."""
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself lets go of much only at its end, or never
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{package}{os.pathsep}{ROOT}",
    }


def main(tests: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="forkpoint-test-") as folder:
        variables = environment(copied(Path(folder)))
        check = "import forkpoint.native as n, sys; sys.exit(not (n.IN_USE and n.compiled.__file__.startswith(sys.argv[1])))"
        subprocess.run([sys.executable, "-c", check, folder], env=variables, check=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "pythonpath=.",
            "-m",
            "not slow",
        ]
        return subprocess.run([*command, *tests], cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or TESTS))
