"""A call of a scene as Python source that one can read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from forkpoint.scene.format.arguments import Ref, short


def call_source(
    function: str, args: tuple[Any, ...], kwargs: dict[str, Any], name: Callable[[int], str], width: int = 96
) -> list[str]:
    """The call, with `t["name"]` for each tensor: one line, or several.

    >>> call_source("torch.add", (Ref(0), 1.5), {"alpha": float("inf")}, lambda _: "x")
    ['torch.add(t["x"], 1.5, alpha=float("inf"))']
    """
    parts = [expression(value, name) for value in args]
    parts += [f"{key}={expression(value, name)}" for key, value in kwargs.items()]
    line = f"{function}({', '.join(parts)})"
    if len(line) <= width:
        return [line]
    lines = [f"{function}(", f"    {parts[0]},"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < width:
            lines[-1] += f" {part},"
        else:
            lines.append(f"    {part},")
    return [*lines, ")"]


def quoted(text: str) -> str:
    """Text as a string of Python, in double quotes.

    >>> print(quoted('a.query'), quoted('say "no"'))
    "a.query" 'say "no"'
    """
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in plain and "\\'" not in plain else plain


def expression(value: Any, name: Callable[[int], str]) -> str:
    """One argument. A floating dtype gives way to `wide`, the dtype of the reference, if there is one."""
    if isinstance(value, Ref):
        return f"t[{quoted(name(value.index))}]"
    if isinstance(value, torch.dtype):
        text = f"torch.{short(value)}"
        return f"wide or {text}" if value.is_floating_point else text
    if isinstance(value, (torch.memory_format, torch.layout)):
        return str(value)
    if isinstance(value, torch.device):
        return 't["device"]'
    if value is Ellipsis:
        return "..."
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, complex):  # its `repr` loses the sign of zeros
        return f"complex({expression(value.real, name)}, {expression(value.imag, name)})"
    if isinstance(value, slice):
        return f"slice({', '.join(expression(part, name) for part in (value.start, value.stop, value.step))})"
    return _container(value, name)


def _container(value: Any, name: Callable[[int], str]) -> str:
    if isinstance(value, torch.Size):
        return f"torch.Size({list(value)})"
    if isinstance(value, tuple):
        inner = ", ".join(expression(item, name) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(expression(item, name) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {expression(item, name)}" for key, item in value.items()) + "}"
    return repr(value)


def mentions_device(value: Any) -> bool:
    """Whether a device is among the arguments."""
    if isinstance(value, torch.device):
        return True
    if isinstance(value, dict):
        return any(mentions_device(item) for item in value.values())
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return any(mentions_device(item) for item in value)
    return False


def plain_text(text: str) -> str:
    r"""Text from a model or a file, for a docstring: nothing in it can end the docstring or be seen as code.

    >>> print(plain_text('a\x1b"' + '""b'))
    a\x1b'''b
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\\", "/")
    )
    return shown.replace('"""', "'''")
