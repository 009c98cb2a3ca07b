"""The audit of a model: has a token the same bits alone, padded, in a batch, and from a cache?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forkpoint.auditing.functions import Outputs, distances, equal, first_tensor, tensors_of
from forkpoint.auditing.record import Audit, Break
from forkpoint.auditing.sizes import Deadline, first_change, thresholds
from forkpoint.comparison import compare
from forkpoint.errors import ForkpointError, InputError
from forkpoint.questions.cache import check_decodes, stepwise
from forkpoint.questions.choices import Side
from forkpoint.questions.prompts import check_reads, padded
from forkpoint.runs.layout import Layout
from forkpoint.runs.modules import embeddings_of, innermost
from forkpoint.runs.returned import caches_in
from forkpoint.runs.run import Run
from forkpoint.support.equality import same_bits

Rows = list[list[int]]


@dataclass(frozen=True)
class Arrangement:
    """One way to run some tokens.

    Attributes:
        kind: what is varied.
        words: how this one does it, after "tokens".
        rows: token ids, those of the row that is looked at first.
        width: columns of the call.
        side: where padding is.
        split, chunk: tokens of the first call and of each later one; None for one call.
        places: where among the rows that row stands.
    """

    kind: str
    words: str
    rows: Rows
    width: int
    side: Side = "right"
    split: int | None = None
    chunk: int = 1
    places: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Variation:
    """A kind of layout, for a row of any length.

    Attributes:
        arranged: the layout of a row, by an amount: columns of padding, or rows of a batch.
        amount: that is tried; None where the layout has none.
        least: the amount with which it is the row alone.
        lengths: for which it is tried; None for all.
    """

    arranged: Callable[[list[int], int], Arrangement]
    amount: int | None = None
    least: int = 0
    lengths: frozenset[int] | None = None

    def of(self, row: list[int], amount: int | None = None) -> Arrangement:
        """The layout of a row."""
        return self.arranged(row, self.amount or 0 if amount is None else amount)


class Model:
    """A model, and random tokens for it.

    Args:
        model: a language model.
        longest: most tokens of a row.
        seed: of the tokens.
    """

    def __init__(self, model: Any, longest: int, seed: int) -> None:
        self.model = model
        self._longest = longest
        self._vocabulary = _vocabulary(model)
        self._seed = seed

    def row(self, length: int, which: int = 0) -> list[int]:
        """Token ids; of one `which`, the shorter row is the beginning of the longer."""
        generator = torch.Generator().manual_seed(self._seed * 1009 + which)
        drawn = torch.randint(self._vocabulary // 2, self._vocabulary, (self._longest,), generator=generator)
        return drawn[:length].tolist()

    def calls(self, layout: Arrangement) -> list[dict[str, Any]]:
        """The inputs of each call of a layout."""
        made = padded(self.model, layout.rows, layout.width, pad=0, side=layout.side)
        if layout.split is None:
            inputs = dict(made.inputs)
            if bool(made.mask.all()) and len(layout.rows) == 1:
                inputs.pop("attention_mask", None)
            return [inputs]
        return stepwise(self.model, made, layout.split, layout.chunk, "dynamic")

    def made(self, layout: Arrangement) -> Outputs:
        """What the model returns for the row, wherever it stands: `[tokens, …]` each."""
        parts: list[Tensor] = []
        cache: dict[str, Any] = {}
        with torch.inference_mode():
            for call in self.calls(layout):
                output = self.model(**call, **cache)
                parts.append(first_tensor(output).clone())
                if layout.split is not None:
                    cache = caches_in(output, self.model)
            length, whole = len(layout.rows[0]), torch.cat(parts, 1)
        start = whole.shape[1] - length if layout.side == "left" else 0
        return tuple(whole[place, start : start + length] for place in layout.places)

    def holds(self, layout: Arrangement) -> bool:
        """Whether the row has the bits that it has alone."""
        (alone,) = self.made(_alone(layout.rows[layout.places[0]]))
        return all(same_bits(one, alone) for one in self.made(layout))

    def run(self, layout: Arrangement, name: str, place: int = 0) -> Run:
        """The same for `compare`, where the row at one place is the sample 0, as the row alone is."""
        calls = self.calls(layout)
        tokens = None
        if place:
            mask = torch.zeros(len(layout.rows), layout.width, dtype=torch.long)
            for index, row in enumerate(layout.rows):
                mask[index, slice(-len(row), None) if layout.side == "left" else slice(len(row))] = 1
            samples = [place, *range(1, len(layout.rows))]
            samples[place] = 0
            tokens = Layout.from_mask(mask, samples=samples)
        return Run(self.model, calls if len(calls) > 1 else calls[0], layout=tokens, name=name)


def audit_model(name: str, model: Any, *, longest: int, deadline: Deadline, seed: int) -> Audit:
    """Compare layouts of rows of many lengths; see `audit`."""
    subject = Model(model, longest, seed)
    lengths = thresholds(longest, _edges(model), each=4, after=2)
    ways = list(_ways(subject, model, lengths))
    changing = _unrepeated(subject, lengths[-1])
    if changing is not None:
        return Audit(name, 1, (changing,), largest=lengths[-1])
    breaks: dict[str, Break] = {}
    count, unfinished, last, largest = 0, "", 0, 0
    for length in lengths:
        if deadline.over:
            unfinished = f"lengths from {length} on, for want of time"
            break
        row = subject.row(length)
        whole: Outputs | None = None
        for way in ways:
            layout = way.of(row)
            if (
                layout.kind in breaks
                or layout.split == 0
                or not (way.lengths is None or length in way.lengths)
            ):
                continue
            count, largest = count + 1, length
            whole = whole or subject.made(_alone(row))
            if not all(same_bits(one, whole[0]) for one in subject.made(layout)):
                held = last if way.lengths is None else 0
                breaks[layout.kind] = _break(subject, way, held, length, deadline, probes=not breaks)
        last = length
    return Audit(name, count, tuple(breaks.values()), unfinished=unfinished, largest=largest)


def _alone(row: list[int]) -> Arrangement:
    return Arrangement("alone", "alone", [row], len(row))


_PADDING, _MORE_PADDING = (1, 7, 64), (2, 3, 8, 15, 16, 17, 31, 32, 33, 63, 65, 127, 128, 129)
_BATCHES, _MORE_BATCHES = (2, 3, 8, 17), (4, 5, 6, 7, 9, 12, 15, 16, 24, 31, 32, 33)
"""Amounts that are tried for every length, and those that are tried for one."""
_LAST = 3
"""Tokens that come one by one from a cache."""


def _ways(subject: Model, model: Any, lengths: Sequence[int]) -> Iterator[Variation]:
    """Each way to lay out a row."""
    decodes = _is_decoder(model)
    short = [length for length in lengths if length <= 9] or lengths[:1]

    def one(index: int) -> frozenset[int]:
        return frozenset([short[index % len(short)]])

    def batch(row: list[int], size: int) -> Arrangement:
        others = [subject.row(len(row), which) for which in range(1, size)]
        words = f"in a batch of {size}"
        if size < 3:
            return Arrangement("batch", words, [*others, row], len(row), places=(size - 1,))
        return Arrangement("batch", words, [row, *others[1:], row], len(row), places=(0, size - 1))

    for side in ("right", "left") if decodes else ("right",):

        def padded_by(row: list[int], more: int, side: Side = side) -> Arrangement:
            words = f"with {more} columns of padding on the {side}"
            if more == 1:
                words = f"with 1 column of padding on the {side}"
            kind = "left padding" if side == "left" else "right padding"
            return Arrangement(kind, words, [row], len(row) + more, side)

        yield from (Variation(padded_by, more) for more in _PADDING)
        yield from (
            Variation(padded_by, more, lengths=one(index)) for index, more in enumerate(_MORE_PADDING)
        )
    yield from (Variation(batch, size, 1) for size in _BATCHES)
    yield from (Variation(batch, size, 1, lengths=one(index)) for index, size in enumerate(_MORE_BATCHES))
    if not decodes:
        return

    def steps(row: list[int], _: int) -> Arrangement:
        words = "with the last ones one by one from a cache"
        return Arrangement("steps", words, [row], len(row), split=_first(row))

    def batched_steps(row: list[int], size: int) -> Arrangement:
        others = [subject.row(len(row), which) for which in range(1, size)]
        words = f"with the last ones one by one from a cache, in a batch of {size}"
        return Arrangement("steps", words, [row, *others], len(row), split=_first(row))

    yield Variation(steps)
    yield Variation(batched_steps, 2, 1)
    yield from (
        Variation(batched_steps, size, 1, lengths=frozenset(lengths[2 + index :: len(_MORE_BATCHES)]))
        for index, size in enumerate(_MORE_BATCHES)
    )
    yield Variation(
        lambda row, _: Arrangement(
            "chunks",
            "in two calls",
            [row],
            len(row),
            split=len(row) // 2,
            chunk=max(1, len(row) - len(row) // 2),
        )
    )


def _first(row: list[int]) -> int:
    """Tokens of the first call, if the last ones come one by one; 0 for a row that is too short."""
    return max(min(1, len(row) - 1), len(row) - _LAST)


def _unrepeated(subject: Model, length: int) -> Break | None:
    """Where a row has other bits when it is run again: what a layout does can't be told then."""
    layout = _alone(subject.row(length))
    made, again = subject.made(layout), subject.made(layout)
    if equal(made, again):
        return None
    words = f"{length} tokens have other bits when they are run again"
    return Break(
        "again",
        length,
        length,
        words,
        *distances(made, again),
        op=_first_op(subject, layout, layout, 0, probes=True),
    )


