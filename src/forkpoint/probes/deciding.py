"""Decisions: what they are, and how to take note of a run's.

A *decision* is a call that makes something discrete of numbers that are not: a comparison with a threshold, the experts
that a token is routed to, the bucket that a quantiser rounds to, the columns that it sets aside. A change of one unit in
the last place moves it by a whole step, or not at all, so that what follows tells nothing of how large the change was.

`Noting` makes a run and notes each decision with what it was taken on. `Forcing` makes the other run, and has each
decision taken on the *first* run's values wherever both runs have them; what only this run has (padding, batch mates)
stays as it is. A decision that comes out as in the first run then differed by the rounding of its inputs alone; one that
does not was moved by what the first run lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from forkpoint.capture.functions import ALWAYS_VIEWS, Function
from forkpoint.capture.labels import Label
from forkpoint.capture.mode import transforms, writes
from forkpoint.capture.recorder import Recorder, Watcher
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import CallStack
from forkpoint.capture.trace import Trace
from forkpoint.match import Join, Shared
from forkpoint.match.align import pair_elements
from forkpoint.match.pairs import Pairs
from forkpoint.probes.watchers import elements_for
from forkpoint.support.memory import Shelf, Shelved, load

Key = tuple[str, str, str]
"""What names an op in every run: module, function, chain."""

STEPS = frozenset({
    "round", "round_", "floor", "floor_", "ceil", "ceil_", "trunc", "trunc_", "fix", "fix_", "sign", "sign_", "sgn",
    "floor_divide", "floor_divide_", "heaviside", "fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant", "remainder", "remainder_", "fmod",
})  # fmt: skip
"""Functions whose floating-point results go by steps."""
_NOT_OF_VALUES = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randint_like", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_tensor", "view", "embedding", "getitem", "setitem", "index_select",
})  # fmt: skip
"""Functions whose whole numbers are not made of the values that they are given."""


_DECIDING = frozenset({
    "gt", "ge", "lt", "le", "topk", "argmax", "argmin", "max", "min", "sort", "argsort", "bucketize", "searchsorted",
    "multinomial", "to", "int", "long", "char", "bool", "type", "kthvalue", "median", "mode",
}) | STEPS  # fmt: skip
"""Functions that make whole numbers or truths of values, where they are given some."""


def is_discrete(value: Tensor) -> bool:
    """Whether a tensor holds whole numbers, truths or steps of a quantiser."""
    return not (value.dtype.is_floating_point or value.dtype.is_complex) or value.dtype.itemsize == 1


def is_continuous(value: Tensor) -> bool:
    return not is_discrete(value)


def is_decision(function: Function, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether a finished call made something discrete of numbers that are not."""
    if function.name in _NOT_OF_VALUES or not any(map(is_continuous, inputs)):
        return False
    if function.name in _CASTS and is_whole(inputs[0]):
        return False  # counts, as of a histogram: there is nothing to be rounded
    return function.name in STEPS or any(map(is_discrete, outputs))


_KEEPS_DTYPE = ALWAYS_VIEWS | _NOT_OF_VALUES | {
    "add", "add_", "sub", "sub_", "mul", "mul_", "neg", "abs", "arange", "zeros", "ones", "full", "empty", "tril", "triu", "clone",
    "contiguous", "reshape", "flatten", "cat", "stack", "repeat", "repeat_interleave", "masked_fill", "masked_fill_", "roll", "flip",
    "gather", "pad",
}  # fmt: skip
"""Functions that make whole numbers of whole numbers alone, or of none."""


def may_decide(trace: Trace) -> bool:
    """Whether a run made any call that can be a decision, as far as the dtypes of its values tell."""
    return any(
        op.function in STEPS
        or (not (form.floating and _wide(form.dtype)) and op.function not in _KEEPS_DTYPE)
        for op, _, form, *_ in trace.rows
        if not op.is_boundary
    )


