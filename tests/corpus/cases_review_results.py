"""What is said of results: in containers and objects of any kind, by chance, of losses that padding enters, and in dtypes."""

from __future__ import annotations

import enum
import os
import random
import time
from collections import UserList, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .case import UNCHECKED, Pair, Side, case
from .cases_results import Reports, Trains, losses_agree, losses_differ
from .exact import outputs, picked
from .expect import (
    ATOMICS,
    FUNCTION,
    IDENTICAL,
    KERNEL,
    LEAK_EITHER,
    LOW_PRECISION,
    RANDOM,
    SOUND,
    UNDETERMINED,
    UNKNOWN_CHANCE,
)
from .modules import Tagger, seeded
from .pairs import padded, twice
from .tokens import row, words

Made = Callable[[Tensor], Any]

# ---------------------------------------------------------------------- 53: what containers and objects hold


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    """An object that keeps what it holds in a slot, with a link back to itself."""

    __slots__ = ("itself", "scores")

    def __init__(self, scores: Tensor) -> None:
        self.itself, self.scores = self, scores


class Listed(list[Any]):
    """A list with something more to it."""


def _listed(hidden: Tensor) -> Listed:
    made = Listed(["text"])
    made.scores = hidden  # type: ignore[attr-defined]
    return made


def _objects(hidden: Tensor) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = hidden
    return array


HELD: dict[str, tuple[Made, Made]] = {
    "deque": (lambda h: deque([h]), lambda h: deque([2 * h])),
    "sequence": (lambda h: UserList([h]), lambda h: UserList([2 * h])),
    "namespace": (lambda h: SimpleNamespace(of=[h]), lambda h: SimpleNamespace(of=[2 * h])),
    "slots": (Slotted, lambda h: Slotted(2 * h)),
    "list-attribute": (_listed, lambda h: _listed(2 * h)),
    "array-of-objects": (_objects, lambda h: _objects(2 * h)),
    "distribution": (
        lambda h: torch.distributions.Normal(h, 1.0, validate_args=False),
        lambda h: torch.distributions.Normal(2 * h, 1.0, validate_args=False),
    ),
    "set": (lambda _: {1, 2}, lambda _: {1, 3}),
    "set-of-texts": (lambda _: {"a", "b"}, lambda _: {"a", "c"}),
    "enum": (lambda _: Colour.RED, lambda _: Colour.BLUE),
}
"""By what holds it: what two models return besides the same logits."""


def _returning(made: Made) -> Reports:
    return Reports(lambda hidden, _: made(hidden))


def _two(a: Made, b: Made) -> Pair:
    given = {"input_ids": row(words(6)), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    return Pair(*(Side(_returning(made), given, _logits) for made in (a, b)))


def _logits(found: list[Any]) -> Tensor:
    return found[0]["logits"]


def _of(pair: Pair) -> list[Any]:
    return [_plain(outputs(side)[0]["more"]) for side in (pair.a, pair.b)]


def _plain(value: Any) -> Any:
    """What something holds, in lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (set, str, enum.Enum)):
        return value
    if isinstance(value, Slotted):
        return value.scores.tolist()
    if isinstance(value, torch.distributions.Normal):
        return value.mean.tolist()
    if hasattr(value, "__dict__") and not isinstance(value, UserList):
        return [*([] if not isinstance(value, list) else value), *map(_plain, vars(value).values())]
    return [_plain(item) for item in value]


def more_is_other(pair: Pair) -> None:
    a, b = _of(pair)
    assert a != b


def more_is_equal(pair: Pair) -> None:
    a, b = _of(pair)
    assert a == b


for _name, (_one, _other) in HELD.items():

    @case(
        f"53-in-{_name}",
        f"Two models whose logits are the same, and that return other things: {_name}",
        FUNCTION,
        truth=UNCHECKED,
        check=more_is_other,
    )
    def _(one: Made = _one, other: Made = _other) -> Pair:
        return _two(one, other)

    @case(
        f"53-in-{_name}-same",
        f"Two models that return the same logits and the same of: {_name}",
        IDENTICAL,
        truth=UNCHECKED,
        check=more_is_equal,
    )
    def _(one: Made = _one) -> Pair:
        return _two(one, one)


def _calls_agree(pair: Pair) -> None:
    a, b = (outputs(side)[0]["more"]() for side in (pair.a, pair.b))
    assert a is None or not torch.equal(a, b)


@case(
    "53-in-closure",
    "Two models whose logits are the same, and that return functions which give other tensors",
    UNDETERMINED,
    truth=UNCHECKED,
    check=_calls_agree,
)
def _() -> Pair:
    return _two(lambda h: lambda: h, lambda h: lambda: 2 * h)


@case(
    "53-in-closure-empty",
    "Two models whose logits are the same, and that return functions which hold nothing",
    IDENTICAL,
    truth=UNCHECKED,
    check=_calls_agree,
)
def _() -> Pair:
    return _two(lambda _: lambda: None, lambda _: lambda: None)


# ---------------------------------------------------------------------- 53: where chance comes from


class Scaled(nn.Module):
    """Multiplies by a number that it is told each time."""

    def __init__(self, number: Callable[[], float]) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden * (1 + self.number())


class Holds(nn.Module):
    """Multiplies by what it draws from a generator of its own, which is put back with the rest of the model."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden * (1 + float(self.generator.random()))


@torch.library.custom_op("forkpoint_corpus::shuffled_sum", mutates_args=())
def shuffled_sum(x: Tensor) -> Tensor:
    """The sum over the last dimension, in another order each time: a kernel with atomics."""
    order = sorted(range(x.shape[-1]), key=lambda _: os.urandom(4))
    total = torch.zeros_like(x[..., 0])
    for index in order:
        total = total + x[..., index]
    return total


@shuffled_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x[..., 0])


