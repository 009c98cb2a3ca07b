"""The first divergence: from the joined digests to two values in full precision."""

from __future__ import annotations

import inspect
import linecache
import os
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from forkpoint.capture.functions import ALWAYS_VIEWS, parameter_names
from forkpoint.capture.labels import spread
from forkpoint.capture.recorder import CopiedCall, Fetch, Look, Watcher
from forkpoint.capture.trace import Event, Op
from forkpoint.explain.arguments import compare_arguments
from forkpoint.explain.session import Session, Traced
from forkpoint.explain.written import passed_more_often, written_in_one_run
from forkpoint.match import Difference, Joined
from forkpoint.match.align import gap, index_of, largest_pair, pair_elements, scalar
from forkpoint.match.distance import ulps
from forkpoint.match.finite import FinitePart, all_finite, finite_part
from forkpoint.match.pairs import Pairs
from forkpoint.promotion import Promotion
from forkpoint.result import Divergence, Element, InputComparison
from forkpoint.runs.modules import WRAPPER, module_at

Tokens = Callable[[int, int], str | None]
"""The text of the token at (sample of run A, position), if known."""

CANDIDATES = 8
"""How many ops a second pass fetches at once: the first may turn out equal by value (-0.0, dtypes)."""


@dataclass
class Located:
    """The op at which the runs part ways, as it ran in both."""

    row: Joined
    divergence: Divergence
    a: CopiedCall
    b: CopiedCall


def differing_rows(session: Session) -> list[Joined]:
    """Ops whose floating-point values differ, in the order of execution; module inputs are not ops."""
    rows = [r for r in session.join.rows if r.difference is not None and r.floating and not r.op.is_input]
    return sorted(
        rows, key=lambda r: (r.difference.event_a, r.op.is_boundary) if r.difference else (0, False)
    )


def locate(
    session: Session, tokens: Tokens, beside: tuple[Sequence[Fetch], Sequence[Fetch]] = ((), ())
) -> Located | None:
    """Find the first op whose values differ, fetch them, and say where and by how much.

    Args:
        beside: what else the second pass of each run is to keep, if one is made.

    Returns:
        None where every value that could be compared is equal.
    """
    rows = differing_rows(session)
    done = 0
    while done < len(rows):
        # The first is nearly always it; only values of two dtypes, or -0.0 against 0.0, can be equal after all.
        wanted = rows[done : done + (1 if done == 0 and _one_dtype(rows[0]) else CANDIDATES)]
        done += len(wanted)
        look = session.look
        taken_a = fetch(session.a, [(r, _difference(r).event_a) for r in wanted], beside[0], look=look)
        taken_b = fetch(session.b, [(r, _difference(r).event_b) for r in wanted], beside[1], look=look)
        beside = ((), ())
        for row, a, b in zip(wanted, taken_a, taken_b, strict=True):
            if (
                a is not None
                and b is not None
                and (divergence := describe(session, row, a, b, tokens)) is not None
            ):
                return _between(session, Located(row, divergence, a, b))
    return None


def _one_dtype(row: Joined) -> bool:
    return row.first_a is not None and row.first_b is not None and row.first_a.dtype == row.first_b.dtype


def _difference(row: Joined) -> Difference:
    assert row.difference is not None
    return row.difference


def fetch(
    traced: Traced,
    wanted: list[tuple[Joined, int]],
    beside: Sequence[Fetch] = (),
    *,
    look: Look | None = None,
) -> list[CopiedCall | None]:
    """Run again and keep the calls that made the given events; None for one that did not come again.

    Args:
        traced: the run.
        wanted: ops and their events.
        beside: what else to keep.
        look: what else is to be known of the first of the calls, which is nearly always the one that will be spoken of.
    """
    calls: list[CopiedCall | None] = [None] * len(wanted)
    fetches = list(beside)
    for place, (_, index) in enumerate(wanted):
        event = traced.trace.events[index]
        op = traced.trace.ops[event.op]

        def take(call: CopiedCall, place: int = place) -> None:
            calls[place] = call

        output = op.output if op.is_boundary else None
        key = op.module, op.function, op.site.chain
        fetches.append(Fetch(key, event.call, event.nth, take, output, None if place else look))
    if fetches:
        traced.again(fetches)
    return calls


