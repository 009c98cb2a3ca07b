"""What a recording of an engine holds besides its trace: what the engine was told, what it reported, what it left out.

A trace (docs/trace-format.md) with values is a recording of an engine. Two more files say what a trace has no place for,
and both may be missing: `engine.json` and `engine.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from forkpoint.errors import InputError
from forkpoint.support.files import reason, write_bytes, write_json
from forkpoint.support.records import from_plain, to_plain

FACTS, TENSORS = "engine.json", "engine.safetensors"
FORMAT, VERSION = "forkpoint-engine", 1


@dataclass(frozen=True)
class Tables:
    """What an engine's names stand for.

    Attributes:
        fused: by the last part of a module's path, the modules of the reference whose outputs its own holds side by side.
        renamed: paths of modules, or their ends, with the reference's in their place.
    """

    fused: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    renamed: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Reported:
    """The log-probabilities that an engine returned for one sequence."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    """Of each token given those before it; None where none was returned."""
    id: int | None = None
    """Which prompt it answers, from 0."""


@dataclass(frozen=True)
class Sample:
    """A sequence of the recording."""

    sample: int
    prompt: int | None
    """Which prompt it is, from 0; None where that is not known."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was told and what it reported."""

    engine: str = "?"
    version: str = "?"
    tables: Tables = field(default_factory=Tables)
    dropped: int = 0
    """Calls of the model that computed nobody's tokens: profiling, warm-up. They were left out."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """`temperature`, `top_p`, `top_k`, `dtype`, `prefix_caching`, … as the engine has them."""
    unseen: dict[str, int] = field(default_factory=dict[str, int])
    """By `module/function`, calls of kernels that return nothing: their results are seen where their modules return them."""
    samples: tuple[Sample, ...] = ()
    reported: tuple[Reported, ...] = ()

    def save(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Write both files.

        Args:
            tensors: `weight.NAME`, digests of a weight that the trace has not; `cache.SAMPLE.MODULE.key` and `.value`, what
                was read from a cache, [tokens, size].
        """
        if tensors:
            plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            write_bytes(folder / TENSORS, save(plain))
        write_json(folder / FACTS, {"format": FORMAT, "format_version": VERSION, **to_plain(self)})


def read_facts(folder: Path) -> tuple[EngineFacts, dict[str, Tensor]]:
    """What `EngineFacts.save` wrote; facts that say nothing where there is no such file.

    Raises:
        InputError: the files are damaged, or of another version.
    """
    expected = f"{FACTS} as docs/engines.md describes it, or none"
    tensors: dict[str, Tensor] = {}
    try:
        if (folder / TENSORS).exists():
            with safe_open(str(folder / TENSORS), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if not (folder / FACTS).exists():
            return EngineFacts(), tensors
        data = json.loads((folder / FACTS).read_bytes())
        if (
            not isinstance(data, dict)
            or data.get("format") != FORMAT
            or data.get("format_version") != VERSION
        ):
            raise InputError(f"{folder / FACTS}, which is not of format version {VERSION}", expected)
        settings = data.pop("settings", {})
        facts = from_plain(EngineFacts, {**data, "settings": {}})
        object.__setattr__(facts, "settings", dict(settings))
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise InputError(f"{folder / FACTS}, which can't be read: {reason(error)}", expected) from error
    return facts, tensors
