"""Causes by which one token's value depends on others: scales, statistics, capacity, leaks. All need the coupling shown."""

from __future__ import annotations

from torch import Tensor

from forkpoint.mechanisms.case import Case
from forkpoint.mechanisms.mechanism import Mechanism
from forkpoint.probes.coupling import EARLIER, PADDING, ROWS, Coupling

_EXTREMES = frozenset({"amax", "amin", "max", "min", "aminmax", "norm", "vector_norm", "linalg_vector_norm"})
_QUANTISING = frozenset({"round", "round_", "clamp", "clamp_", "clip", "floor", "trunc"})
_COMPARISONS = frozenset({"gt", "ge", "lt", "le"})
_ROUTING = frozenset({"one_hot", "topk", "argsort", "sort", "bincount", "histc"})


def int8_outliers(case: Case) -> Mechanism | None:
    """Others move the origin, and it asks which columns have an outlier."""
    library = any(op.function.startswith("bitsandbytes.") for op in case.chain)
    emulated = (
        case.root is not None
        and case.names & {"any", "nonzero"}
        and (case.names | case.behind(4)) & _COMPARISONS
        and _QUANTISING & (case.after() | case.behind() | case.behind(4, seen=True))
    )
    if not (library or emulated) or case.coupling is None:
        return None
    return Mechanism(
        "int8_outliers", True, "an outlier in another row makes the int8 matrix product treat a whole column in "
        "higher precision for every token",
        "This is how mixed int8 decomposition works. Use another quantisation (per-token scales, int8_threshold=0, "
        "nf4), or compare with the quantisation off.",
        case.coupling.result,
    )  # fmt: skip


def scale(case: Case) -> Mechanism | None:
    """Others move the origin by their largest values alone, and what it makes scales something that is rounded."""
    written_out = case.names & _EXTREMES and _QUANTISING & (case.after(8) | case.names) | _to_narrow(case)
    library = any("quant" in op.function for op in case.chain)
    if not written_out and not library:
        return None
    if case.coupling is None or not case.coupling.by_extremes():
        return None
    value = _scale_of(case)
    if value is None or value.numel() == 1:
        return Mechanism(
            "dynamic_scale", True, f"one scale for a whole tensor is taken from all tokens, {' and '.join(case.coupling.what)} "
            "among them, so that each token's rounding depends on the others",
            "Use a scale per token (or a static one) where rows must not depend on each other.",
            case.coupling.result,
        )  # fmt: skip
    return Mechanism(
        "dynamic_scale", False, "a scale that should belong to one token is reduced over other tokens",
        "Reduce the scale over the feature dimension only (dim=-1), so that every token has its own.",
    )  # fmt: skip


def _to_narrow(case: Case) -> frozenset[str]:
    """A cast to float8 or an integer after the root rounds like `round` does."""
    origin = case.origin
    if origin is None:
        return frozenset()
    for event, (op, record) in origin.store_b.ops.items():
        cast = event > origin.root.event_b and op.function in ("to", "type", "view")
        if cast and record.dtype.startswith(("float8", "int8", "uint8")):
            return frozenset({"round"})
    return frozenset()


def _scale_of(case: Case) -> Tensor | None:
    """The value of the reduction that makes a scale."""
    origin = case.origin
    if origin is None:
        return None
    kept = [
        k for _, k in sorted(origin.store_b.kept.items()) if k.op.function in _EXTREMES and k.op in case.chain
    ]
    return kept[0].value if kept else None


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
    if case.normalises:
        return _statistics(case, case.coupling or coupled)
    return _leak(case, coupled) if PADDING in coupled.what else _in_no_order(coupled)


def leak(case: Case) -> Mechanism | None:
    """The result moves with what one run alone has, whatever the op is by which it gets there."""
    leaks = case.content is not None and case.content.leaks
    return _leak(case, None) if leaks and case.same_function is not False else None


def _statistics(case: Case, coupled: Coupling) -> Mechanism:
    if coupled.of_rows:
        return Mechanism(
            "batch_statistics", True, "statistics are taken over the rows of the batch, so a row's values depend on "
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
    return Mechanism(
        "batch_statistics", False if masked else True if whole or ROWS in coupled.what else None,
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
        None, None, f"{of}, whichever of them holds what, and not by statistics that normalise them",
        "Look at the dimension that the op at the origin works over: it takes others together with each.",
    )  # fmt: skip


def _keeps_tokens(case: Case) -> bool:
    """Whether the op at the origin gives every token a value: it takes the statistics and uses them."""
    assert case.root is not None
    return any(position is not None for _, position in case.session.shared.places(case.root.pairs.distinct))


def _leak(case: Case, coupled: Coupling | None) -> Mechanism:
    rows = coupled is not None and coupled.of_rows
    if rows:
        return Mechanism(
            "padding_leak", None, "what sits in another row of the batch reaches a real token",
            "Find why the op reads other rows: a reshape or a transpose that mixes rows with columns, or an attention "
            "that takes rows for tokens.",
        )  # fmt: skip
    ignored = case.masked
    return Mechanism(
        "padding_leak", None if ignored is None else False,
        f"{_where(coupled)} reaches a real token" + ("" if ignored is None else f", {ignored}"),
        "Set padded positions to zero before the layer that mixes positions, or run rows without padding.",
    )  # fmt: skip


def _where(coupled: Coupling | None) -> str:
    """Where what reaches a token sits, as far as the experiment told."""
    known = () if coupled is None else coupled.what
    if known == (PADDING,):
        return "what sits in the padding of its own row"
    if ROWS in known and PADDING in known:
        return "what sits in the padding of its own row and in other rows"
    return "what sits in the padding (or in another row)"