def fetch_op(
    traced: Traced,
    op: Op,
    event: Event | CopiedCall,
    *,
    promotion: Promotion | None = None,
    look: Look | None = None,
) -> CopiedCall | None:
    """Run again and keep one call of an op; None if it did not come again.

    Args:
        traced: the run.
        op: the op.
        event: which of its calls.
        promotion: computes the run in float64.
        look: what else is to be known of the call.
    """
    return fetch_ops(traced, [(op, event)], promotion=promotion, look=look)[0]


def fetch_ops(
    traced: Traced,
    wanted: Sequence[tuple[Op, Event | CopiedCall]],
    *,
    promotion: Promotion | None = None,
    look: Look | None = None,
    watcher: Watcher | None = None,
    until_found: bool = False,
) -> list[CopiedCall | None]:
    """The same for several calls, in one run, which somebody may watch, to its end or until they are found."""
    copies: list[list[CopiedCall]] = [[] for _ in wanted]
    fetches = [
        Fetch(
            (op.module, op.function, op.site.chain), event.call, event.nth, calls.append,
            op.output if op.is_boundary else None, look,
        )
        for (op, event), calls in zip(wanted, copies, strict=True)
    ]  # fmt: skip
    enough = (lambda: all(copies)) if watcher is None or until_found else None
    traced.again(fetches, promotion=promotion, watcher=watcher, enough=enough)
    return [calls[0] if calls else None for calls in copies]


def describe(
    session: Session, row: Joined, a: CopiedCall, b: CopiedCall, tokens: Tokens
) -> Divergence | None:
    """The divergence of one op from its calls in both runs; None where its values are equal after all."""
    output = row.op.output if not row.op.is_boundary else 0
    difference = _difference(row)
    return describe_values(session, row.op, output, a, b, tokens, (difference.sample, difference.position))


def describe_values(
    session: Session, op: Op, output: int, a: CopiedCall, b: CopiedCall, tokens: Tokens,
    place: tuple[int | None, int | None] = (None, None), beyond: float = 0.0,
) -> Divergence | None:  # fmt: skip
    """The same for any op.

    Args:
        place: (sample, position) for values that have no label of their own.
        beyond: how far two elements may be apart and not count as different.
    """
    value_a, value_b = a.outputs[output], b.outputs[output]
    label_a, label_b = a.output_labels[output], b.output_labels[output]
    pairs = pair_elements(value_a, label_a, value_b, label_b, session.shared)
    if not len(pairs):
        pairs = session.join.pair_open(
            place[0], (a.op, a.call), (b.op, b.call), tuple(value_a.shape), tuple(value_b.shape)
        )
    if not len(pairs):
        return None
    apart = gap(value_a, value_b, pairs, beyond)
    if not apart.differing:
        return None

    def element(pair: int) -> Element:
        return _element(session, a, b, output, pairs, pair, place, tokens)

    first, most = element(apart.first), largest_pair(value_a, value_b, pairs, apart)
    part = FinitePart(max_abs=apart.max_abs, max_rel=apart.max_rel)
    if not (all_finite(value_a) and all_finite(value_b)):
        part = finite_part(value_a, value_b, pairs)
    return Divergence(
        **place_of(session, op),
        **vars(first),
        ulps=_ulps(first.value_a, first.value_b, value_a, value_b),
        max_abs=part.max_abs,
        max_rel=part.max_rel,
        nonfinite_a=part.nonfinite_a,
        nonfinite_b=part.nonfinite_b,
        differing=apart.differing,
        compared=apart.compared,
        inputs=compare_inputs(session, a, b),
        arguments=compare_arguments(a, b),
        call=a.call,
        dtype_a=str(value_a.dtype).removeprefix("torch."),
        dtype_b=str(value_b.dtype).removeprefix("torch."),
        shape_a=tuple(value_a.shape),
        shape_b=tuple(value_b.shape),
        largest=element(most) if most != apart.first else None,
    )


