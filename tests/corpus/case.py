"""What a case of the corpus is: two runs, and what is true about them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .expect import ANY, Expect

Inputs = Mapping[str, Any]


# ---------------------------------------------------------------------- two runs


@dataclass
class Side:
    """One run, in terms that need no forkpoint.

    Attributes:
        model: the module to run.
        inputs: keyword arguments of one call, or a list of them for several calls.
        pick: from the outputs of all calls, the values at what both runs share, in one order.
        layout: from the module `forkpoint`, the layout; None where the inputs state it.
        call: how to call the model, as `fp.Run` has it.
    """

    model: nn.Module
    inputs: Inputs | Sequence[Inputs]
    pick: Callable[[list[Any]], Tensor]
    layout: Callable[[Any], Any] | None = None
    call: Callable[[Any, Any], Any] | None = None

    def change(self, **given: Any) -> None:
        """Give other values, or more of them, to the one call."""
        assert isinstance(self.inputs, Mapping)
        self.inputs = {**self.inputs, **given}

    @property
    def calls(self) -> list[Inputs]:
        return [self.inputs] if isinstance(self.inputs, Mapping) else list(self.inputs)


@dataclass
class Pair:
    """The two runs of a case, and what is patched while they run."""

    a: Side
    b: Side
    patches: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()
    compare: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def patched(self) -> Generator[None]:
        with ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(patch())
            yield


# ---------------------------------------------------------------------- what is true

SAME, DIFFERS, BITS, NAN, UNSTEADY, UNCHECKED = "same", "differs", "bits", "nan", "unsteady", "unchecked"
"""What plain forward passes show, without forkpoint.

`same`: in float64 no gap beyond float64 noise. `differs`: a gap in float64 too. `bits`: not one bit differs.
`nan`: NaN on one side only. `unsteady`: the same run differs from itself. `unchecked`: the case has a check
of its own, because the cause is not in the values or because float64 is refused.
"""


@dataclass(frozen=True)
class Case:
    """Two runs whose verdict is known.

    Attributes:
        id: the row of the table of cases, and the variant.
        title: what the two runs are.
        pair: builds both runs afresh.
        expected: every verdict that is right.
        truth: what plain forward passes show; see `SAME`.
        floor: with `differs`, the least relative gap in float64.
        check: further proof of the truth, given the pair; raises AssertionError.
        origin: parts of op names, one of which the origin's op has.
        source: where users met it.
        note: what is not obvious.
        pending: why the library can't be asked yet; empty where it can.
    """

    id: str
    title: str
    pair: Callable[[], Pair]
    expected: tuple[Expect, ...]
    truth: str
    floor: float = 1e-5
    check: Callable[[Pair], None] | None = None
    origin: tuple[str, ...] = ()
    source: str = ""
    note: str = ""
    pending: str = ""

    @property
    def expected_kind(self) -> frozenset[str]:
        return frozenset(expect.kind for expect in self.expected)

    @property
    def mechanism(self) -> frozenset[str | None]:
        return _union(expect.mechanism for expect in self.expected)

    @property
    def by_design(self) -> frozenset[bool | None]:
        return _union(expect.by_design for expect in self.expected)

    def accepts(self, kind: str, mechanism: str | None, by_design: bool | None) -> bool:
        return any(expect.accepts(kind, mechanism, by_design) for expect in self.expected)

    def build(self) -> tuple[Any, Any, dict[str, Any], ExitStack]:
        """`fp.Run` a, `fp.Run` b, arguments for `fp.compare`, and what to close: the patches, in force now."""
        import forkpoint as fp

        pair = self.pair()
        stack = ExitStack()
        stack.enter_context(pair.patched())
        try:
            return _run(fp, pair.a, "a"), _run(fp, pair.b, "b"), pair.compare, stack
        except BaseException:
            stack.close()
            raise


def _union(sets: Iterable[frozenset[Any]]) -> frozenset[Any]:
    together: frozenset[Any] = frozenset()
    for one in sets:
        if one is ANY:
            return ANY
        together |= one
    return together


def _run(fp: Any, side: Side, name: str) -> Any:
    layout = side.layout(fp) if side.layout is not None else None
    inputs = dict(side.inputs) if isinstance(side.inputs, Mapping) else [dict(call) for call in side.inputs]
    return fp.Run(side.model, inputs, layout=layout, call=side.call, name=name)


# ---------------------------------------------------------------------- the register

CASES: dict[str, Case] = {}


def case(
    name: str,
    title: str,
    *expected: Expect,
    truth: str | None = None,
    origin: str | Sequence[str] = (),
    **more: Any,
) -> Callable[[Callable[[], Pair]], Callable[[], Pair]]:
    """Register the function below as the builder of a case."""

    def register(pair: Callable[[], Pair]) -> Callable[[], Pair]:
        hints = (origin,) if isinstance(origin, str) else tuple(origin)
        add(Case(name, title, pair, expected, truth or _usual_truth(expected), origin=hints, **more))
        return pair

    return register


def add(new: Case) -> None:
    if new.id in CASES:
        raise ValueError(f"two cases are called {new.id}")
    CASES[new.id] = new


def _usual_truth(expected: Sequence[Expect]) -> str:
    kinds = {expect.kind for expect in expected}
    if kinds <= {"identical", "rounding"}:
        return BITS if kinds == {"identical"} else SAME
    if kinds == {"semantic"}:
        return DIFFERS
    if kinds == {"nondeterminism"}:
        return UNSTEADY
    return UNCHECKED
