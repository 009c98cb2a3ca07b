"""The table of rules: by the name of a torch function, the rule that gives the labels of its outputs."""

from __future__ import annotations

from collections.abc import Callable

from forkpoint.capture.labels import Label
from forkpoint.capture.rules.call import Call

Rule = Callable[[Call], "Label | None | list[Label | None]"]
RULES: dict[str, Rule] = {}
LIBRARY = "."
"""The key of the rule for operators of libraries that have none of their own."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: makes a function the rule of the torch functions of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def nothing(call: Call) -> list[Label | None]:
    """No label for any output."""
    return [None for _ in call.outputs]
