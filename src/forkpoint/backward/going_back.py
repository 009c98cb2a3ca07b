"""The backward pass of a run: from the losses that its calls return to the gradients of the model's parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import InputError
from forkpoint.promotion import Promotion
from forkpoint.runs.returned import results_of
from forkpoint.runs.run import Inputs, Run

_HOW = "labels among the inputs, or call= a function that returns the loss"


class GoingBack:
    """Makes the backward pass of one execution of a run, as a training step does.

    After each call `loss.backward()` is called on what it returned, so that the gradients of several calls add up (gradient
    accumulation). Where a call hands a cache on to the next, it waits for that one: gradients lead back through the cache.

    Args:
        run: the run.
        name: what errors call it.
        promotion: that the run is made in float64 by; then the gradients of parameters are kept in float64, too.

    Attributes:
        losses: what each call returned that has a loss.
        gradients: by the id of each parameter that requires a gradient, what arrived; None where nothing did.
        exact: the same in float64, as far as it could be added up; `added`, of how many parts.
        at_work: whether the backward pass is being made.
        before_backward: told of the losses before each backward pass.
    """

    def __init__(self, run: Run, name: str, promotion: Promotion | None = None) -> None:
        self.run, self.name = run, name
        self.losses: list[float] = []
        self.gradients: dict[int, Tensor | None] = {}
        self.exact: dict[int, Tensor] = {}
        self.added: Counter[int] = Counter()
        self.at_work = False
        self.before_backward: Callable[[Sequence[Tensor]], None] | None = None
        weights = () if run.modules is None else run.modules.parameters()
        self._weights = {id(weight): weight for weight in weights if weight.requires_grad}
        self._waiting: list[Tensor] = []
        if promotion is not None:
            promotion.watch_casts(self._cast)

    @contextmanager
    def around_run(self) -> Generator[None]:
        """Begin without gradients, and take them when the run is over; the run itself puts back what there was."""
        for weight in self._weights.values():
            weight.grad = None
        yield
        if not self.losses:
            raise InputError(
                f"a run {self.name} that returns no loss", "a loss to go back from, with backward=True", _HOW
            )
        self.gradients = {key: weight.grad for key, weight in self._weights.items()}
        for key, gradient in self.gradients.items():
            if gradient is not None and gradient.dtype == torch.float64:
                self.exact[key] = gradient

    def after_call(self, inputs: Inputs, output: Any, *, goes_on: bool) -> None:
        """Go back from the loss of a call, and of those before it that waited."""
        loss = loss_of(output, inputs)
        if loss is not None:
            if not loss.requires_grad:
                raise InputError(
                    f"a loss of run {self.name} that leads back to no parameter",
                    "a loss with a gradient, with backward=True",
                    "parameters that require gradients, and no torch.no_grad() on the way",
                )
            self.losses.append(float(loss.detach()))
            self._waiting.append(loss)
        if goes_on or not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        if self.before_backward is not None:
            self.before_backward(waiting)
        self.at_work = True
        try:
            torch.autograd.backward(waiting)
        finally:
            self.at_work = False

    def _cast(self, narrow: Tensor, wide: Tensor) -> None:
        """A parameter, or a view of one, was cast to float64: what arrives at the cast is what the parameter would get."""
        owner = narrow if id(narrow) in self._weights else narrow._base
        if owner is None or id(owner) not in self._weights:
            return
        size, stride, offset = (
            narrow.size(),
            narrow.stride(),
            narrow.storage_offset() - owner.storage_offset(),
        )
        if not owner.is_contiguous() or 0 in stride:
            return

        def arrived(gradient: Tensor) -> None:
            if self.at_work:
                with torch._C.DisableTorchFunction(), torch.no_grad():
                    total = self.exact.get(id(owner))
                    if total is None:
                        total = self.exact[id(owner)] = torch.zeros_like(owner, dtype=torch.float64)
                    total.as_strided(size, stride, offset).add_(gradient)
                    self.added[id(owner)] += 1

        wide.register_hook(arrived)


def loss_of(output: Any, inputs: Inputs) -> Tensor | None:
    """The loss in what a call returned: the number of that name, the first of a tuple if there are labels, or all there is.

    >>> loss_of({"loss": torch.tensor(2.0), "logits": torch.zeros(3)}, {}).item(), loss_of(torch.zeros(3), {})
    (2.0, None)
    """
    results = results_of(output)
    numbers = {name: v for name, v in results.items() if v.numel() == 1 and v.is_floating_point()}
    named = next((name for name in numbers if name.rsplit(".", maxsplit=1)[-1] == "loss"), None)
    if named is None and ("labels" in inputs or len(results) == 1):
        first = next(iter(results), "")
        named = first if first in numbers else None
    return None if named is None else numbers[named]
