"""Causes by which one token's value depends on others: scales, statistics, capacity, leaks. All need the coupling shown."""

from __future__ import annotations

from torch import Tensor

from forkpoint.mechanisms.case import Case
from forkpoint.mechanisms.mechanism import Mechanism
from forkpoint.probes.bench import Bench
from forkpoint.probes.coupling import EARLIER, LATER, OTHERS, PADDING, ROWS, Coupling
from forkpoint.probes.deciding import STEPS
from forkpoint.probes.resampled import LOUD
from forkpoint.probes.spans import spans
from forkpoint.probes.statistics import NORMALISED
from forkpoint.probes.watchers import Store

_EXTREMES = frozenset({"amax", "amin", "max", "min", "aminmax", "norm", "vector_norm", "linalg_vector_norm"})
_QUANTISING = frozenset({"round", "round_", "clamp", "clamp_", "clip", "floor", "trunc"})
_NEAR = 8
"""How many steps behind a scale what it scales is rounded."""
_TO_WHOLE = STEPS | {"to", "type", "char", "clamp", "clamp_", "clip"}
_FEWEST, _MOST = 96, 128
"""Between these lies the largest whole number that values are rounded to where they use the range of int8."""
_COMPARISONS = frozenset({"gt", "ge", "lt", "le"})
_ROUTING = frozenset({"one_hot", "topk", "argsort", "sort", "bincount", "histc"})


def int8_outliers(case: Case) -> Mechanism | None:
    """Others move the origin, it asks which columns have an outlier, and the runs agree if nothing is rounded."""
    library = any(op.function.startswith("bitsandbytes.") for op in case.chain)
    emulated = (
        case.root is not None
        and case.names & {"any", "nonzero"}
        and (case.names | case.behind(4)) & _COMPARISONS
        and _QUANTISING & (case.after() | case.behind() | case.behind(4, seen=True))
    )
    if not (library or emulated) or case.coupling is None:
        return None
    if not library and not (_chooses_columns(case) and _rounds_to_int8(case) and case.vanishes_unrounded):
        return None
    what = (
        "the int8 matrix product treat a whole column"
        if library
        else "code that rounds to int8 keep a whole column"
    )
    return Mechanism(
        "int8_outliers", True, f"an outlier in another row makes {what} in higher precision for every token",
        "This is how mixed int8 decomposition works. Use another quantisation (per-token scales, int8_threshold=0, "
        "nf4), or compare with the quantisation off.",
        case.coupling.result, whole=not library or _all_of_library(case, "bitsandbytes."),
    )  # fmt: skip


def _chooses_columns(case: Case) -> bool:
    """Whether what was asked of the values has an answer for each of several columns."""
    assert case.origin is not None
    for store, events in case.alone:
        for event in {case.origin.root.event_a, case.origin.root.event_b, *events}:
            snapshot = store.snapshots.get(event)
            if snapshot is None or snapshot.op.function not in ("any", "nonzero"):
                continue
            values = [store.snapshots[s].value for s in store.sources[event] if s in store.snapshots]
            if snapshot.value.numel() > 1 or any(value.dim() == 1 and len(value) > 1 for value in values):
                return True
    return False


def _rounds_to_int8(case: Case) -> bool:
    """Whether values of tokens are rounded to whole numbers that use the range of eight bits."""
    assert case.origin is not None
    store = case.origin.store_b
    rounded = (
        k.value
        for _, k in sorted(store.snapshots.items())
        if k.op.function in _TO_WHOLE and k.label is not None
    )
    return any(
        value.numel()
        and bool((value == value.round()).all())
        and _FEWEST <= float(value.abs().max()) <= _MOST
        for value in rounded
    )


def scale(case: Case) -> Mechanism | None:
    """Others move the origin by their largest values alone, and all that this changes is how values are rounded."""
    library = any("quant" in op.function for op in case.chain)
    if not (case.names & (_EXTREMES | STEPS) or library):
        return None
    coupled = case.coupling
    if coupled is None or coupled.bench is None or not coupled.by_extremes():
        return None
    at = _rounded(case, coupled.bench, coupled)
    if at is None or not (_inside_library(case) or case.vanishes_unrounded):
        return None
    value = _scale_of(case)
    if value is not None and value.numel() > 1:
        return _wrong_scale("other tokens")
    shared = spans(coupled.bench, at)
    if shared.rows and shared.columns is not False:
        return Mechanism(
            "dynamic_scale", True, f"one scale for a whole tensor is taken from all tokens, {' and '.join(coupled.what)} "
            "among them, so that each token's rounding depends on the others",
            "Use a scale per token (or a static one) where rows must not depend on each other.",
            coupled.result, whole=not _inside_library(case) or _all_of_library(case, "quant"),
        )  # fmt: skip
    if shared.rows is False and shared.columns:
        return _wrong_scale("the other tokens of its row")
    if shared.rows and shared.columns is False:
        return _wrong_scale("tokens of other rows")
    return Mechanism(
        "dynamic_scale", None, f"a scale is taken from several tokens, {' and '.join(coupled.what)} among them; whether it is "
        "one for the whole tensor or one for each row can't be told from runs of one row",
        "Use a scale per token (or a static one) where rows must not depend on each other.",
    )  # fmt: skip


