"""Runs in float64 with their decisions held: what is left of a difference when nothing is decided anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from sys import _getframe
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from forkpoint.capture.functions import Function, resolve
from forkpoint.capture.labels import Label
from forkpoint.capture.mode import transforms
from forkpoint.capture.recorder import Watcher
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import outermost, place_of
from forkpoint.explain.session import Results, Traced
from forkpoint.match import Shared
from forkpoint.match.align import pair_elements
from forkpoint.probes.deciding import STEPS, Decision, is_decision, is_discrete, of_library
from forkpoint.probes.noise import Noise
from forkpoint.probes.watchers import Patch, Patched, Place, Values, with_elements
from forkpoint.promotion import Promotion
from forkpoint.support.memory import Shelved, load

Inputs64 = Mapping[Any, dict[int, Tensor]]
"""By a decision's place, what it would have been taken on in float64, by index among the call's tensors."""


class Hold(TorchFunctionMode):
    """Has every decision of a promoted run come out as it was noted.

    The n-th decision at a place of the source is the n-th that was noted there: with all decisions held the model
    takes the same way, so that none has to be looked up by its tokens.

    Args:
        decisions: what was noted, in the order of execution.
        promotion: what the run is promoted by; it is entered first.
        righted: other results for some of them, by their places.

    Attributes:
        inputs: by place, what the decisions would have been taken on in float64, by index among a call's tensors.
        missed: decisions that could not be held.
    """

    def __init__(
        self, decisions: Sequence[Decision], promotion: Promotion, righted: dict[Any, list[Any]] | None = None
    ) -> None:
        super().__init__()
        self._promotion, self._righted = promotion, righted or {}
        self._waiting: dict[tuple[str, str], deque[Decision]] = {}
        for decision in decisions:
            _, name, chain = decision.key
            self._waiting.setdefault((name, outermost(chain)), deque()).append(decision)
        self._names = {name for name, _ in self._waiting}
        self.inputs: dict[Any, dict[int, Tensor]] = {}
        self.missed = 0

    @property
    def complete(self) -> bool:
        """Whether every decision was held, and none was left over."""
        return not self.missed and not any(self._waiting.values())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function, kwargs = resolve(func), kwargs or {}
        if function.inner is not None:
            with self:
                return function.inner(*args, **kwargs)
        if function.name not in self._names or transforms() is not None:
            return func(*args, **kwargs)
        waiting = self._waiting.get((function.name, outermost(place_of(_getframe(1)).site.chain)))
        if waiting is None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            given = tensors_in((args, tuple(kwargs.values())))
            wide = self._wide(given, waiting)
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self._held(function, waiting, given, wide, args, result)

    def _wide(self, given: list[Tensor], waiting: deque[Decision]) -> dict[int, Tensor]:
        if not waiting:
            return {}
        wanted = waiting[0].inputs
        return {i: self._promotion.value(given[i]).clone() for i in wanted if i < len(given)}

    def _held(
        self, function: Function, waiting: deque[Decision], given: list[Tensor], wide: dict[int, Tensor],
        args: tuple[Any, ...], result: Any,
    ) -> Any:  # fmt: skip
        made = args[0] if function.writes else result
        leaves, spec = pytree.tree_flatten(made)
        if not is_decision(function, given, [leaf for leaf in leaves if isinstance(leaf, Tensor)]):
            return result
        if not waiting:
            self.missed += 1
            return result
        decision = waiting.popleft()
        self.inputs[decision.place] = wide
        noted = self._righted.get(decision.place, decision.leaves)
        if len(noted) != len(leaves):
            self.missed += 1
            return result
        whole = of_library(function)
        held = [
            self._leaf(leaf, recorded, whole or function.name in STEPS)
            for leaf, recorded in zip(leaves, noted, strict=True)
        ]
        if not function.writes:
            return pytree.tree_unflatten(held, spec)
        target = self._promotion.value(args[0])
        target.copy_(held[0])
        return result

    def _leaf(self, natural: Any, recorded: Any, whole: bool) -> Any:
        """What to go on with: as it was noted if it is discrete, or goes with what is; else as it comes in float64."""
        if not isinstance(recorded, (Tensor, Shelved)):
            return recorded if whole else natural
        noted = load(recorded)
        if not whole and not is_discrete(noted):
            return natural
        if not whole and isinstance(natural, Tensor) and natural.shape != noted.shape:
            self.missed += 1
            return natural
        return noted.clone() if is_discrete(noted) else noted.double()


def _mixed(a: Tensor, label_a: Label | None, b: Tensor, label_b: Label | None, shared: Shared) -> Tensor:
    """B's value with A's elements where both have them; A's as a whole where no element can be told from another."""
    pairs = pair_elements(a, label_a, b, label_b, shared)
    return with_elements(b, [(a, pairs)]) if len(pairs) else a


