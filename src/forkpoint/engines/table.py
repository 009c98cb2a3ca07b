"""The table of ops on the same inputs: how far the engine and the reference are from float64, op by op."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from forkpoint.engines.answer import EngineOp, Listed
from forkpoint.engines.forced import forced
from forkpoint.engines.plan import Plan, Point
from forkpoint.engines.recording import Recording, TokenRows, origin_of

TIMES = 8.0
"""How many times the error of rounding an engine may have. The unit is, at each token, the largest of: how far the reference
in its own dtype is from float64; how far float64 moves when the inputs change by half an ULP; half an ULP of the token's
largest value; for a sum of n products half an ULP of the sum of their absolute values times the root of n, which is
what sums in any order are off by (Higham and Mary, 2019); and for attention what such sums make of its scores and
of what they weigh. docs/engines.md has what vLLM was measured at."""

OWN_TIMES = 64.0
"""The same for the reference, whose own error is no part of the unit then. A step in a narrower dtype takes thousands."""

Key = tuple[str, str]


@dataclass(frozen=True)
class Three:
    """One value as the reference computes it of the engine's inputs, [tokens, size].

    Attributes:
        native: in its own dtype.
        exact: in float64.
        shaken: in float64, of inputs that were changed by half an ULP.
        size: `Ran.sizes`, for a linear layer and behind attention.
    """

    native: Tensor
    exact: Tensor
    shaken: Tensor
    size: Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """One point on one sample: at each token that the engine has a value of.

    Attributes:
        error, own: [tokens], largest distance from float64 of the engine, and of the reference in its own dtype.
        times: [tokens], `error` in units of rounding.
        own_times: [tokens], `own` in units of rounding, itself not counted.
        same: whether the engine's bits are those of the reference in its own dtype.
    """

    position: Tensor
    error: Tensor
    own: Tensor
    times: Tensor
    own_times: Tensor
    same: bool

    @property
    def beyond(self) -> Tensor:
        """[tokens]: whether either is farther from float64 than rounding takes it."""
        return (self.times > TIMES) | (self.own_times > OWN_TIMES)


def measure(rows: TokenRows, point: Three, dtype: str) -> Measured:
    """How far a value is from float64, in units of rounding.

    Args:
        rows: the engine's, at some tokens.
        point: what the reference makes of the same inputs.
        dtype: the narrower that either computes in.
    """
    at = rows.position
    theirs, truth = rows.value.double(), point.exact[at].double().cpu()
    error, own = _largest(theirs - truth), _largest(point.native[at].double().cpu() - truth)
    half = _epsilon(dtype) / 2
    parts = [truth.abs().amax(-1) * half, _largest(point.shaken[at].double().cpu() - truth)]
    if point.size is not None:
        parts.append(point.size[at] * half)
    noise = torch.stack(parts).amax(0).clamp_min(1e-300)
    same = torch.equal(rows.value, point.native[at].cpu().to(rows.value.dtype))
    return Measured(at, error, own, _in_units(error, torch.maximum(noise, own)), _in_units(own, noise), same)


def _in_units(error: Tensor, noise: Tensor) -> Tensor:
    return torch.nan_to_num(torch.where(error == 0, 0.0, error / noise), nan=torch.inf)


def _epsilon(dtype: str) -> float:
    return torch.finfo(getattr(torch, dtype)).eps


def _largest(gap: Tensor) -> Tensor:
    return torch.nan_to_num(gap.abs(), nan=torch.inf).amax(-1)


class Table:
    """Runs the reference on the engine's values, and holds both against float64.

    Attributes:
        ids: token ids by sample.
        rows: an `EngineOp` for each point, in the order of the reference's execution.
        missed: points that the reference does not come by, and whose value is compared under no other name.
    """

    def __init__(
        self, recording: Recording, model: nn.Module, plan: Plan, ids: Mapping[int, list[int]]
    ) -> None:
        self.recording, self.model, self.plan, self.ids = recording, model, plan, ids
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.modules = dict(model.named_modules())
        self.order: list[Key] = []
        self.measured: dict[Key, dict[int, Measured]] = {}
        for sample in ids:
            self._sample(sample, ())
        self.rows = [self._row(plan.by_key[key]) for key in self.order]
        seen = {point.boundary.origin for point in plan.points if point.key in self.measured}
        self.missed = [
            p
            for p in plan.points
            if p.key not in self.measured and (p.how == "sum" or p.boundary.origin not in seen)
        ]

    def _sample(self, sample: int, free: Collection[Key]) -> dict[Key, Measured]:
        """Measure all points on one sample."""
        three, order = self._three(sample, free)
        measured: dict[Key, Measured] = {}
        for key in order:
            rows = self.plan.by_key[key].rows[sample]
            if key in three:
                measured[key] = measure(rows, three[key], self._narrowest(rows.value.dtype))
        if not free:
            self.order += [key for key in order if key not in self.order]
            for key, one in measured.items():
                self.measured.setdefault(key, {})[sample] = one
        return measured

    def _three(self, sample: int, free: Collection[Key]) -> tuple[dict[Key, Three], list[Key]]:
        """All points as the reference computes them, and their order."""
        arguments = self.model, self.ids[sample], self.plan, sample
        types = {point.rows[sample].value.dtype for point in self.plan.points if sample in point.rows}
        ulp = max((_epsilon(self._narrowest(dtype)) for dtype in types), default=0.0)
        native = forced(*arguments, exact=False, free=free)
        exact = forced(*arguments, exact=True, free=free).values
        shaken = forced(*arguments, exact=True, free=free, shaken=ulp / 2).values
        three = {
            key: Three(value, exact[key], shaken[key], native.sizes.get(key))
            for key, value in native.values.items()
            if key in exact and key in shaken
        }
        return three, native.order

    def _narrowest(self, dtype: torch.dtype) -> str:
        return max((str(dtype).removeprefix("torch."), self.dtype), key=_epsilon)

    def _row(self, point: Point) -> EngineOp:
        parts = self.measured[point.key]
        beyond = [(s, m, m.beyond) for s, m in parts.items()]
        differing = sum(int(over.sum()) for _, _, over in beyond)
        sample, one = max(parts.items(), key=lambda item: float(item[1].times.max()))
        at = int(one.times.argmax())
        if differing:
            sample, one, over = next(item for item in beyond if item[2].any())
            at = int(over.nonzero()[0])
        status = (
            "differs" if differing else "identical" if all(m.same for m in parts.values()) else "rounding"
        )
        return EngineOp(
            op=op_name(point, self.recording.facts.unseen), source=source_of(point), reference=point.name,
            reference_source=self.forward_of(point.path), found=point.how, status=status,
            error=max(float(m.error.max()) for m in parts.values()),
            reference_error=max(float(m.own.max()) for m in parts.values()),
            times=max(float(m.times.max()) for m in parts.values()),
            reference_times=max(float(m.own_times.max()) for m in parts.values()),
            sample=sample, position=int(one.position[at]), differing=differing,
            compared=sum(len(m.times) for m in parts.values()),
        )  # fmt: skip

    def forward_of(self, path: str) -> str:
        """Where the forward of a module of the reference begins."""
        try:
            function = inspect.unwrap(type(self.modules[path]).forward)
            code = function.__code__
        except (AttributeError, KeyError, ValueError):
            return ""
        return f"{Path(code.co_filename).name}:{code.co_firstlineno}"

    # ------------------------------------------------------------------ a value under another op's name

    def mislabelled(self, row: EngineOp) -> str | None:
        """Another point whose value it is that was recorded here; None where none fits.

        As with a tensor that was kept by reference and written in place afterwards, or the first part of a pair.
        """
        point = next(p for p in self.plan.points if p.name == row.reference)
        if point.cached:
            return None  # a cache that was filled before is looked into for itself
        near = [
            p for p in self.plan.points if p.key != point.key and block_of(p.path) == block_of(point.path)
        ]
        for sample, measured in self.measured[point.key].items():
            if not measured.beyond.any():
                continue
            three, _ = self._three(sample, (point.key,))
            near = [
                other
                for other in near
                if other.key in three and self._fits(point.rows[sample], three[other.key])
            ]
        return near[0].name if near else None

    def _fits(self, rows: TokenRows, other: Three) -> bool:
        """Whether an engine's rows are what the reference computes at some point."""
        if other.exact.shape[1] != rows.value.shape[1]:
            return False
        return not bool(measure(rows, other, self._narrowest(rows.value.dtype)).beyond.any())