def _break(
    subject: Model, way: Variation, held: int, broke: int, deadline: Deadline, *, probes: bool
) -> Break:
    """The smallest length that breaks, between one that held and one that broke, the least amount, and where it first shows."""
    holding = {held: True, broke: False}

    def same(below: int, middle: int) -> bool:
        del below
        layout = way.of(subject.row(middle))
        holding[middle] = deadline.over or layout.split == 0 or subject.holds(layout)
        return holding[middle]

    size = first_change(same, held, broke)[1]
    size = size if holding.get(size) is False else broke
    row = subject.row(size)
    amount = way.amount
    if amount is not None:
        amount = first_change(
            lambda _, middle: deadline.over or subject.holds(way.of(row, middle)), way.least, amount
        )[1]
        if subject.holds(way.of(row, amount)):
            amount = way.amount
    layout, alone = way.of(row, amount), _alone(row)
    words = f"{size} tokens {layout.words} have other bits than alone"
    if size == 1:
        words = f"1 token {layout.words} has other bits than alone"
    (whole,) = subject.made(alone)
    made = subject.made(layout)
    differing = [
        (place, one) for place, one in zip(layout.places, made, strict=True) if not same_bits(one, whole)
    ]
    place, one = differing[0] if differing else (layout.places[0], made[0])
    op = _first_op(subject, alone, layout, place, probes=probes)
    return Break(layout.kind, size, size, words, *distances((whole,), (one,)), op=op)


