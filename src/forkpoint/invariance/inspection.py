"""What a model calls, looked at once for each way of calling it: whatever has no invariant form is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forkpoint.invariance import dispatch
from forkpoint.invariance.state import Invariance, place

_MOVES = frozenset(
    [
        "_to_copy",
        "clone",
        "copy_",
        "contiguous",
        "cat",
        "stack",
        "index",
        "index_select",
        "index_put",
        "index_put_",
        "gather",
        "scatter",
        "scatter_",
        "where",
        "embedding",
        "constant_pad_nd",
        "pad",
        "repeat",
        "repeat_interleave",
        "roll",
        "flip",
        "tril",
        "triu",
        "masked_fill",
        "masked_fill_",
        "masked_scatter",
        "masked_select",
        "nonzero",
        "one_hot",
        "fill_",
        "zero_",
        "lift_fresh",
        "lift_fresh_copy",
        "detach",
        "alias",
        "arange",
        "full",
        "full_like",
        "zeros",
        "zeros_like",
        "ones",
        "ones_like",
        "empty",
        "empty_like",
        "empty_strided",
        "detach_",
        "new_empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty_strided",
        "scalar_tensor",
        "eye",
        "linspace",
        "_local_scalar_dense",
        "equal",
        "is_same_size",
        "item",
        "select_scatter",
        "slice_scatter",
        "unfold",
        "set_",
        "resize_",
        "_unsafe_view",
        "_reshape_copy",
        "_reshape_alias",
        "unbind",
        "split_with_sizes",
        "index_add",
        "index_add_",
        "index_copy_",
        "index_fill_",
        "masked_fill_",
        "expand_copy",
        "view_copy",
        "topk",
        "sort",
        "argsort",
        "argmax",
        "argmin",
        "multinomial",
        "isin",
        "bucketize",
        "searchsorted",
        "unique_consecutive",
        "_unique2",
        "take_along_dim",
        "histc",
        "bincount",
        "fill",
        "lerp",
        "meshgrid",
    ]
)
"""Ops that take values from one place to another, or compare them, and sum nothing."""

_ROWS = {
    "mean": 1, "sum": 1, "amax": 1, "amin": 1, "var": 1, "var_mean": 1, "std": 1, "linalg_vector_norm": 2, "logsumexp": 1,
    "norm": 2, "_softmax": 1, "_log_softmax": 1, "max": 1, "min": 1, "softmax": 1, "log_softmax": 1, "cumsum": 1,
}  # fmt: skip
"""Ops that go over one dimension, with the place of that dimension among their arguments."""
_NORMS = frozenset({"native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"})
"""Ops that go over the last dimensions, whose sizes are their second argument."""

_COUNTS = (1, 2, 3, 7, 8, 9, 15, 16, 33)
"""Numbers of rows that a trial of an op on rows makes."""


class Inspection(TorchDispatchMode):
    """Lets every call through, and refuses those without an invariant form."""

    def __init__(self, block: Invariance) -> None:
        super().__init__()
        self._block = block

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The call's own result."""
        kwargs = kwargs or {}
        if dispatch.is_models_own():
            with dispatch.plain():
                why = reason(func, args, kwargs)
            own = dispatch.own(func)
            if (
                why is not None and own is not None and dispatch.is_active()
            ):  # some versions of torch come here first
                return own(*args, **kwargs)
            if why is not None:
                with self:  # in inference mode, an op that consists of others comes as a whole
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
                self._block.refuse(f"{func._schema.name.removeprefix('aten::')}{place()}", why)
        return func(*args, **kwargs)


def reason(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why a call of an operator has no invariant form; None if it has one."""
    if func.namespace not in ("aten", "prims", "prim"):
        return "it belongs to a library of its own"
    name = func._schema.name.partition("::")[2]
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
    if not any(one.numel() and (one.is_floating_point() or one.is_complex()) for one in tensors):
        return None
    if func.is_view or torch.Tag.pointwise in func.tags or name in _MOVES:
        return None
    if name in _NORMS:
        return None if len(args[1]) == 1 else "it goes over several dimensions"
    if name in _ROWS:
        return _over_rows(func, name, args, kwargs)
    return "nothing is known about the order of its sums"


def _over_rows(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    x, place = args[0], _ROWS[name]
    asked = args[place] if len(args) > place else kwargs.get("dim")
    dims = asked if isinstance(asked, (list, tuple)) else [asked]
    if x.dim() == 0 or len(dims) != 1 or dims[0] is None:
        return "it goes over several dimensions"
    if dims[0] % x.dim() != x.dim() - 1:
        return f"it goes over dimension {dims[0]}, which is not the last one"
    rest = (-1 if asked is dims[0] else [-1], *args[place + 1 :])
    between = tuple(args[1:place])
    options = {key: value for key, value in kwargs.items() if key != "dim"}
    hashable = tuple(sorted(options.items(), key=repr)), repr(rest), repr(between)
    held = _holds(_Call(func, (*between, *rest), options), x.shape[-1], x.dtype, x.device, hashable)
    return None if held else "its bits depend on the number of rows"


class _Call:
    """A call of an operator on other rows; equal to every other one, since what tells calls apart stands beside it."""

    def __init__(self, func: Callable[..., Any], rest: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self._func, self._rest, self._options = func, rest, options

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        made = self._func(rows, *self._rest, **self._options)
        return made[0] if isinstance(made, tuple) else made

    def __hash__(self) -> int:
        return hash(self._func)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Call) and other._func is self._func


@cache
def _holds(call: _Call, size: int, dtype: torch.dtype, device: torch.device, told: Any) -> bool:
    """Whether a row has the same bits beside any number of others."""
    del told
    generator = torch.Generator(device).manual_seed(size)
    rows = torch.randn(max(_COUNTS), size, generator=generator, device=device).to(dtype)
    alone = torch.cat([call(rows[index : index + 1]).reshape(1, -1) for index in range(len(rows))])
    return all(torch.equal(call(rows[:count]).reshape(count, -1), alone[:count]) for count in _COUNTS)
