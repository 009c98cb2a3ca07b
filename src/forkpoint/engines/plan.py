"""Which value of an engine is which of the reference's: by path, by fusion, by residual pair, by what attention is given.

| what the engine has | what it is in the reference |
| --- | --- |
| a module of the same path | its output, and its input |
| a fused projection (`qkv_proj`) | the outputs of its parts, side by side |
| a norm that takes and returns `(hidden, residual)` | its output is the norm's; the residual that it returns is the norm's input |
| a block that returns `(hidden, residual)` | the sum is the block's output |
| a module with inputs `query`, `key` and `value` | what the reference gives to its attention function |

A value that was compared already, under another name, is not compared again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from forkpoint.engines.folder import Tables
from forkpoint.engines.recording import Boundary, Recording, TokenRows, sliced, summed

ATTENTION = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class Point:
    """One value that both have.

    Attributes:
        path: module of the reference.
        role: `output`, `input`, or for what its attention function is given `query`, `key`, `value`.
        boundary: of the engine.
        rows: the engine's values, by sample.
        how: how the two were brought together: `path`, `renamed`, `fused`, `residual`, `sum`, `attention`.
        cached: by sample, how many of its first rows were read from a cache that was filled before.
    """

    path: str
    role: str
    boundary: Boundary
    rows: dict[int, TokenRows]
    how: str
    cached: Mapping[int, int]

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.role

    @property
    def name(self) -> str:
        """`path/role`, as the reference has it."""
        return f"{self.path}/{self.role}"


@dataclass
class Plan:
    """The points in the engine's order, and what has none, each with the reason."""

    points: list[Point]
    unmatched: dict[str, str]

    @property
    def by_key(self) -> dict[tuple[str, str], Point]:
        return {point.key: point for point in self.points}


