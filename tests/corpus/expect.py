"""What a verdict must say: kind, mechanism and by_design, each as a set of right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class _Anything(frozenset[Any]):
    """A set that holds every value: nothing is asked of that part of the verdict."""

    def __contains__(self, value: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "anything"


ANY = _Anything()


@dataclass(frozen=True)
class Expect:
    """One verdict that is right for a case."""

    kind: str
    mechanism: frozenset[str | None] = ANY
    by_design: frozenset[bool | None] = ANY

    def accepts(self, kind: str, mechanism: str | None, by_design: bool | None) -> bool:
        return kind == self.kind and mechanism in self.mechanism and by_design in self.by_design

    def __str__(self) -> str:
        if self.mechanism is ANY:
            return self.kind
        names = "|".join(sorted(name or "-" for name in self.mechanism))
        design = ""
        if self.by_design is not ANY and self.by_design != frozenset({None}):
            design = ", by design " + "|".join(sorted(str(value) for value in self.by_design))
        return f"{self.kind} ({names}{design})" if names != "-" or design else self.kind


def one_of(*values: Any) -> frozenset[Any]:
    return frozenset(values)


IDENTICAL = Expect("identical", one_of(None), one_of(None))
ROUNDING = Expect("rounding", one_of("reduction_order", "kernel_choice"), one_of(None))
REDUCTION = Expect("rounding", one_of("reduction_order"), one_of(None))
KERNEL = Expect("rounding", one_of("kernel_choice"), one_of(None))
LOW_PRECISION = Expect("rounding", one_of("low_precision"), one_of(None))
SOUND = (IDENTICAL, ROUNDING)
"""Sound runs: whether they round alike depends on the machine; `identical` is asked only where no bit differs."""


def semantic(*mechanisms: str | None, by_design: Any = ANY) -> Expect:
    design = by_design if isinstance(by_design, frozenset) else one_of(by_design)
    return Expect("semantic", frozenset(mechanisms) if mechanisms else ANY, design)


def inputs(*mechanisms: str | None, by_design: Any = ANY) -> Expect:
    design = by_design if isinstance(by_design, frozenset) else one_of(by_design)
    return Expect("inputs", frozenset(mechanisms) if mechanisms else ANY, design)


def nondeterminism(*mechanisms: str | None) -> Expect:
    return Expect("nondeterminism", frozenset(mechanisms) if mechanisms else ANY, ANY)


UNDETERMINED = Expect("undetermined", one_of(None, "kernel_choice", "reduction_order"), one_of(None))

POSITIONS = semantic("position_ids", by_design=False)
MASK = semantic("attention_mask", by_design=False)
POOLING = semantic("pooling", by_design=False)
CACHE = semantic("cache_state", by_design=False)
STATE = semantic("module_state", by_design=False)
PACKING = semantic("packing", by_design=False)
NOT_A_NUMBER = semantic("nan", by_design=False)
LEAK = semantic("padding_leak", by_design=None)
LEAK_UNMASKED = semantic("padding_leak", by_design=False)
"""The module is given a mask and ignores it."""
LEAK_EITHER = semantic("padding_leak", by_design=one_of(None, False))

ROPE = semantic("length_dependent_rope", by_design=True)
OUTLIERS = semantic("int8_outliers", by_design=True)
SCALE = semantic("dynamic_scale", by_design=True)
WRONG_SCALE = semantic("dynamic_scale", by_design=False)
CAPACITY = semantic("expert_capacity", by_design=True)
STATISTICS = semantic("batch_statistics", by_design=True)
LEAK_MEANT = semantic("padding_leak", by_design=True)

FUNCTION = semantic(None, by_design=None)
"""Two functions, with nothing known about why."""

LABELS = inputs("labels", by_design=False)
TOKENS = inputs("token_ids", by_design=one_of(None, False))
PARAMETERS = inputs("parameters", by_design=one_of(None, False))
BUFFERS = inputs("buffers", by_design=one_of(None, False))

RANDOM = nondeterminism("random_state")
ATOMICS = nondeterminism("atomics")
UNKNOWN_CHANCE = nondeterminism(None)
"""The run does not repeat itself, and no op does so alone."""
