"""The catalogue of known causes: each with the test that recognises it, whether it is meant, and advice.

A cause is recognised by what its ops do (a reduction over tokens, a table chosen by length, a
comparison with a threshold), never by the name of a class or a model, so that an emulation in a
custom module counts too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from forkpoint.probes.attention import sees_other_keys
from forkpoint.probes.content import ContentProbe
from forkpoint.probes.coupling import reads_others
from forkpoint.probes.origin import Meeting, Origin
from forkpoint.probes.watchers import Store
from forkpoint.results import ResultComparison
from forkpoint.session import Session
from forkpoint.trace import Op

_ATTENTION = frozenset({"scaled_dot_product_attention", "flex_attention", "multi_head_attention_forward"})
_MASKING = frozenset({"masked_fill", "masked_fill_", "softmax", "where"})
_STATISTICS = frozenset(
    {"batch_norm", "group_norm", "instance_norm", "var", "var_mean", "std", "std_mean", "layer_norm"}
)
_AVERAGES = frozenset({"mean", "sum", "amax", "amin", "max", "min", "logsumexp", "prod", "norm", "median"})
_EXTREMES = frozenset({"amax", "amin", "max", "min", "aminmax", "norm", "vector_norm", "linalg_vector_norm"})
_SELECTIONS = frozenset(
    {"getitem", "select", "gather", "index_select", "take_along_dim", "narrow", "argmax", "argmin"}
)
_QUANTISING = frozenset({"round", "round_", "clamp", "clamp_", "clip", "floor", "trunc"})
_COMPARISONS = frozenset({"gt", "ge", "lt", "le"})
_ROUTING = frozenset({"one_hot", "topk", "argsort", "sort", "bincount", "histc"})


@dataclass(frozen=True)
class Mechanism:
    """A known cause.

    Attributes:
        slug: its name in verdicts.
        by_design: True for a coupling that is meant, False for an error, None where nobody can know.
        summary: what it is, in a clause that ends "the runs differ in exact arithmetic: …".
        advice: what to do.
    """

    slug: str | None
    by_design: bool | None
    summary: str
    advice: str


@dataclass
class Case:
    """What the tests look at.

    Attributes:
        origin: where the difference enters; None if it could not be located.
    """

    session: Session
    compared: ResultComparison
    content: ContentProbe | None
    origin: Origin | None

    @property
    def root(self) -> Meeting | None:
        return self.origin.root if self.origin is not None else None

    @cached_property
    def alone(self) -> tuple[tuple[Store, frozenset[int]], ...]:
        """For each run, the events behind the root that tell nothing of its difference.

        Those that no event of the other run meets, or at which the tokens that differ pass in one run alone.
        """
        origin = self.origin
        if origin is None:
            return ()
        root, by_a, by_b = origin.root, origin.meetings, {m.event_b: m for m in origin.meetings.values()}

        def silent(meetings: Mapping[int, Meeting], event: int) -> bool:
            if event not in meetings:
                return True
            passing = meetings[event].equal | meetings[event].differing
            return bool(passing & root.equal) and not passing & root.differing

        return tuple(
            (store, frozenset(store.behind([start], partial(silent, meetings))))
            for store, start, meetings in (
                (origin.store_a, root.event_a, by_a),
                (origin.store_b, root.event_b, by_b),
            )
        )

    @cached_property
    def chain(self) -> tuple[Op, ...]:
        """The root, what the difference is first seen in, and the ops behind them that one run alone has."""
        if self.origin is None:
            return ()
        behind = (
            store.ops[event][0] for store, events in self.alone for event in sorted(events, reverse=True)
        )
        return (self.origin.root.a.op, self.origin.seen.a.op, *behind)

    @cached_property
    def names(self) -> frozenset[str]:
        """Functions of the chain, without the namespace of `torch.ops`."""
        return frozenset(op.function.removeprefix("aten.") for op in self.chain)

    def behind(self, steps: int = 12) -> frozenset[str]:
        """Functions up to so many steps behind the root, in run B."""
        origin = self.origin
        if origin is None:
            return frozenset()
        return _walk(origin.store_b.sources, origin.store_b.ops, [origin.root.event_b], steps)

    def after(self, steps: int = 12) -> frozenset[str]:
        """Functions up to so many steps after the root and what it is first seen in, in run B."""
        origin = self.origin
        if origin is None:
            return frozenset()
        start = [origin.root.event_b, origin.seen.event_b]
        return _walk(origin.store_b.made_from, origin.store_b.ops, start, steps)

    @property
    def pooled(self) -> bool:
        """Whether the result holds one vector a sample rather than one a token."""
        names = self.session.shared
        for result in self.compared.gaps:
            if not result.gap.differing or not len(result.pairs):
                continue
            if result.name.split(" ")[0] == "loss":
                continue
            _, position = names.place(result.pairs, 0)
            counts = len(result.pairs.distinct)
            samples = max(len(self.session.pairing.pairs), 1)
            return position is None or counts <= samples < self._tokens
        return False

    @property
    def _tokens(self) -> int:
        return sum(int(c.valid.sum()) for entry in self.session.a.run.layout.calls for c in entry.values())

    @property
    def packed(self) -> bool:
        """Whether a row of either run holds several samples."""
        for traced in (self.session.a, self.session.b):
            for entry in traced.run.layout.calls:
                for c in entry.values():
                    if c.sample.dim() == 2 and any(len(set(row[row >= 0].tolist())) > 1 for row in c.sample):
                        return True
        return False

    @cached_property
    def attends(self) -> bool:
        """Whether the difference is first seen in attention: in its weights, or in a mask for them."""
        origin = self.origin
        if origin is None:
            return False
        label = origin.seen.a.label
        if self.names & _ATTENTION or (label is not None and label.k is not None):
            return True
        follows = self.after(4)
        return bool(
            origin.seen.a.op.function in _MASKING | {"add", "mul"}
            and follows & (_ATTENTION | {"softmax"})
            and (label is None or origin.root.a.value.dtype == torch.bool)
        )

    @cached_property
    def sees_other_keys(self) -> bool:
        """Whether a query sees other keys in one run than in the other, as far as its attention can be read."""
        return self.origin is not None and bool(sees_other_keys(self.session, self.origin))

    @cached_property
    def reads_others(self) -> bool:
        """Whether what only one run has reaches a shared token, in the end or at the origin itself."""
        if self.content is not None and self.content.leaks:
            return True
        return self.origin is not None and reads_others(self.session, self.origin)

    @cached_property
    def decisions(self) -> frozenset[str]:
        """Functions that made the choices (whole numbers, masks) by which the difference enters, in run B."""
        origin = self.origin
        if origin is None:
            return frozenset()
        store, root, seen = origin.store_b, origin.root.event_b, origin.seen.event_b
        between = store.reached([root]) & (store.behind([seen]) | {seen})
        start = {root, seen} | self.alone[1][1] | between

        def decides(event: int) -> bool:
            return event in store.kept and _is_whole(store.kept[event].value)

        found = store.behind(start, decides) | {event for event in start if decides(event)}
        return frozenset(store.ops[event][0].function.removeprefix("aten.") for event in found)

    @property
    def several_calls(self) -> bool:
        return len(self.session.a.run.calls) > 1 or len(self.session.b.run.calls) > 1

    @property
    def given_cache(self) -> bool:
        return any(
            call.get(name) is not None
            for traced in (self.session.a, self.session.b)
            for call in traced.run.calls
            for name in ("past_key_values", "cache_params")
        )

    @property
    def averages(self) -> bool:
        """Whether the root, or what one run alone has behind it, reduces over several tokens or rows."""
        if self.origin is None:
            return False
        if self.origin.root.b.op.function in _AVERAGES and _mixes(
            self.origin.store_b, self.origin.root.event_b
        ):
            return True
        return any(
            store.ops[event][0].function in _AVERAGES and _mixes(store, event)
            for store, events in self.alone
            for event in events
        )


def _mixes(store: Store, event: int) -> bool:
    """Whether an op's output belongs to fewer coordinates than what it was made from."""
    output = _coordinates(store.kept[event].label) if event in store.kept else 0
    made_from = (store.kept[source] for source in store.sources.get(event, ()) if source in store.kept)
    return any(_coordinates(kept.label) > max(output, 1) for kept in made_from)