class _Planner:
    def __init__(self, recording: Recording, model: nn.Module, rename: Mapping[str, str]) -> None:
        self.recording = recording
        self.tables: Tables = recording.facts.tables
        self.rename = {**self.tables.renamed, **rename}
        self.modules = dict(model.named_modules())
        self.used: set[int] = set()
        self.reference_points: set[tuple[str, str]] = set()
        self.plan = Plan([], dict(recording.unread))
        self.per_module: dict[str, list[Boundary]] = {}
        for boundary in recording.boundaries:
            self.per_module.setdefault(boundary.module, []).append(boundary)

    def build(self) -> Plan:
        # what holds others comes last: what it gives is mostly what the last of them gave
        for path in sorted(self.per_module, key=self._holds_others):
            boundaries = self.per_module[path]
            inputs = [b for b in boundaries if b.function.startswith("input:")]
            outputs = [b for b in boundaries if b.function == "output"]
            self._module(path, inputs, outputs)
        self.plan.points.sort(key=lambda p: p.boundary.order)
        return self.plan

    def _module(self, path: str, inputs: list[Boundary], outputs: list[Boundary]) -> None:
        parent, _, last = path.rpartition(".")
        named = {b.function.removeprefix("input:"): b for b in inputs}
        target = self._target(path)
        if all(name in named for name in ATTENTION):
            self._attention(self._target(parent), named)
        elif last in self.tables.fused:
            self._fused(self._target(parent), self.tables.fused[last], inputs, outputs)
        elif target not in self.modules:
            self._none(path, outputs, "the reference has no module of this path")
        elif self._holds_others(path):
            self._container(path, target, outputs)
        elif self._is_gated(path, inputs, outputs):
            self._none(path, outputs, "a gated activation: compared where the next module takes it")
        else:
            self._leaf(path, target, inputs, outputs)

    def _holds_others(self, path: str) -> bool:
        return any(
            path != other and other.startswith(f"{path}." if path else "") for other in self.per_module
        )

    def _is_gated(self, path: str, inputs: list[Boundary], outputs: list[Boundary]) -> bool:
        """Whether a module without weights gives half as many features as it takes: the product of one half and an activation."""
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].size != 2 * outputs[0].size:
            return False
        return not any(name.startswith(f"{path}.") for name in self.recording.weights)

    def _target(self, path: str) -> str:
        for theirs in sorted(self.rename, key=len, reverse=True):
            if path == theirs or path.endswith(f".{theirs}"):
                return path[: len(path) - len(theirs)] + self.rename[theirs]
            if path.startswith(f"{theirs}."):
                return self.rename[theirs] + path[len(theirs) :]
        return path

    def _leaf(self, path: str, target: str, inputs: list[Boundary], outputs: list[Boundary]) -> None:
        how = "path" if path == target else "renamed"
        if len(inputs) == 2 and len(outputs) == 2:
            self._add(target, "input", outputs[1], outputs[1].rows, "residual")
            self._add(target, "output", outputs[0], outputs[0].rows, how)
            return
        if len(inputs) == 1:
            self._add(target, "input", inputs[0], inputs[0].rows, how)
        if outputs:
            self._add(target, "output", outputs[0], outputs[0].rows, how)

    def _container(self, path: str, target: str, outputs: list[Boundary]) -> None:
        how = "path" if path == target else "renamed"
        if len(outputs) == 2 and outputs[0].size == outputs[1].size:
            rows = summed(outputs[0].rows, outputs[1].rows)
            if rows:
                self._add(target, "output", outputs[0], rows, "sum", again=True)
        elif outputs:
            self._add(target, "output", outputs[0], outputs[0].rows, how, again=True)

    def _fused(
        self, parent: str, parts: tuple[str, ...], inputs: list[Boundary], outputs: list[Boundary]
    ) -> None:
        paths = [".".join(p for p in (parent, part) if p) for part in parts]
        sizes = [getattr(self.modules.get(path), "out_features", None) for path in paths]
        if not outputs or None in sizes or sum(s for s in sizes if s) != outputs[0].size:
            self._none(
                outputs[0].module if outputs else parent, outputs, f"its parts are not {', '.join(parts)}"
            )
            return
        if len(inputs) == 1:
            self._add(paths[0], "input", inputs[0], inputs[0].rows, "fused")
        start = 0
        for path, size in zip(paths, sizes, strict=True):
            assert size is not None
            self._add(
                path, "output", outputs[0], sliced(outputs[0].rows, start, start + size), "fused", again=True
            )
            start += size

    def _attention(self, path: str, named: Mapping[str, Boundary]) -> None:
        if path not in self.modules:
            self._none(path, list(named.values()), "the reference has no module of this path")
            return
        for role in ATTENTION:
            boundary = named[role]
            rows, cached = dict(boundary.rows), dict[int, int]()
            if role != "query":
                for sample, values in self.recording.cached.items():
                    before = values.get(f"{boundary.module}.{role}")
                    if before is not None and sample in rows and before.shape[1] == boundary.size:
                        rows[sample] = _with_cached(before, rows[sample])
                        cached[sample] = len(before)
            self._add(path, role, boundary, rows, "attention", cached=cached, again=True)

    def _add(
        self,
        path: str,
        role: str,
        boundary: Boundary,
        rows: dict[int, TokenRows],
        how: str,
        *,
        cached: Mapping[int, int] | None = None,
        again: bool = False,
    ) -> None:
        if (path, role) in self.reference_points or (boundary.origin in self.used and not again):
            return
        self.used.add(boundary.origin)
        self.reference_points.add((path, role))
        self.plan.points.append(Point(path, role, boundary, rows, how, cached or {}))

    def _none(self, path: str, boundaries: list[Boundary], reason: str) -> None:
        for boundary in boundaries:
            self.plan.unmatched[f"{path}/{boundary.function}"] = reason


def _with_cached(before: object, rows: TokenRows) -> TokenRows:
    import torch

    assert isinstance(before, torch.Tensor)
    beyond = rows.position >= len(before)
    position = torch.cat([torch.arange(len(before)), rows.position[beyond]])
    return TokenRows(position, torch.cat([before.to(rows.value.dtype), rows.value[beyond]]))


def plan(recording: Recording, model: nn.Module, rename: Mapping[str, str]) -> Plan:
    """The points at which an engine can be held against a reference.

    Args:
        model: the reference, of transformers.
        rename: paths of the engine's modules, or their ends or beginnings, each with the reference's in its place.
    """
    return _Planner(recording, model, rename).build()