def op_name(point: Point, unseen: Mapping[str, int]) -> str:
    """The engine's op whose result a point is: a kernel that returns nothing where its module called one alone."""
    boundary, producer = point.boundary, point.boundary.producer
    if point.how == "sum" or producer.is_input:
        return boundary.name
    module = producer.module
    if not producer.is_boundary:
        return producer.name
    kernels = [place for place in unseen if place.rpartition("/")[0] == module]
    function = kernels[0].rpartition("/")[2] if len(kernels) == 1 else producer.function
    if block_of(module) != block_of(boundary.module) and module.split(".")[-1] not in boundary.module:
        module = (
            block_of(boundary.module) + module[len(block_of(module)) :]
        )  # one module that serves all layers
    return f"{module}/{function}"


def source_of(point: Point) -> str:
    producer = point.boundary.producer
    return "" if producer.is_boundary or point.how == "sum" else producer.site.short


def block_of(path: str) -> str:
    """The part of a path up to its first number: what stands in one layer."""
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: number + 1])


# ---------------------------------------------------------------------- every op of the engine


def listed(recording: Recording, table: Table) -> tuple[Listed, ...]:
    """Each op of the engine once: compared, within what goes into a value that is compared, or listed with a reason."""
    by_place: dict[str, Listed] = {}
    points = {p.boundary.origin: p for p in table.plan.points if p.key in table.measured}
    points |= {p.boundary.order: p for p in table.plan.points if p.key in table.measured}
    rows = recording.events
    nexts: list[Point | None] = [None] * len(rows)
    upcoming: Point | None = None
    for index in range(len(rows) - 1, -1, -1):
        if index + 1 < len(rows) and rows[index + 1].call != rows[index].call:
            upcoming = None  # what is computed in another call does not follow from it
        upcoming = nexts[index] = points.get(index, upcoming)
    for index, event in enumerate(rows):
        op = event.op
        if op.place in by_place:
            continue
        source = "" if op.is_boundary else op.site.short
        reason = table.plan.unmatched.get(op.name, "")
        same, following = points.get(index) or points.get(origin_of(rows, index)), nexts[index]
        if same is not None:
            one = Listed(op.name, source, "compared", same.name)
        elif following is not None:
            one = Listed(op.name, source, "within", following.name, reason)
        elif not event.floating:
            one = Listed(op.name, source, "listed", reason="no floating-point values")
        else:
            one = Listed(
                op.name, source, "listed", reason=reason or "nothing that is compared follows from it"
            )
        by_place[op.place] = one
    by_module = _by_module(table)
    for place in recording.facts.unseen:
        inner = by_module.get(place.rpartition("/")[0], "")
        by_place[place] = Listed(place, "", "within" if inner else "listed", inner, _RETURNS_NOTHING)
    return tuple(by_place.values())


_RETURNS_NOTHING = "returns nothing: its result is compared where the module returns it"


def _by_module(table: Table) -> dict[str, str]:
    """The point at which what a module of the engine returns is compared."""
    names: dict[str, str] = {}
    for point in table.plan.points:
        if point.key in table.measured:
            names.setdefault(point.boundary.module, point.name)
            names.setdefault(point.boundary.producer.module, point.name)
    return names