@dataclass
class HeldRun:
    """One of the runs that are held: how it is made, and what it decides.

    Attributes:
        other: changes what passes by, where the run is made with other content.
    """

    traced: Traced
    decisions: Sequence[Decision] = ()
    other: Watcher | None = None


@dataclass
class HeldRuns:
    """Makes both runs in float64 with their decisions held.

    Attributes:
        a, b: the runs; b decides on A's values, where both have them.
        shared: numbers the coordinates of both.
        complete: whether every decision was held in the last run that was made.
        inputs: of the last run that was made, what its decisions would have been taken on.
    """

    a: HeldRun
    b: HeldRun
    shared: Shared
    complete: bool = True
    refused: list[str] = field(default_factory=list[str])
    inputs: Inputs64 = field(default_factory=dict[Any, Any])

    def run(self, name: str, watcher: Watcher | None = None) -> Results:
        """Make a run, watched by somebody if anybody cares."""
        return self._made(self.a if name == "a" else self.b, watcher=watcher)

    def noisy(self, seed: int) -> Results:
        """Run A with every rounding moved by one unit in the last place of float64."""
        return self._made(self.a, seed=seed)

    def patched(
        self, values: Values, store: Watcher | None = None, apart: dict[Place, float] | None = None
    ) -> Results | None:
        """Run B with other values put in place at some ops; None if they could not be. See `Runs`."""
        noted = {decision.place: decision for decision in self.b.decisions}
        plain = self.b.traced.trace.plain
        righted: dict[Any, list[Any]] = {}
        rest: Values = {}
        for place, replacements in values.items():
            module, function, chain = place[0]
            decision = noted.get(((plain(module), function, chain), place[1], place[3]))
            if decision is None:
                rest[place] = replacements
            else:
                righted[decision.place] = self._right(decision)
        patch = Patch(rest, {} if apart is None else apart)
        watcher = Patched(patch, store) if store is not None else patch if rest else None
        results = self._made(self.b, watcher=watcher, righted=righted)
        return None if patch.applied < len(rest) or not self.complete else results

    def _right(self, decision: Decision) -> list[Any]:
        """What a decision of run B returned, as in run A at the coordinates that both have, and where it is no token's."""
        others = list({id(link.other): link.other for link in decision.links}.values())
        if not others:
            others = [other for other in self.a.decisions if other.place == decision.place]
        leaves = list(decision.leaves)
        for other in others:
            labels, other_labels = iter(decision.labels), iter(other.labels)
            for index, (mine, theirs) in enumerate(zip(leaves, other.leaves, strict=False)):
                if isinstance(mine, (Tensor, Shelved)) and isinstance(theirs, (Tensor, Shelved)):
                    label, other_label = next(labels, None), next(other_labels, None)
                    leaves[index] = _mixed(load(theirs), other_label, load(mine), label, self.shared)
        return leaves

    def _made(
        self, side: HeldRun, *, watcher: Watcher | None = None, seed: int | None = None,
        righted: dict[Any, list[Any]] | None = None,
    ) -> Results:  # fmt: skip
        promotion = Promotion()
        hold = Hold(side.decisions, promotion, righted)

        @contextmanager
        def under() -> Generator[None]:
            with ExitStack() as stack:
                if seed is not None:
                    stack.enter_context(Noise(seed, promotion.value))
                stack.enter_context(hold)
                yield

        if watcher is None and side.other is None:
            results = side.traced.in_float64(promotion, under=under)
        else:
            results = side.traced.again(promotion=promotion, watcher=watcher or side.other, under=under)
        self.complete = hold.complete
        self.inputs = hold.inputs
        self.refused += [str(r) for r in promotion.refused]
        return results
