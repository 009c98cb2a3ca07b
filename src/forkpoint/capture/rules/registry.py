"""The table of rules: by the name of a torch function what moves its tokens."""

from __future__ import annotations

from collections.abc import Callable

from forkpoint.capture.labels import Label
from forkpoint.capture.rules.call import Call

Rule = Callable[[Call], "Label | None | list[Label | None]"]
RULES: dict[str, Rule] = {}
LIBRARY = "."
"""Under what goes the rule of a library's operator that has none of its own."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def nothing(call: Call) -> list[Label | None]:
    return [None for _ in call.outputs]