class Atomic(nn.Module):
    """Adds a sum that is taken by `shuffled_sum`."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + shuffled_sum(hidden)[..., None]


def _repeats_with_all_seeds(pair: Pair) -> None:
    def seeded_run() -> Tensor:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002  (what a model draws from)
        return picked(pair.a, seed=3)

    assert torch.equal(seeded_run(), seeded_run())
    assert not torch.equal(picked(pair.a, seed=3), picked(pair.a, seed=3))


def _never_repeats(pair: Pair) -> None:
    random.seed(3)
    first = picked(pair.a, seed=3)
    random.seed(3)
    assert not torch.equal(first, picked(pair.a, seed=3))


def _of_numbers(number: Callable[[], float]) -> Pair:
    return twice(seeded(Tagger, Scaled(number)))


@case("53-chance-python", "A number from Python's random", RANDOM, check=_repeats_with_all_seeds)
def _() -> Pair:
    return _of_numbers(random.random)


@case("53-chance-numpy", "A number from NumPy's global generator", RANDOM, check=_repeats_with_all_seeds)
def _() -> Pair:
    return _of_numbers(lambda: float(np.random.rand(1)[0]))  # noqa: NPY002  (as above)


@case("53-chance-clock", "A number that is the time", UNKNOWN_CHANCE, check=_never_repeats)
def _() -> Pair:
    return _of_numbers(lambda: time.perf_counter() % 1)


@case("53-chance-counter", "A number that counts calls", UNKNOWN_CHANCE, check=_never_repeats)
def _() -> Pair:
    calls: list[int] = []

    def count() -> float:
        calls.append(1)
        return float(len(calls))

    return _of_numbers(count)


@case("53-chance-op", "An op that adds in another order each time", ATOMICS, check=_never_repeats)
def _() -> Pair:
    return twice(seeded(Tagger, Atomic()))


@case("53-chance-held", "Generators of Python and NumPy that the model holds", IDENTICAL)
def _() -> Pair:
    return twice(seeded(Tagger, Holds(random.Random(1)), Holds(np.random.default_rng(1))))


# ---------------------------------------------------------------------- 53: an op in a narrower dtype, in one run


class Through(nn.Module):
    """Passes its values through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + self.function(hidden)


def _through(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor]) -> Pair:
    return twice(seeded(Tagger, Through(a)), seeded(Tagger, Through(b)))


@case("53-dtype-of-one-op", "A sine that one of two models takes in bfloat16", LOW_PRECISION)
def _() -> Pair:
    return _through(torch.sin, lambda h: h.bfloat16().sin().float())


@case(
    "53-dtype-by-casts",
    "Two models, one of which rounds its values to float16 and back",
    LOW_PRECISION,
)
def _() -> Pair:
    return _through(lambda h: h * 2, lambda h: h.half().float() * 2)


@case("53-dtype-of-none", "A mean that one of two models takes as a product and a sum", KERNEL)
def _() -> Pair:
    return _through(
        lambda h: h.mean(-1, keepdim=True), lambda h: (h * (1 / h.shape[-1])).flip(-1).sum(-1, keepdim=True)
    )


@case("53-dtype-of-both", "Two forms of a sum, both in bfloat16", KERNEL)
def _() -> Pair:
    return _through(
        lambda h: h.bfloat16().sum(-1, keepdim=True).float(),
        lambda h: h.bfloat16().unflatten(-1, (2, -1)).sum(-1).sum(-1, keepdim=True).float(),
    )


# ---------------------------------------------------------------------- 53: losses that padding's own terms enter


def _each(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits.transpose(1, 2), ids, reduction="none")


def _by_mask(terms: Tensor, mask: Tensor) -> Tensor:
    return (terms * mask).sum() / mask.sum()


@case(
    "53-loss-mean",
    "The mean of all terms, padding's own too",
    LEAK_EITHER,
    truth=UNCHECKED,
    check=losses_differ,
)
def _() -> Pair:
    return padded(Trains(lambda logits, ids, _: _each(logits, ids).mean()))


@case(
    "53-loss-regulariser",
    "A mean over real tokens, and a mean of squares over padding, too",
    LEAK_EITHER,
    truth=UNCHECKED,
    check=losses_differ,
)
def _() -> Pair:
    return padded(
        Trains(lambda logits, ids, mask: _by_mask(_each(logits, ids), mask) + logits.square().mean())
    )


@case("53-loss-by-mask", "The same by the mask", *SOUND, check=losses_agree)
def _() -> Pair:
    return padded(
        Trains(
            lambda logits, ids, mask: (
                _by_mask(_each(logits, ids), mask) + _by_mask(logits.square().mean(-1), mask)
            )
        )
    )