def _is_whole(value: Tensor) -> bool:
    if value.is_floating_point():
        return bool((value == value.round()).all())
    return not value.is_complex()


def _coordinates(label: object) -> int:
    ids = getattr(label, "q", None)
    return int(ids.size) if ids is not None else 0


def _walk(
    edges: dict[int, list[int]], ops: Mapping[int, tuple[Op, object]], start: list[int], steps: int
) -> frozenset[str]:
    found: set[str] = set()
    frontier, seen = list(start), set(start)
    for _ in range(steps):
        following: list[int] = []
        for event in frontier:
            if event in ops:
                found.add(ops[event][0].function.removeprefix("aten."))
            for other in edges.get(event, ()):
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        frontier = following
    return frozenset(found)


# ---------------------------------------------------------------------- tests


def _nan(case: Case) -> Mechanism | None:
    if not nan_in_one(case.compared):
        return None
    return Mechanism(
        "nan", False, "NaN reaches a token of one run alone",
        "Find the row that is masked entirely (a softmax over nothing gives NaN), or the overflow that makes "
        "it; keep at least one key in every row, or mask with a finite minimum.",
    )  # fmt: skip


def nan_in_one(compared: ResultComparison) -> bool:
    """Whether a result is NaN, at a shared coordinate, in one run alone."""
    return any(result.gap.nan_in_one for result in compared.gaps)