def _element(
    session: Session, a: CopiedCall, b: CopiedCall, output: int, pairs: Pairs, pair: int,
    place: tuple[int | None, int | None], tokens: Tokens,
) -> Element:  # fmt: skip
    """One pair of elements of an op's value; see `describe_values`."""
    value_a, value_b = a.outputs[output], b.outputs[output]
    label_a, labelled = (
        a.output_labels[output],
        None not in (a.output_labels[output], b.output_labels[output]),
    )
    at_a, at_b = pairs.at(pair)
    index_a, index_b = index_of(at_a, tuple(value_a.shape)), index_of(at_b, tuple(value_b.shape))
    sample, position = session.shared.place(pairs, pair) if labelled else place
    here = session.join.token_at((a.op, a.call), label_a, tuple(value_a.shape), index_a)
    sample, position = here or (sample, position)
    return Element(
        sample=None if sample is None else session.a.run.layout.name(sample),
        position=position,
        token=tokens(sample, position) if sample is not None and position is not None else None,
        index_a=index_a,
        index_b=index_b,
        value_a=scalar(value_a, at_a),
        value_b=scalar(value_b, at_b),
    )


def describe_choice(
    session: Session, op: Op, output: int, a: CopiedCall, b: CopiedCall, tokens: Tokens, absent: AbstractSet[int],
) -> Divergence:  # fmt: skip
    """The divergence of an op that chooses tokens: those that it chose in one run alone.

    Args:
        absent: their shared numbers.
    """
    number = min(absent)
    sample, position = session.shared.coordinate(number)
    at: list[tuple[tuple[int, ...], Any]] = []
    for call, numbers in ((a, session.shared.a), (b, session.shared.b)):
        value, label = call.outputs[output], call.output_labels[output]
        here = None if label is None else spread(numbers[label.q] == number, tuple(value.shape))
        flat = np.flatnonzero(here) if here is not None else np.zeros(0, dtype=np.int64)
        first = int(flat[0]) if len(flat) else None
        at.append(
            ((), None) if first is None else (index_of(first, tuple(value.shape)), scalar(value, first))
        )
    (index_a, first_a), (index_b, first_b) = at
    value_a, value_b = a.outputs[output], b.outputs[output]
    return Divergence(
        **place_of(session, op),
        sample=None if sample is None else session.a.run.layout.name(sample),
        position=position,
        token=tokens(sample, position) if sample is not None and position is not None else None,
        index_a=index_a, index_b=index_b, value_a=first_a, value_b=first_b, ulps=None, max_abs=None, max_rel=None,
        differing=len(absent), compared=len(absent), inputs=compare_inputs(session, a, b), call=a.call,
        dtype_a=str(value_a.dtype).removeprefix("torch."), dtype_b=str(value_b.dtype).removeprefix("torch."),
        shape_a=tuple(value_a.shape), shape_b=tuple(value_b.shape),
        note="this op chooses tokens, and one run chooses some that the other doesn't",
    )  # fmt: skip


def _ulps(a: Any, b: Any, value_a: Tensor, value_b: Tensor) -> float | None:
    if isinstance(a, float) and isinstance(b, float):
        return ulps(a, b, value_a.dtype, value_b.dtype)
    return None


