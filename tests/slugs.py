"""The slugs of mechanisms that the source makes verdicts of, read from it: no list of them can be forgotten."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import forkpoint

_PLACES = {"Mechanism": 0, "Verdict": 1, "Inputs": 1, "Repeat": 1, "_differs": 0}
"""Which argument of these is the slug."""


def slugs_in_the_source() -> set[str]:
    """Every text that is given as the slug of a mechanism, or that a function for it returns."""
    slugs: set[str] = set()
    for path in Path(forkpoint.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            slugs |= {text for given in _given(node) for text in _texts(given)}
    return slugs


def rounding_slugs() -> set[str]:
    """Those that a verdict of rounding can have."""
    path = Path(forkpoint.__file__).parent / "verdict" / "rounding.py"
    returned = [
        statement.value
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef) and function.name == "rounding_slug"
        for statement in ast.walk(function)
        if isinstance(statement, ast.Return) and statement.value is not None
    ]
    return {text for value in returned for text in _texts(value)}


def _given(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call):
        place = _PLACES.get(ast.unparse(node.func).rpartition(".")[2])
        if place is not None:
            yield from node.args[place : place + 1]
        if place is not None or ast.unparse(node.func) == "replace":
            yield from (k.value for k in node.keywords if k.arg in ("slug", "mechanism"))


def _texts(value: ast.expr) -> Iterator[str]:
    """The texts that an expression can be; what stands in a condition is none of them."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)
    elif isinstance(value, ast.BoolOp):
        for part in value.values:
            yield from _texts(part)
