"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import forkpoint

CLONE = Path(__file__).parent.parent
ROOTS = {"src/forkpoint": "src", "tests": ".", "benchmarks": "benchmarks"}
"""Where modules are, and the folder from which each is imported."""
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def named(root: str, path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(CLONE / ROOTS[root]).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


WITH_EXAMPLES = sorted(
    named(root, path)
    for root in ROOTS
    for path in (CLONE / root).rglob("*.py")
    if path.name != "test_doctests.py"
    and re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)


def tried(module: ModuleType) -> doctest.TestResults:
    return doctest.testmod(module, optionflags=FLAGS, report=False)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_say(name: str) -> None:
    failed, asked = tried(importlib.import_module(name))
    assert asked > 0, "no example was found where the file has some"
    assert failed == 0  # each is printed above


def test_an_example_that_is_wrong_is_found() -> None:
    module = ModuleType("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n>>> 2\n2\n"
    assert tried(module) == (1, 2)


def test_every_module_can_be_imported() -> None:
    names = [found.name for found in pkgutil.walk_packages(forkpoint.__path__, "forkpoint.")]
    names += [path.stem for path in (CLONE / "benchmarks").glob("*.py")]
    for name in names:
        if not name.endswith("__main__"):
            with suppress(*[] if find_spec("triton") else [ImportError]):  # what is only where a GPU is
                importlib.import_module(name)
