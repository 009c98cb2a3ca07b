"""A result without what belongs to whoever made it: texts of prompts, names of samples and runs, paths, notes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from forkpoint.result import Result, RunSummary

GONE = "…"
_NAMES = frozenset(
    {"op", "module", "function", "source", "parameter", "dtype", "status", "between", "leads_to"}
)
"""Keys whose values name code: a slash in them is no path."""
_PATH = re.compile(
    r"""(?<![\w.)/\\])(?:[A-Za-z]:[\\/]|~?[\\/]|\.{1,2}[\\/]|\w+://)(?=[^\s/])[^\s"'`<>|,;]*"""
    r"""|(?<=['"])[^'"]*[/\\][^'"]*(?=['"])"""
)
"""From the root, a drive, home or here, a URL; and whatever has a slash between quotes."""
_LITERAL = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")


def public(result: Result) -> Result:
    """The same comparison, of nobody.

    Texts of tokens go, and the strings and comments in lines of source. Samples are numbered, runs whose names may be a
    place or a checkpoint have none, and paths become `…`. What is left are names in code, shapes, dtypes, numbers,
    and sentences of forkpoint.
    """
    samples: dict[str, int] = {}

    def number(sample: Any) -> Any:
        # by its text: a name that is a tuple is a list here
        return sample if sample is None else samples.setdefault(repr(sample), len(samples))

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: changed(name, item) for name, item in value.items()}
        if isinstance(value, list):
            return [walk(item, key) for item in value]
        return without_paths(value) if isinstance(value, str) and key not in _NAMES else value

    def changed(key: str, value: Any) -> Any:
        match key:
            case "token":
                return None
            case "sample":
                return number(value)
            case "per_token":
                return [[number(sample), position, gap] for sample, position, gap in value]
            case "code":
                return _LITERAL.sub('"…"', value).partition("#")[0].rstrip()
            case "versions":
                return value
            case _:
                return walk(value, key)

    bare = replace(
        result,
        notes=(),
        call=" ".join(result.call.partition("(")[0].split()[:2]),
        a=_nobodys(result.a),
        b=_nobodys(result.b),
    )
    return Result.from_dict(walk(bare.to_dict()))


def without_paths(text: str) -> str:
    """Text without paths and URLs.

    >>> without_paths("reading /home/me/model.gguf failed, ~/x too"), without_paths("model.layers.0/linear at 1/2")
    ('reading … failed, … too', 'model.layers.0/linear at 1/2')
    >>> without_paths("'org/name'")
    "'…'"
    """
    return _PATH.sub(GONE, text)


def _nobodys(run: RunSummary) -> RunSummary:
    """Of the model its class is left; a digest would confirm whoever guesses the prompt."""
    model = run.model.partition(" ")[0]
    return replace(run, name=_nameless(run.name), notes=(), rows=(), model=model, digest="")


def _nameless(name: str) -> str:
    return GONE if re.search(r"[/\\]", name) else name
