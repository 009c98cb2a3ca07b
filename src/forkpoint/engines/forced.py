"""The reference, given the engine's values: each op is computed from what the engine's own op was given.

Wherever the engine's value is known, it is written over the reference's own after that has been looked at. So what is
looked at next was computed from the engine's values alone, and what an op does to its inputs stands by itself: an error
shows at its op, and not at all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint.engines.plan import ATTENTION, Plan, Point
from forkpoint.engines.recording import TokenRows
from forkpoint.promotion import Promotion

Values = dict[tuple[str, str], Tensor]
"""By point, [tokens, size]: what the reference computed there, before the engine's value was put in its place."""


@dataclass(frozen=True)
class Ran:
    """What the reference computed, given the engine's values.

    Attributes:
        values: at each point, before the engine's value was put in its place.
        order: the points in the order in which it met them.
        sizes: [tokens], what rounding is proportional to that sums in any order make: for the output of a linear layer the
            largest sum of the absolute products that an element is made of, times the root of how many they are; for what
            follows attention, `_size_of_attention`.
    """

    values: Values
    order: list[tuple[str, str]]
    sizes: Values


def forced(
    model: nn.Module,
    ids: Sequence[int],
    plan: Plan,
    sample: int,
    *,
    exact: bool,
    free: Collection[tuple[str, str]] = (),
    shaken: float = 0.0,
) -> Ran:
    """Run the reference on one sample.

    Args:
        model: takes `input_ids` and `use_cache`.
        ids: token ids of the sample, from its first.
        exact: compute in float64.
        free: points at which the engine's value is not put in place.
        shaken: by up to this share each element of the engine's values is changed at random before it is put in place.
    """
    run = _Run(plan, sample, frozenset(free), shaken)
    input_ids = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if exact:
            stack.enter_context(Promotion())
        stack.enter_context(run.watching(model))
        model(input_ids=input_ids, use_cache=False)
    return Ran(run.values, run.order, run.sizes)


class _Run(TorchFunctionMode):
    """Looks at what goes by in one run of the reference."""

    def __init__(self, plan: Plan, sample: int, free: frozenset[tuple[str, str]], shaken: float) -> None:
        super().__init__()
        self.shaken, self.random = shaken, torch.Generator().manual_seed(0)
        self.points, self.sample, self.free = plan.by_key, sample, free
        self.values: Values = {}
        self.sizes: Values = {}
        self.order: list[tuple[str, str]] = []
        self._within: list[str] = []
        self._attended: tuple[str, Tensor] | None = None
        """The module that attended last, and `_size_of_attention`."""

    @contextmanager
    def watching(self, model: nn.Module) -> Generator[None]:
        hooks: list[Any] = []
        try:
            for path, module in model.named_modules():
                hooks.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
                hooks.append(module.register_forward_hook(self._after(path), always_call=True))
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, path: str) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._within.append(path)
            point = self.points.get((path, "input"))
            if point is not None:
                value = next((v for v in (*args, *kwargs.values()) if _floating(v)), None)
                if self._attended is not None and path.startswith(f"{self._attended[0]}."):
                    self.sizes[point.key] = self._attended[1]
                    self._attended = None
                self._meets(point, value)

        return before

    def _after(self, path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._within.pop()
            point = self.points.get((path, "output"))
            if point is not None:
                if type(module) is nn.Linear and point.rows.get(self.sample) is not None:
                    self.sizes[point.key] = _size_of_sum(module, args[0])
                parts = output if isinstance(output, (tuple, list)) else (output,)
                self._meets(point, next((v for v in parts if _floating(v)), None))

        return after

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and self._within:
            for role, value in zip(ATTENTION, args, strict=False):
                point = self.points.get((self._within[-1], role))
                if point is not None and value.dim() == 4:
                    self._meets(point, value.transpose(1, 2))
            self._attended = self._within[-1], _size_of_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _meets(self, point: Point, value: Tensor | None) -> None:
        """Look at a value, [1, tokens, …], and put the engine's in its place."""
        rows = point.rows.get(self.sample)
        if value is None or rows is None or point.key in self.values:
            return
        with torch._C.DisableTorchFunction():
            flat = value.detach()[0]
            if value.shape[0] != 1 or int(rows.position.max()) >= len(flat):
                return
            size = flat[0].numel()
            repeats = size // rows.value.shape[1] if point.role in ATTENTION[1:] else 1
            if size != repeats * rows.value.shape[1]:
                return
            heads = (
                flat[:, ::repeats] if repeats > 1 else flat
            )  # each key head once, where it stands for several
            self.values[point.key] = heads.reshape(len(flat), -1).clone()
            self.order.append(point.key)
            if point.key not in self.free:
                _put(flat, TokenRows(rows.position, self._shaken(rows.value)), repeats)

    def _shaken(self, value: Tensor) -> Tensor:
        if not self.shaken:
            return value
        change = torch.rand(value.shape, generator=self.random, dtype=torch.float64) * 2 - 1
        return value.double() * (1 + self.shaken * change)


def _size_of_sum(module: nn.Linear, value: Tensor) -> Tensor:
    """[tokens]: the root of n times the sum of n absolute products, the largest of all outputs."""
    with torch._C.DisableTorchFunction():
        sums = F.linear(value.detach()[0].to(module.weight.dtype).abs(), module.weight.detach().abs())
        return sums.amax(-1).double().cpu() * module.in_features**0.5


def _size_of_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001
) -> Tensor:
    """[tokens]: what the rounding of attention is proportional to, the largest of all heads and columns.

    A score, a sum of n products, is off by the root of n times the sum of their absolute values; its exponential by that and
    by the rounding of its argument; and what is weighed by it, a sum over the keys, by all that and a sum's own rounding.
    The arguments are `F.scaled_dot_product_attention`'s, [1, heads, tokens, size].
    """
    with torch._C.DisableTorchFunction():
        tokens, keys = query.shape[2], key.shape[2]
        largest = torch.zeros(tokens, dtype=torch.float64)
        factor = query.shape[3] ** -0.5 if scale is None else scale
        causal = torch.ones(tokens, keys, dtype=torch.bool).tril()
        for head in range(query.shape[1]):
            part = head * key.shape[1] // query.shape[1]
            q, k, v = (
                x[0].detach()[i].double().cpu() for x, i in ((query, head), (key, part), (value, part))
            )
            scores = q @ k.T * factor
            if is_causal:
                scores = scores.masked_fill(~causal, -torch.inf)
            if attn_mask is not None:
                mask = attn_mask.detach().expand(1, query.shape[1], tokens, keys)[0, head].cpu()
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
            shares = scores.softmax(-1).nan_to_num(0.0)
            argument = (scores.amax(-1, keepdim=True) - scores).nan_to_num(0.0, 0.0, 0.0)
            off = shares * (q.abs() @ k.abs().T * abs(factor) * q.shape[1] ** 0.5 + argument)
            sizes = (
                off @ v.abs()
                + off.sum(-1, keepdim=True) * (shares @ v).abs()
                + keys**0.5 * (shares @ v.abs())
            )
            largest = torch.maximum(largest, sizes.amax(-1))
        return largest


def _put(flat: Tensor, rows: TokenRows, repeats: int) -> None:
    """Write the engine's rows over the reference's, wherever else that value is held."""
    at = rows.position.to(flat.device)
    theirs = rows.value.to(flat.device, flat.dtype)
    shape = (len(at), *flat.shape[1:])
    if repeats > 1:
        width = flat.shape[-1]
        theirs = theirs.reshape(len(at), -1, 1, width).expand(-1, -1, repeats, -1)
    flat[at] = theirs.reshape(shape)


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