def _inside_library(case: Case) -> bool:
    """Whether a library's own quantised operator makes the difference, which scales, rounds and scales back in one."""
    return any("quant" in op.function and "." in op.function.removeprefix("aten.") for op in case.chain)


def _all_of_library(case: Case, name: str) -> bool:
    """Whether the operators of one library make the difference at every origin."""
    return all(any(name in op.function for op in one.chain) for one in case.each_origin)


def _wrong_scale(over: str) -> Mechanism:
    return Mechanism(
        "dynamic_scale", False, f"a scale that should belong to one token is reduced over {over}",
        "Reduce the scale over the feature dimension only (dim=-1), so that every token has its own.",
    )  # fmt: skip


def _rounded(case: Case, bench: Bench, coupled: Coupling) -> int | None:
    """The event from which on values of tokens are rounded that the origin's value scales; None where none are.

    A scale that leaves as a number of Python reaches nothing that was seen; then it is one of the same module that moves
    with the others.
    """
    store = bench.store
    behind = case.alone[0 if bench.side == "a" else 1][1]
    inside = [event for event in (bench.root, *behind) if "quant" in store.ops[event][0].function]
    if bench.root in inside or (
        bench.has_tokens(store.snapshots[bench.root])
        and (inside or any(_rounds(bench, event) for event in behind))
    ):
        return bench.root  # a library's operator may lose sight of its tokens
    near = _near(store, bench.root)
    rounding = next((event for event in near if _rounds(bench, event)), None)
    if rounding is not None or any(
        event in store.snapshots and bench.has_tokens(store.snapshots[event]) for event in near[1:]
    ):
        return rounding
    module, others = store.ops[bench.root][0].module, coupled.others
    later = (
        e
        for e in sorted(store.snapshots)
        if e > bench.root and store.ops[e][0].module == module and _rounds(bench, e)
    )
    event = next(later, None)
    if event is None or others is None:
        return None
    again = bench.at(event).values(others, LOUD, before=bench.before)
    moved = None if again is None else bench.at(event).compare(store.snapshots[event], again)
    return event if moved is not None and moved.numbers else None


def _near(store: Store, root: int) -> list[int]:
    """The origin and what is made from it in a few steps, in the order of execution."""
    near, frontier, made_from = {root}, [root], store.made_from
    for _ in range(_NEAR):
        frontier = [event for one in frontier for event in made_from.get(one, ()) if event not in near]
        near.update(frontier)
    return sorted(near)


def _rounds(bench: Bench, event: int) -> bool:
    """Whether an op rounds values of tokens: to steps, to a dtype of eight bits, or inside a library's operator."""
    op, record = bench.store.ops[event]
    snapshot = bench.store.snapshots.get(event)
    if snapshot is None or not bench.has_tokens(snapshot):
        return False
    narrow = op.function in ("to", "type", "view") and record.dtype.startswith(("float8", "int8", "uint8"))
    return narrow or op.function in STEPS or "quant" in op.function


def _scale_of(case: Case) -> Tensor | None:
    """The value of the reduction that makes a scale."""
    origin = case.origin
    if origin is None:
        return None
    reductions = [
        k
        for _, k in sorted(origin.store_b.snapshots.items())
        if k.op.function in _EXTREMES and k.op in case.chain
    ]
    return reductions[0].value if reductions else None


def expert_capacity(case: Case) -> Mechanism | None:
    """Others move the choices by which the origin differs, and these count tokens up to a limit."""
    if case.root is None:
        return None
    limited = (_COMPARISONS | {"topk"}) & case.decisions
    if not (_ROUTING & case.decisions and {"cumsum", "argsort", "sort"} & case.decisions and limited):
        return None
    if case.coupling is None:
        return None
    return Mechanism(
        "expert_capacity", True, "an expert takes a limited number of tokens of the batch, so which tokens it takes "
        "depends on the other rows",
        "This is how capacity-limited experts work. Raise the capacity factor, or evaluate without dropping tokens.",
        case.coupling.result,
    )  # fmt: skip


def statistics_or_leak(case: Case) -> Mechanism | None:
    """Others move the origin: by statistics of them all, or by what each of them holds."""
    coupled = case.coupling
    if coupled is None:
        return None
    if EARLIER in coupled.what:
        return None  # what an earlier call left is the cache's
    if case.of_the_call:
        return None  # a number of the whole call, like a loss, is made of all tokens in any model
    if coupled.ordered():
        return _leak(case, coupled)
    if case.statistics is not None:
        return _statistics(case, case.coupling or coupled)
    return _leak(case, coupled) if PADDING in coupled.what else _in_no_order(coupled)