def place_of(session: Session, op: Op) -> dict[str, Any]:
    """What names an op in a report: for a module's input or output, where the module is defined."""
    if op.is_boundary:
        file, line = _definition(session, op.module)
        return {
            "op": op.module or "(model)",
            "module": op.module,
            "function": None,
            "source": f"{os.path.basename(file)}:{line}" if file else "?",
            "code": linecache.getline(file, line).strip() if file else "",
            "variable": None,
        }
    return {
        "op": op.name,
        "module": op.module,
        "function": op.function,
        "source": op.site.short,
        "code": op.site.code,
        "variable": op.site.variable,
    }


def _definition(session: Session, path: str) -> tuple[str, int]:
    """Where a module's forward is defined."""
    model = session.a.run.modules
    try:
        module = module_at(model, path) if model is not None else None
        forward = inspect.unwrap(type(module).forward) if module is not None else None
        if forward is None:
            return "", 0
        return inspect.getsourcefile(forward) or "", inspect.getsourcelines(forward)[1]
    except (AttributeError, TypeError, OSError):
        return "", 0


# ---------------------------------------------------------------------- inputs


def named_inputs(call: CopiedCall) -> dict[str, Tensor]:
    """The tensor inputs of a call by the names of the function's parameters."""
    names = parameter_names(call.op.function, len(call.args), call.func, call.args)
    inputs: dict[str, Tensor] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            inputs[name] = value
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                add(f"{name}[{index}]", item)

    for name, value in zip(names, call.args, strict=True):
        add(name, value)
    for name, value in call.kwargs.items():
        if name != "out":
            add(name, value)
    return inputs


def compare_inputs(session: Session, a: CopiedCall, b: CopiedCall) -> tuple[InputComparison, ...]:
    """For each tensor input of an op, whether it is equal in both runs at shared coordinates."""
    inputs_a, inputs_b = named_inputs(a), named_inputs(b)
    comparisons: list[InputComparison] = []
    for name in [*inputs_a, *(n for n in inputs_b if n not in inputs_a)]:
        mine, theirs = inputs_a.get(name), inputs_b.get(name)
        if mine is None or theirs is None:
            only = theirs if mine is None else mine
            assert only is not None
            shape, dtype = tuple(only.shape), str(only.dtype).removeprefix("torch.")
            where = "a" if theirs is None else "b"
            comparisons.append(
                InputComparison(
                    name, f"only in {where}", shape if where == "a" else None, shape if where == "b" else None,
                    dtype if where == "a" else None, dtype if where == "b" else None,
                )
            )  # fmt: skip
        else:
            comparisons.append(_compare_input(session, name, a, mine, b, theirs))
    return tuple(comparisons)


def _compare_input(
    session: Session, name: str, a: CopiedCall, mine: Tensor, b: CopiedCall, theirs: Tensor
) -> InputComparison:
    shapes = tuple(mine.shape), tuple(theirs.shape)
    if a.op.function == "scaled_dot_product_attention" and mine.dim() == theirs.dim() == 4:
        mine, theirs = _repeat_heads(a, mine, theirs), _repeat_heads(b, theirs, mine)
    pairs = pair_elements(
        mine, a.input_labels.get(id(mine)), theirs, b.input_labels.get(id(theirs)), session.shared
    )
    parameter = a.owned.get(id(mine))
    comparison = InputComparison(
        name, "not compared", *shapes, str(mine.dtype).removeprefix("torch."),
        str(theirs.dtype).removeprefix("torch."), parameter, None, pairs.reason,
    )  # fmt: skip
    if not len(pairs):
        return (
            comparison if mine.numel() or theirs.numel() else replace(comparison, status="equal", reason="")
        )
    apart = gap(mine, theirs, pairs)
    return replace(
        comparison,
        status="differs" if apart.differing else "equal",
        max_abs=apart.max_abs if apart.differing else 0.0,
    )


def _repeat_heads(call: CopiedCall, mine: Tensor, theirs: Tensor) -> Tensor:
    """Grouped heads, repeated to as many as the other run's call has: the kernel does the same by itself."""
    groups, rest = divmod(theirs.shape[1], max(mine.shape[1], 1))
    if rest or groups <= 1:
        return mine
    repeated = mine.repeat_interleave(groups, dim=1)
    call.input_labels[id(repeated)] = call.input_labels.get(id(mine))
    call.kept_alive.append(repeated)
    return repeated


