"""The audit of a model: has a token the same bits alone, padded, in a batch, and from a cache?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forkpoint.auditing.functions import distance, equal, first_tensor
from forkpoint.auditing.record import Audit, Break
from forkpoint.auditing.sizes import Deadline, first_change, thresholds
from forkpoint.comparison import compare
from forkpoint.errors import ForkpointError, InputError
from forkpoint.questions.cache import check_decodes, stepwise
from forkpoint.questions.prompts import check_reads, padded
from forkpoint.runs.modules import embeddings_of, innermost
from forkpoint.runs.returned import caches_in
from forkpoint.runs.run import Run

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
    """

    kind: str
    words: str
    rows: Rows
    width: int
    side: Any = "right"
    split: int | None = None
    chunk: int = 1


Way = Callable[[list[int]], Arrangement]
"""A layout for a row of any length."""


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

    def made(self, layout: Arrangement) -> Tensor:
        """What the model returns for the first row: `[tokens, …]`."""
        parts: list[Tensor] = []
        cache: dict[str, Any] = {}
        with torch.inference_mode():
            for call in self.calls(layout):
                output = self.model(**call, **cache)
                parts.append(first_tensor(output)[0])
                if layout.split is not None:
                    cache = caches_in(output, self.model)
        length, whole = len(layout.rows[0]), torch.cat(parts)
        return whole[len(whole) - length :] if layout.side == "left" else whole[:length]

    def run(self, layout: Arrangement, name: str) -> Run:
        """The same for `compare`."""
        calls = self.calls(layout)
        return Run(self.model, calls if len(calls) > 1 else calls[0], name=name)


def audit_model(name: str, model: Any, *, longest: int, deadline: Deadline, seed: int) -> Audit:
    """Compare layouts of rows of many lengths; see `audit`."""
    subject = Model(model, longest, seed)
    ways = list(_ways(subject, model))
    lengths = thresholds(longest, _edges(model), each=4)
    breaks: dict[str, Break] = {}
    count, unfinished, last = 0, "", 0
    for length in lengths:
        if deadline.over:
            unfinished = f"lengths from {length} on, for want of time"
            break
        whole = subject.made(_alone(subject.row(length)))
        for way in ways:
            layout = way(subject.row(length))
            if layout.kind in breaks or layout.split == 0:
                continue
            count += 1
            if not equal(subject.made(layout), whole):
                breaks[layout.kind] = _break(subject, way, last, length, deadline, probes=not breaks)
        last = length
    return Audit(name, count, tuple(breaks.values()), unfinished=unfinished)


def _alone(row: list[int]) -> Arrangement:
    return Arrangement("alone", "alone", [row], len(row))


def _ways(subject: Model, model: Any) -> Iterator[Way]:
    """Each way to lay out a row, for every length."""
    for more in (1, 7, 64):
        for side in ("right", "left") if _is_decoder(model) else ("right",):
            yield lambda row, more=more, side=side: Arrangement(
                f"{side} padding",
                (
                    f"with {more} columns of padding on the {side}"
                    if more > 1
                    else f"with 1 column of padding on the {side}"
                ),
                [row],
                len(row) + more,
                side,
            )
    for size in (2, 3, 8, 17):
        yield lambda row, size=size: Arrangement(
            "batch",
            f"in a batch of {size}",
            [row, *(subject.row(len(row), one) for one in range(1, size))],
            len(row),
        )
    if _is_decoder(model):
        yield lambda row: Arrangement(
            "steps", "with the last one from a cache", [row], len(row), split=len(row) - 1
        )
        yield lambda row: Arrangement(
            "chunks",
            "in two calls",
            [row],
            len(row),
            split=len(row) // 2,
            chunk=max(1, len(row) - len(row) // 2),
        )


def _break(subject: Model, way: Way, held: int, broke: int, deadline: Deadline, *, probes: bool) -> Break:
    """The smallest length that breaks, between one that held and one that broke, and where it first shows."""

    def holds(length: int) -> bool:
        row = subject.row(length)
        layout = way(row)
        return layout.split == 0 or equal(subject.made(layout), subject.made(_alone(row)))

    known = {held: True, broke: False}

    def same(below: int, middle: int) -> bool:
        del below
        known[middle] = deadline.over or holds(middle)
        return known[middle]

    size = first_change(same, held, broke)[1]
    size = size if known.get(size) is False else broke
    row = subject.row(size)
    layout, alone = way(row), _alone(row)
    words = f"{size} tokens {layout.words} have other bits than alone"
    if size == 1:
        words = f"1 token {layout.words} has other bits than alone"
    op = _first_op(subject, alone, layout, probes=probes)
    figures = distance(subject.made(alone), subject.made(layout))
    return Break(layout.kind, size, size, words, *figures, op=op)


def _first_op(subject: Model, alone: Arrangement, layout: Arrangement, *, probes: bool) -> str | None:
    """The first operation that differs, with its place in the source; with probes, what replaying it says of kernels."""
    try:
        result = compare(subject.run(alone, "alone"), subject.run(layout, layout.words), probes=probes)
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
    alone = [first_tensor(next(iter(engine([prompt])))) for prompt in prompts]
    breaks: dict[str, Break] = {}
    count, unfinished = 0, ""

    def tried(kind: str, words: str, order: list[int]) -> bool:
        nonlocal count
        count += 1
        made = [first_tensor(one) for one in engine([prompts[index] for index in order])]
        for one, index in zip(made, order, strict=True):
            if equal(one, alone[index]):
                continue
            if kind not in breaks:
                said = f"prompt {index} has other bits {words} than alone"
                breaks[kind] = Break(kind, len(order), 1, said, *distance(alone[index], one))
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
    return Audit(name, count, tuple(breaks.values()), unfinished=unfinished)