def _int8_outliers(case: Case) -> Mechanism | None:
    library = any(op.function.startswith("bitsandbytes.") for op in case.chain)
    emulated = (
        case.root is not None
        and case.names & {"any", "nonzero"}
        and (case.names | case.behind(4)) & _COMPARISONS
    )
    if not library and not (emulated and _QUANTISING & (case.after() | case.behind())):
        return None
    return Mechanism(
        "int8_outliers", True, "an outlier in another row makes the int8 matrix product treat a whole column in "
        "higher precision for every token",
        "This is how mixed int8 decomposition works. Use another quantisation (per-token scales, int8_threshold=0, "
        "nf4), or compare with the quantisation off.",
    )  # fmt: skip


def _dynamic_scale(case: Case) -> Mechanism | None:
    root = case.root
    if (
        root is None
        or not case.names & _EXTREMES
        or not _QUANTISING & (case.after(8) | case.names) | _to_narrow(case)
    ):
        return None
    scale = _scale_of(case)
    whole = scale is None or scale.numel() == 1
    if whole:
        return Mechanism(
            "dynamic_scale", True, "one scale for a whole tensor is taken from every row of the batch, so each row's "
            "rounding depends on the others",
            "Use a scale per token (or a static one) where rows must not depend on each other.",
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


def _expert_capacity(case: Case) -> Mechanism | None:
    root = case.root
    if root is None:
        return None
    limited = (_COMPARISONS | {"topk"}) & case.decisions
    if not (_ROUTING & case.decisions and {"cumsum", "argsort", "sort"} & case.decisions and limited):
        return None
    if not _others(case.session) or not case.reads_others:
        return None
    return Mechanism(
        "expert_capacity", True, "an expert takes a limited number of tokens of the batch, so which tokens it takes "
        "depends on the other rows",
        "This is how capacity-limited experts work. Raise the capacity factor, or evaluate without dropping tokens.",
    )  # fmt: skip


def _batch_statistics(case: Case) -> Mechanism | None:
    root = case.root
    if root is None:
        return None
    norm = case.names & _STATISTICS
    averaged = case.names & (_AVERAGES | {"softmax"}) and not case.pooled and not case.attends
    if not norm and not averaged:
        return None
    spread = "softmax" in case.names and root.a.label is not None and root.a.label.k is None
    if not norm and not spread and not case.averages:
        return None
    if _others(case.session) and not case.reads_others:
        return None
    return Mechanism(
        "batch_statistics", True, "statistics are taken over several tokens or rows, padding or batch mates among them",
        "Run such models on rows of one length, one at a time, or with a normalisation that sees one token "
        "(or put the module in eval mode, if it is a batch norm).",
    )  # fmt: skip


def _pooling(case: Case) -> Mechanism | None:
    root = case.root
    if root is None or not case.pooled or case.several_calls:
        return None
    pairs = root.pairs
    _, position = case.session.shared.place(pairs, 0) if len(pairs) else (None, None)
    vector = pairs.by_sample or (position is None and root.a.label is not None)
    weights = (
        "softmax" in case.names and root.a.label is not None and root.a.label.k is None and not case.attends
    )
    if not (vector or weights or (case.names & _SELECTIONS and not case.attends)):
        return None
    return Mechanism(
        "pooling", False, "the tokens of a sample are pooled together with its padding, or the wrong token is taken",
        "Pool with the attention mask: sum(x * mask) / sum(mask), or take the last real token of each row.",
    )  # fmt: skip


def _length_dependent_rope(case: Case) -> Mechanism | None:
    root = case.root
    if root is None or not {"cos", "sin"} & (case.after(20) | case.names):
        return None
    value = root.a.value
    table = value.dtype.is_floating_point and root.a.label is None
    longest = not value.dtype.is_floating_point and bool(case.names & (_EXTREMES | {"argmax", "numel"}))
    unmet = [
        op for op in case.chain[2:] if op.function in ("pow", "reciprocal", "div", "mul", "tensor", "where")
    ]
    if not table and not longest and not (unmet and value.dtype.is_floating_point):
        return None
    return Mechanism(
        "length_dependent_rope", True, "the rotary table is chosen by the longest row (dynamic NTK, LongRoPE), so a "
        "token's rotation depends on the others' length",
        "Compare runs whose longest row is on the same side of the original context length, or fix the table "
        "(rope_scaling of type linear or yarn).",
    )  # fmt: skip


def _position_ids(case: Case) -> Mechanism | None:
    root, origin = case.root, case.origin
    if root is None or origin is None:
        return None
    value = root.a.value
    whole = value.dtype.is_floating_point and root.a.op.function in ("float", "to", "type", "double")
    if whole:  # an integer that was just made a number to compute with
        whole = bool((value == value.round()).all())
    integer = whole or not (
        value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool
    )
    if _looks_up_otherwise(case, origin):  # token ids are equal, or the verdict would be another
        return _POSITIONS
    given = root.a.op.is_input and not root.a.op.module
    if not integer or case.sees_other_keys or (given and "position" not in root.a.op.function):
        return None
    follows = case.after(20) | {origin.seen.a.op.function}
    if (
        not follows & {"embedding", "cos", "sin", "getitem", "index_select", "mul"}
        or case.behind(6) & _ROUTING
    ):
        return None
    return _POSITIONS


def _looks_up_otherwise(case: Case, origin: Origin) -> bool:
    """Whether an embedding looks up other rows, in the call at hand, which are not those of the tokens given."""
    if "embedding" in (origin.root.a.op.function, origin.seen.a.op.function):
        return True
    calls = origin.root.a.event.call, origin.root.b.event.call
    return any(
        store.ops[event][0].function == "embedding"
        and store.ops[event][1].call == call
        and not _of_the_call(store, event)
        for call, (store, events) in zip(calls, case.alone, strict=True)
        for event in events
    )


def _of_the_call(store: Store, event: int) -> bool:
    """Whether what an event was made from first is an input of the model as it was given, or a view of it."""
    while store.sources.get(event):
        event = store.sources[event][0]
        op, record = store.ops[event]
        if op.is_input and not op.module:
            return True
        if record.status != "view":
            return False
    return False


_POSITIONS = Mechanism(
    "position_ids", False, "the same token is given another position in the two runs",
    "Pass position_ids made from the mask: (mask.cumsum(-1) - 1).clamp(min=0).",
)  # fmt: skip


def _packing(case: Case) -> Mechanism | None:
    if not case.packed:
        return None
    return Mechanism(
        "packing", False, "tokens of one packed sample reach another sample of the same row",
        "Give the attention a block-diagonal mask (or cu_seqlens), and reset convolutions and states at each sample.",
    )  # fmt: skip


def _cache_state(case: Case) -> Mechanism | None:
    if not case.several_calls and not case.given_cache:
        return None
    return Mechanism(
        "cache_state", False, "what was cached is not what a full forward computes for the same tokens",
        "Check that the cache is fresh for each sequence, that positions go on from its length, and that its mask "
        "covers the cached tokens.",
    )  # fmt: skip


def _attention_mask(case: Case) -> Mechanism | None:
    if not case.sees_other_keys:
        return None
    return Mechanism(
        "attention_mask", False, "a token attends to keys that it should not see, or misses keys that it should",
        "Pass the attention mask that the tokenizer returned, and check its window and offset.",
    )  # fmt: skip


def _others(session: Session) -> bool:
    """Whether either run has rows or columns that the other lacks."""
    return bool(session.pairing.only_a or session.pairing.only_b) or _has_padding(session)


def _padding_leak(case: Case) -> Mechanism | None:
    if not _others(case.session) or not case.reads_others:
        return None
    ignored = _given_a_mask(case)
    return Mechanism(
        "padding_leak", False if ignored else None,
        "what sits in the padding (or in another row) reaches a real token"
        + (", though the module is given a mask" if ignored else ""),
        "Set padded positions to zero before the layer that mixes positions, or run rows without padding.",
    )  # fmt: skip


def _has_padding(session: Session) -> bool:
    return any(
        bool((~c.valid).any())
        for traced in (session.a, session.b)
        for entry in traced.run.layout.calls
        for c in entry.values()
    )


def _given_a_mask(case: Case) -> bool:
    """Whether the module of the root, or one around it, is called with a mask."""
    if case.origin is None:
        return False
    module = case.session.a.trace.plain(case.origin.seen.a.op.module)
    for op in case.session.b.trace.ops:
        path = case.session.b.trace.plain(op.module)
        around = not path or module == path or module.startswith(f"{path}.")
        if op.is_input and "mask" in op.function and around:
            return True
    return False


_TESTS: tuple[Callable[[Case], Mechanism | None], ...] = (
    _nan,
    _int8_outliers,
    _dynamic_scale,
    _expert_capacity,
    _packing,
    _length_dependent_rope,
    _position_ids,
    _pooling,
    _batch_statistics,
    _attention_mask,
    _cache_state,
    _padding_leak,
)
"""In the order in which they are asked: the more special first."""

TWO_FUNCTIONS = Mechanism(
    None, None, "the two runs compute different functions of the same inputs",
    "Look at the origin: what it is called with, and which code runs it, differs between the runs.",
)  # fmt: skip


def recognise(case: Case) -> Mechanism:
    """The known cause that explains a semantic difference; `TWO_FUNCTIONS` if none does."""
    for test in _TESTS:
        found = test(case)
        if found is not None:
            return found
    return TWO_FUNCTIONS


ROUNDING_ADVICE = {
    "reduction_order": "Nothing is wrong. To get the same bits, run rows in the same shapes, or with kernels whose sums "
    "do not depend on the shape.",
    "kernel_choice": "Nothing is wrong. To get the same bits, make both runs take the same kernel (the same attention "
    "implementation, a mask in both or in neither).",
    "low_precision": "Nothing is wrong; the gap is what the narrower dtype costs. Use the wider one where it matters.",
}
"""What to do about each kind of rounding."""


def known_slugs() -> Iterable[str]:
    """All slugs that a verdict can have."""
    return (*ROUNDING_ADVICE, "nan", "int8_outliers", "dynamic_scale", "expert_capacity", "packing",
            "length_dependent_rope", "position_ids", "pooling", "batch_statistics", "attention_mask", "cache_state",
            "padding_leak", "labels", "token_ids", "parameters", "buffers", "quantization", "atomics",
            "random_state")  # fmt: skip