def _wide(dtype: str) -> bool:
    """Whether a dtype of floating-point numbers is none of a quantiser's steps.

    >>> _wide("bfloat16"), _wide("float8_e4m3fn")
    (True, False)
    """
    return not dtype.startswith("float8") and not dtype.startswith("float4")


_CASTS = frozenset({"to", "type", "int", "long", "short", "char"})


def is_whole(value: Tensor) -> bool:
    """Whether a tensor holds whole numbers, of whatever dtype."""
    return is_discrete(value) or bool((value == value.round()).all())


def decided_apart(join: Join) -> bool:
    """Whether a token is decided otherwise in the two runs, as far as their traces tell."""
    return any(
        row.differing > 0 and not row.floating and row.difference is not None and row.difference.position is not None
        and (row.op.function in _DECIDING or "." in row.op.function)
        for row in join.rows
    )  # fmt: skip


def of_library(function: Function) -> bool:
    """Whether a function is an operator that a library registered, all of whose results belong together."""
    return "." in function.name and not function.name.startswith("aten.")


@dataclass(eq=False)
class Input:
    """A floating-point tensor that a decision was taken on."""

    held: Tensor | Shelved
    label: Label | None

    @property
    def value(self) -> Tensor:
        return load(self.held)


@dataclass(frozen=True)
class Link:
    """An input of a decision of this run, and the same of the other run's that it was given the values of.

    Attributes:
        apart: how far these were from its own, at most.
    """

    index: int
    other: Decision
    pairs: Pairs
    apart: float = 0.0


