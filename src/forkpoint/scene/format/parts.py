"""Records of what goes on inside a fused op in both runs; kept in the manifest and shown by every report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PartComparison:
    """One intermediate value of an op, compared between the runs at the coordinates that both have."""

    name: str
    formula: str
    status: str
    """`equal`, `differs` or `not compared`."""
    compared: int = 0
    differing: int = 0
    max_abs: float = 0.0
    reason: str = ""

    @property
    def text(self) -> str:
        what = f"{self.name} ({self.formula})" if self.formula else self.name
        if self.status == "equal":
            return f"{what}: equal in all {self.compared:,} shared elements"
        if self.status == "differs":
            return f"{what}: differs in {self.differing:,} of {self.compared:,} shared elements, by up to {self.max_abs:.3g}"
        return f"{what}: not compared ({self.reason})"


@dataclass(frozen=True)
class Inside:
    """What goes on inside an op: the operators that it comes down to, its intermediate values, and where these differ."""

    summary: str
    """One or two sentences: which part, or which kernels."""
    operators_a: tuple[str, ...]
    """ATen operators below the call that compute something, in order."""
    operators_b: tuple[str, ...]
    below: tuple[PartComparison, ...]
    """The outputs of those operators that both runs have, compared."""
    spelt: tuple[PartComparison, ...]
    """The values of the op's decomposition into plain functions, compared."""
    backend_a: str = ""
    """For attention, the backend that torch picks."""
    backend_b: str = ""
    arguments: tuple[str, ...] = ()
    """Arguments that differ between the runs, in words."""

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it as text."""
        lines = [self.summary]
        if self.arguments:
            lines.append(f"called with other arguments: {'; '.join(self.arguments)}")
        if self.backend_a:
            same = self.backend_a == self.backend_b
            lines.append(f"backend: {self.backend_a}" + ("" if same else f" in A, {self.backend_b} in B"))
        if len(self.below) > 1 or self.operators_a != self.operators_b:
            lines += [f"below: {part.text}" for part in self.below]
        lines += [f"spelt out: {part.text}" for part in self.spelt]
        return tuple(lines)


def inside_from_json(value: Mapping[str, Any]) -> Inside:
    """Read back what `dataclasses.asdict` made of it."""

    def parts(name: str) -> tuple[PartComparison, ...]:
        return tuple(
            PartComparison(
                str(p["name"]), str(p["formula"]), str(p["status"]), int(p["compared"]), int(p["differing"]),
                float(p["max_abs"]), str(p["reason"]),
            )
            for p in value[name]
        )  # fmt: skip

    return Inside(
        str(value["summary"]), tuple(map(str, value["operators_a"])), tuple(map(str, value["operators_b"])),
        parts("below"), parts("spelt"), str(value["backend_a"]), str(value["backend_b"]),
        tuple(map(str, value["arguments"])),
    )  # fmt: skip