def _first_op(
    subject: Model, alone: Arrangement, layout: Arrangement, place: int, *, probes: bool
) -> str | None:
    """The first operation that differs, with its place in the source; with probes, what replaying it says of kernels."""
    try:
        runs = subject.run(alone, "alone"), subject.run(layout, layout.words, place)
        result = compare(*runs, probes=probes)
    except ForkpointError:
        return None
    if result.first is None:
        return None
    ran = [one.text for one in result.verdict.evidence if one.name == "replay" and "kernel" in one.text]
    return f"{result.first.op} ({result.first.source}){'; ' + ran[0] if ran else ''}"


def _is_decoder(model: Any) -> bool:
    try:
        check_decodes(model)
    except InputError:
        return False
    return True


def _edges(model: Any) -> tuple[int, ...]:
    window = getattr(getattr(model, "config", None), "sliding_window", None)
    return (window,) if isinstance(window, int) else ()


def _vocabulary(model: Any) -> int:
    """How many tokens a model knows.

    Raises:
        InputError: it reads no text, or not text alone.
    """
    check_reads(innermost(model)[1])
    weight = getattr(embeddings_of(innermost(model)[1]), "weight", None)
    if not isinstance(weight, Tensor):
        raise InputError(
            f"a {type(model).__name__}, whose token ids have no embeddings of their own", "a language model"
        )
    return int(weight.shape[0])


def audit_engine(
    name: str, engine: Callable[[Sequence[Any]], Sequence[Any]], prompts: Sequence[Any], deadline: Deadline
) -> Audit:
    """Compare what an engine returns for prompts alone, in batches, in another order, and again; see `audit`."""

    def asked(order: Sequence[int]) -> list[Outputs]:
        made = engine([prompts[index] for index in order])
        return [tuple(value.clone() for value in tensors_of(one).values()) for one in made]

    alone = [asked([index])[0] for index in range(len(prompts))]
    breaks: dict[str, Break] = {}
    count, largest, unfinished = 0, 0, ""

    def tried(kind: str, words: str, order: list[int]) -> bool:
        nonlocal count, largest
        count, largest = count + 1, max(largest, len(order))
        for one, index in zip(asked(order), order, strict=True):
            if equal(one, alone[index]):
                continue
            if kind not in breaks:
                said = f"prompt {index} has other bits {words} than alone"
                breaks[kind] = Break(kind, len(order), 1, said, *distances(alone[index], one))
            return True
        return False

    for index in range(len(prompts)):
        if tried("again", "when it is asked again", [index]):
            break
    for size in thresholds(len(prompts)):
        if deadline.over:
            unfinished = f"batches of {size} and more, for want of time"
            break
        if size > 1 and tried("batch", f"in a batch of {size}", list(range(size))):
            break
    if not deadline.over:
        tried("order", "in a batch in the opposite order", list(range(len(prompts)))[::-1])
    return Audit(name, count, tuple(breaks.values()), unfinished=unfinished, largest=largest)
