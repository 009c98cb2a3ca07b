"""Modules whose class is not what the model's source says: `Linear8bitLt` where it has `nn.Linear`."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

from forkpoint.result import ReplacedModule


def replaced_modules(model: nn.Module | None) -> tuple[ReplacedModule, ...]:
    """Compare the class of every submodule with the class that its parent's `__init__` names."""
    replaced: list[ReplacedModule] = []
    for path, parent in model.named_modules() if model is not None else ():
        expected = _expected(type(parent))
        for name, child in parent.named_children():
            classes = expected.get(name)
            members = list(child.named_children()) if isinstance(child, nn.ModuleList) else []
            inner = expected.get(f"{name}[]")
            if classes and type(child) not in classes:
                replaced.append(_record(path, name, classes, child))
            elif inner:
                replaced += [
                    _record(path, f"{name}.{key}", inner, c) for key, c in members if type(c) not in inner
                ]
    return tuple(replaced)


def _record(path: str, name: str, classes: frozenset[type], child: nn.Module) -> ReplacedModule:
    module = f"{path}.{name}" if path else name
    return ReplacedModule(module, " or ".join(sorted(map(_title, classes))), _title(type(child)))


def _title(kind: type) -> str:
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.modules") else kind.__name__


@cache
def _expected(kind: type) -> dict[str, frozenset[type]]:
    """Attribute name to the classes that the source of `__init__` constructs for it.

    `name[]` stands for the elements of a ModuleList.
    """
    names: dict[str, set[type]] = {}
    unsure: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module or "__init__" not in vars(base):
            continue
        for target, call in _assignments(base):
            for suffix, node in _constructed(target, call):
                resolved = _resolve(base, node)
                if resolved is None:
                    unsure.add(suffix)
                else:
                    names.setdefault(suffix, set()).add(resolved)
    return {name: frozenset(classes) for name, classes in names.items() if name not in unsure}


def _assignments(kind: type) -> Iterator[tuple[str, ast.expr]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(vars(kind)["__init__"])))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                ):
                    yield target.attr, node.value


def _constructed(target: str, value: ast.expr) -> Iterator[tuple[str, ast.expr | None]]:
    """The names of what an assignment constructs, branch by branch."""
    if isinstance(value, ast.IfExp):
        yield from _constructed(target, value.body)
        yield from _constructed(target, value.orelse)
    elif isinstance(value, ast.Call):
        yield target, value.func
        inner = value.args[0] if value.args else None
        if isinstance(inner, (ast.ListComp, ast.GeneratorExp)):
            yield f"{target}[]", inner.elt.func if isinstance(inner.elt, ast.Call) else None
    elif not (isinstance(value, ast.Constant) and value.value is None):
        yield target, None


def _resolve(kind: type, node: ast.expr | None) -> type | None:
    """The class that an expression names in the module of `kind`; None for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    value: Any = (
        vars(sys.modules.get(kind.__module__, object())).get(node.id)
        if kind.__module__ in sys.modules
        else None
    )
    for part in parts:
        value = getattr(value, part, None)
    return value if isinstance(value, type) and issubclass(value, nn.Module) else None