@dataclass(eq=False)
class Decision:
    """One decision of a run.

    Attributes:
        key: the op, its module as both runs call it.
        call, nth: which of its passes.
        inputs: what it was taken on, by its index among the call's tensors.
        leaves, spec: what it returned; tensors are kept on a shelf.
        labels: of the tensors among the leaves.
        links: which of its inputs had values of the other run's.
    """

    key: Key
    call: int
    nth: int
    inputs: dict[int, Input]
    leaves: list[Any]
    spec: Any
    labels: tuple[Label | None, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def place(self) -> tuple[Key, int, int]:
        return self.key, self.nth, self.call

    @property
    def tensors(self) -> list[Tensor]:
        return [load(leaf) for leaf in self.leaves if isinstance(leaf, (Tensor, Shelved))]


class TooLargeError(Exception):
    """More decisions than there is room for."""


class UnheldError(Exception):
    """Decisions could not be held; the message says why."""


@dataclass
class Noting(Watcher):
    """Notes every decision of a run, in the order of execution.

    Attributes:
        trace: of the run, which says what both runs call a module.
        shelf, limit: where values are kept, and bytes that may be.
        under: another watcher, which changes or keeps what passes by.
        decisions: what was decided.
    """

    trace: Trace
    shelf: Shelf
    limit: int
    under: Watcher | None = None
    decisions: list[Decision] = field(default_factory=list[Decision])
    used: int = 0

    def make(
        self,
        recorder: Recorder,
        function: Function,
        place: CallStack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make a call of the model; what it returns is what the model goes on with."""
        if transforms() is not None or function.silent:
            return function.func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            given = tensors_in((args, tuple(kwargs.values())))
            if function.name in _NOT_OF_VALUES or not any(map(is_continuous, given)):
                given = []
        if not given:
            return function.func(*args, **kwargs)
        return self._decide(recorder, function, place, args, kwargs, given)

    def _decide(
        self, recorder: Recorder, function: Function, place: CallStack, args: tuple[Any, ...], kwargs: dict[str, Any],
        given: list[Tensor],
    ) -> Any:  # fmt: skip
        with torch._C.DisableTorchFunction():
            # what is written to is gone afterwards
            before = _inputs(recorder, given, copy=writes(function, kwargs) or of_library(function))
        result = function.func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            self._note(recorder, function, place, before, given, args, kwargs, result)
        return result

    def _note(
        self, recorder: Recorder, function: Function, place: CallStack, before: dict[int, tuple[Tensor, Label | None]],
        given: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any,
        links: Sequence[Link] = (),
    ) -> None:  # fmt: skip
        made = args[0] if writes(function, {}) else result
        leaves, spec = pytree.tree_flatten(made)
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not outputs or not is_decision(function, given, outputs):
            return
        module = self.trace.plain(recorder.tape.stack[-1].path)
        key = (module, function.name, place.site.chain)
        nth = recorder.tape.visits_of(function, place, 0).nth
        inputs = {i: Input(self._keep(value), label) for i, (value, label) in before.items()}
        copies = [self._keep(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        labels = _labels(recorder, function, place, args, kwargs, outputs)
        self.decisions.append(Decision(key, recorder.call, nth, inputs, copies, spec, labels, tuple(links)))

    def _keep(self, value: Tensor) -> Tensor | Shelved:
        self.used += value.nbytes
        if self.used > self.limit:
            raise TooLargeError
        return self.shelf.keep(value.detach().clone())

    # ------------------------------------------------------------------ the other watcher

    def edits(self, key: Key) -> bool:
        return self.under is not None and self.under.edits(key)

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        return None if self.under is None else self.under.edit(recorder, key, nth, output, value, label)

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        if self.under is not None:
            self.under.saw(recorder, event, value, label, inputs)


@dataclass
class Forcing(Noting):
    """Notes the decisions of a run that takes them on the values of another, where both have them.

    Attributes:
        others: the other run's decisions.
        shared: numbers the coordinates of the other run (as A) and of this one (as B).
        one_to_one: whether both runs make as many calls.
    """

    others: tuple[Decision, ...] = ()
    shared: Shared | None = None
    one_to_one: bool = True

    def __post_init__(self) -> None:
        self._by_key: dict[Key, list[Decision]] = {}
        for decision in self.others:
            self._by_key.setdefault(decision.key, []).append(decision)
        self._passes: dict[tuple[Key, int], Passes] = {}

    def _decide(
        self, recorder: Recorder, function: Function, place: CallStack, args: tuple[Any, ...], kwargs: dict[str, Any],
        given: list[Tensor],
    ) -> Any:  # fmt: skip
        key = (self.trace.plain(recorder.tape.stack[-1].path), function.name, place.site.chain)
        if key not in self._by_key:
            return super()._decide(recorder, function, place, args, kwargs, given)
        with torch._C.DisableTorchFunction():
            nth = recorder.tape.visits_of(function, place, 0).nth
            before = _inputs(recorder, given, copy=True)
            links = list(self._forced(key, recorder.call, nth, before))
            if not links:
                forced, more = args, kwargs
            else:
                new = {id(given[i]): value for i, (value, _) in before.items()}
                forced, more = _with(args, new), _with(kwargs, new)
                before = {i: (value.clone(), label) for i, (value, label) in before.items()}
        result = function.func(*forced, **more)
        with torch._C.DisableTorchFunction():
            if writes(function, kwargs) and forced is not args and isinstance(args[0], Tensor):
                args[0].copy_(forced[0])
                result = args[0] if result is forced[0] else result
            self._note(recorder, function, place, before, given, args, kwargs, result, links)
        return result

    def _forced(
        self, key: Key, call: int, nth: int, before: dict[int, tuple[Tensor, Label | None]]
    ) -> Iterator[Link]:
        """Put the other run's values in place in copies of a call's inputs; says which."""
        assert self.shared is not None
        others = self._by_key[key]
        for index, (value, label) in before.items():
            if label is None:
                continue
            passes = self._passes.get((key, index))
            if passes is None:
                passes = self._passes[key, index] = Passes.of(
                    others, index, self.shared, one_to_one=self.one_to_one
                )
            for other, pairs in passes.meet(value, label, call, nth, self.shared):
                at, elements = elements_for(value, other.inputs[index].value, pairs)
                apart = (value.view(-1)[at].double() - elements.double()).abs().nan_to_num(0.0, 0.0, 0.0)
                value.view(-1)[at] = elements
                yield Link(index, other, pairs, float(apart.max()) if len(apart) else 0.0)


@dataclass
class Passes:
    """The passes of one input of one op in the other run, to be met by those of this run.

    Where a token passes several times (experts in turn), its k-th pass meets its k-th.

    Attributes:
        index: which of the call's tensors.
        one_to_one: whether each call of the one run is one of the other's.
        of_call: by (call, nth), the decision.
        by_number: for each shared coordinate the decisions that it passes in, in order.
        met: how often each coordinate has passed here in this run.
    """

    index: int
    one_to_one: bool
    of_call: dict[tuple[int, int], Decision]
    by_number: dict[int, list[Decision]]
    met: Counter[int] = field(default_factory=Counter[int])

    @classmethod
    def of(cls, others: list[Decision], index: int, shared: Shared, *, one_to_one: bool) -> Passes:
        having = [other for other in others if index in other.inputs]
        by_number: dict[int, list[Decision]] = {}
        for other in having:
            for number in _numbers(shared.a, other.inputs[index].label):
                by_number.setdefault(number, []).append(other)
        return cls(index, one_to_one, {(other.call, other.nth): other for other in having}, by_number)

    def meet(
        self, value: Tensor, label: Label, call: int, nth: int, shared: Shared
    ) -> Iterator[tuple[Decision, Pairs]]:
        """The decisions of the other run whose values stand for elements of a value of this one."""
        wanted: dict[int, tuple[Decision, set[int]]] = {}
        for number in _numbers(shared.b, label):
            passed, at = self.by_number.get(number, []), self.met[number]
            self.met[number] += 1
            if at < len(passed):
                wanted.setdefault(id(passed[at]), (passed[at], set()))[1].add(number)
        same = self.of_call.get((call, nth))
        if (
            not wanted and same is not None and self.one_to_one
        ):  # a vector for each sample, which is no token's
            wanted[id(same)] = (same, set())
        for other, numbers in wanted.values():
            given = other.inputs[self.index]
            pairs = pair_elements(given.value, given.label, value, label, shared)
            if len(pairs) and not pairs.by_sample and len(numbers) < len(pairs.distinct):
                pairs = _among(pairs, numbers)
            if len(pairs):
                yield other, pairs


def _among(pairs: Pairs, numbers: set[int]) -> Pairs:
    chosen = np.isin(pairs.coordinates, list(numbers))
    return replace(
        pairs, first_a=pairs.first_a[chosen], first_b=pairs.first_b[chosen], coordinates=pairs.coordinates[chosen]
    )  # fmt: skip


def _numbers(numbers: np.ndarray, label: Label | None) -> list[int]:
    """The shared coordinates of a label that both runs have."""
    if label is None:
        return []
    present = np.unique(numbers[label.q])
    return present[present > 0].tolist()


def _inputs(recorder: Recorder, given: list[Tensor], *, copy: bool) -> dict[int, tuple[Tensor, Label | None]]:
    """The floating-point tensors of a call that hold tokens, with their labels, by their index among all."""
    inputs: dict[int, tuple[Tensor, Label | None]] = {}
    for index, tensor in enumerate(given):
        label = recorder.label_of(tensor) if is_continuous(tensor) and tensor.numel() else None
        if label is not None:
            value = recorder.true_value(tensor).detach()
            inputs[index] = (value.clone(memory_format=torch.contiguous_format) if copy else value, label)
    return inputs


def _labels(
    recorder: Recorder, function: Function, place: CallStack, args: tuple[Any, ...], kwargs: dict[str, Any],
    outputs: list[Tensor],
) -> tuple[Label | None, ...]:  # fmt: skip
    visits = recorder.tape.visits_of(function, place, len(outputs))
    return tuple(recorder.tape.answer(visits, function, args, kwargs, tuple(outputs)).labels)


def _with(value: Any, new: dict[int, Tensor]) -> Any:
    """Arguments with other tensors in place of some, by their ids."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if type(value) in (tuple, list):
        return type(value)(_with(item, new) for item in value)
    if type(value) is dict:
        return {key: _with(item, new) for key, item in value.items()}
    return value
