"""`python -O` leaves assertions out: none has an effect, so that all is said as without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tests.trust.reports import report, reports

import forkpoint

SOURCES = sorted(Path(forkpoint.__file__).parent.rglob("*.py"))
HARMLESS = {"isinstance", "len", "all", "any", "type", "hasattr", "issubclass", "set"}
"""What an assertion may call."""


def effects(tree: ast.AST) -> list[str]:
    """Assertions that could change something: calls of anything else, and values that are kept once they are asked for."""
    found = [
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Assert) and _calls(node.test)
    ]
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef):
            kept = {f"self.{node.name}" for node in owner.body if _is_cached(node)}
            asserts = [node for node in ast.walk(owner) if isinstance(node, ast.Assert)]
            found += [
                ast.unparse(n) for n in asserts if kept & {ast.unparse(part) for part in ast.walk(n.test)}
            ]
    return found


def _calls(test: ast.expr) -> bool:
    return any(
        isinstance(part, (ast.NamedExpr, ast.Await, ast.Yield))
        or (isinstance(part, ast.Call) and not (isinstance(part.func, ast.Name) and part.func.id in HARMLESS))
        for part in ast.walk(test)
    )


def _is_cached(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and "cached_property" in map(ast.unparse, node.decorator_list)


KEEPS = """
class Trace:
    @cached_property
    def events(self): ...

    def ops(self):
        assert self.events is not None
"""


def test_no_assertion_has_an_effect():
    assert effects(ast.parse(KEEPS)) == ["assert self.events is not None"]
    assert not effects(ast.parse("assert self.events is not None"))
    assert effects(ast.parse("assert (x := 3)"))
    assert effects(ast.parse("assert self.items.pop() == 3"))
    assert not effects(ast.parse("assert isinstance(x, int) and x.label is not None"))
    found = [(path.name, text) for path in SOURCES for text in effects(ast.parse(path.read_text()))]
    assert found == []


def test_the_ops_of_a_trace_need_no_assertion():
    done = _run("-c", "from tests.trust.reports import report; print(report('46-let-go'))")
    assert done == report("46-let-go") + "\n"


@pytest.mark.slow
def test_reports_are_the_same():
    """Every kind of verdict, with all in memory and with all in files."""
    assert _run("-m", "tests.trust.reports") == reports() + "\n"


def _run(*arguments: str) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-O", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