def leak(case: Case) -> Mechanism | None:
    """The result moves with what one run alone has, whatever the op is by which it gets there."""
    leaks = case.content is not None and case.content.leaks
    return _leak(case, None) if leaks and case.same_function is not False else None


def _statistics(case: Case, coupled: Coupling) -> Mechanism:
    meant = case.statistics == NORMALISED  # a mean that is not taken away may be anything
    if coupled.of_rows:
        return Mechanism(
            "batch_statistics", True if meant else None, "statistics are taken over the rows of the batch, so a row's values depend on "
            "its batch mates",
            "Run one row at a time where rows must not depend on each other, or use a normalisation that sees one row "
            "(put the module in eval mode, if it is a batch norm).",
            coupled.result,
        )  # fmt: skip
    what = (
        "over the rows of the batch and their columns"
        if ROWS in coupled.what
        else "over the columns of a row"
    )
    masked = case.masked_itself
    whole = case.root is not None and case.root.a.label is not None and _keeps_tokens(case)
    by_design = True if meant and (whole or ROWS in coupled.what) else None
    if masked:  # over rows it is meant for the rows, and wrong for the padding
        by_design = None if ROWS in coupled.what else False
    return Mechanism(
        "batch_statistics", by_design,
        f"statistics are taken {what}, {' and '.join(coupled.what)} among them"
        + (f", {case.masked}" if masked else ""),
        "Leave padding out of the statistics: sum(x * mask) / sum(mask)." if masked else
        "Run rows of one length, one at a time, or use a normalisation that sees one token (put the module in eval "
        "mode, if it is a batch norm).",
        coupled.result,
    )  # fmt: skip


def _in_no_order(coupled: Coupling) -> Mechanism:
    """A softmax, a largest value, a length over other rows or tokens: a coupling, and no known one."""
    of = "a row's values depend on other rows of the batch" if coupled.of_rows else (
        f"a token's values depend on {' and '.join(coupled.what)}"
    )  # fmt: skip
    return Mechanism(
        None, None, f"{of}, which no known cause explains",
        "Look at the dimension that the op at the origin works over: it takes others together with each.",
    )  # fmt: skip


def _keeps_tokens(case: Case) -> bool:
    """Whether the op at the origin gives every token a value: it takes the statistics and uses them."""
    assert case.root is not None
    return any(position is not None for _, position in case.session.shared.places(case.root.pairs.distinct))


def _leak(case: Case, coupled: Coupling | None) -> Mechanism:
    sources = () if coupled is None else coupled.what
    if not sources or sources == (OTHERS,):
        sources = case.held_alone  # nothing else can be meant
    if sources == (ROWS,):
        return Mechanism(
            "padding_leak", None, "what sits in another row of the batch reaches a real token",
            "Find why the op reads other rows: a reshape or a transpose that mixes rows with columns, or an attention "
            "that takes rows for tokens." if coupled is not None else
            "Find what other rows can change: a value of the whole batch, or something that the model keeps and writes.",
        )  # fmt: skip
    ignored = case.masked
    what, advice = (
        "a real token",
        "Set padded positions to zero before the layer that mixes positions, or run rows without padding.",
    )
    if coupled is None and case.ids_enter:
        advice = "Leave padding's ids out where the op at the origin reads ids."
    if sources == (LATER,):
        advice = "Mask later tokens where positions are mixed, or compare rows of one length."
    if case.of_the_call:
        what, advice = (
            "a number of the whole call",
            "Leave padding out of what is added up: multiply each term by the mask.",
        )
    if PADDING not in sources and sources:
        ignored = None
    return Mechanism(
        "padding_leak", None if ignored is None else False,
        f"{_where(sources)} reaches {what}" + ("" if ignored is None else f", {ignored}"), advice,
    )  # fmt: skip


_SITS = {
    frozenset({PADDING}): "what sits in the padding of its own row",
    frozenset({LATER}): "what sits in later tokens of its own row",
    frozenset({PADDING, ROWS}): "what sits in the padding of its own row and in other rows",
    frozenset({PADDING, LATER}): "what sits in the padding of its own row and in later tokens",
    frozenset({LATER, ROWS}): "what sits in later tokens of its own row and in other rows",
    frozenset(
        {PADDING, LATER, ROWS}
    ): "what sits in the padding of its own row, in later tokens and in other rows",
}


def _where(sources: tuple[str, ...]) -> str:
    """Where what reaches a token sits, as far as experiments with each alone told."""
    return _SITS.get(
        frozenset(sources) & {PADDING, LATER, ROWS}, "what sits in the padding (or in another row)"
    )