# ---------------------------------------------------------------------- between ops


def _between(session: Session, located: Located) -> Located:
    """Say so when the cause lies before the op: in ops that one run lacks, or where no tap saw it."""
    divergence = located.divergence
    if divergence.function is None:
        hidden = unmatched_before(session, located.row)
        listed = tuple(f"{run}: {op.place}" for run, op in hidden)
        return replace(located, divergence=replace(divergence, between=listed))
    moved = [i for i in divergence.inputs if i.status == "differs"]
    if not moved or any(i.parameter for i in moved):  # a weight is there before any op is
        return located
    floating = [
        i for i in moved if i.dtype_a is not None and ("float" in i.dtype_a or "complex" in i.dtype_a)
    ]
    if not floating:
        return located
    hidden = unmatched_before(session, located.row)
    if hidden:
        module = common_module(session, hidden)
        listed = tuple(f"{run}: {op.place}" for run, op in hidden)
        place = place_of(session, Op(module, "output", located.row.op.site))
        changed = replace(
            divergence, **place, between=listed,
            note="the runs part ways in ops that only one of them has, before this value",
        )  # fmt: skip
        return replace(located, divergence=changed)
    note = written_in_one_run(session, located.row, list(named_inputs(located.a)), moved)
    note = note or passed_more_often(session, located.row)
    if note is None:
        note = "its input differs already, though no value that both runs have before it does"
        if located.row.op.function in (*ALWAYS_VIEWS, "getitem", "reshape", "contiguous"):
            note = f"this op only moves elements, and {note}"
    return replace(located, divergence=replace(divergence, note=note))


def unmatched_before(session: Session, row: Joined) -> list[tuple[str, Op]]:
    """Ops of either run alone that lie between the last equal value and a first difference.

    Where they are views throughout (further columns of a longer row), they made nothing.
    """
    difference = _difference(row)
    unmatched: list[tuple[str, Op]] = []
    has_values = False
    for run, status, trace, stop in (
        ("a", "only in a", session.a.trace, difference.event_a),
        ("b", "only in b", session.b.trace, difference.event_b),
    ):
        alone = {trace.key(r.op) for r in session.join.rows if r.status == status and r.floating}
        equal = {
            session.a.trace.key(r.op)
            for r in session.join.rows
            if r.status == "equal" and r.floating and not r.op.is_boundary
        }
        keys = [trace.key(op) for op in trace.ops]
        hidden = {i for i, op in enumerate(trace.ops) if keys[i] in alone and not op.is_boundary}
        equal_before = {i for i, key in enumerate(keys) if key in equal}
        passed: list[tuple[str, Op]] = []
        for index in range(stop - 1, -1, -1) if hidden else ():
            number = trace.op_of(index)
            if number in hidden:
                passed.append((run, trace.ops[number]))
                has_values = has_values or trace.events[index].status != "view"
            elif number in equal_before and trace.events[index].status == "digest":
                break
        unmatched = [*reversed(passed), *unmatched]
    unique: dict[tuple[str, Any], tuple[str, Op]] = {(run, op.key): (run, op) for run, op in unmatched}
    return list(unique.values()) if has_values else []


def common_module(session: Session, ops: list[tuple[str, Op]]) -> str:
    """The innermost module around all of them, by its path in run A."""
    traces = {"a": session.a.trace, "b": session.b.trace}
    plain = [traces[run].plain(op.module) for run, op in ops]
    paths = [path.split(".") if path else [] for path in plain]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if common[:1] == [WRAPPER]:
        return ""
    wrapping = [session.a.trace.wrapping] if session.a.trace.wrapping else []
    return ".".join(wrapping + common)
