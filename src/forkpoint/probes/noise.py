"""Noise: float64's own rounding, made visible by moving what every op returns by one unit in the last place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from forkpoint.capture.functions import resolve
from forkpoint.support.arrays import tensor_of
from forkpoint.support.readable import PLAIN

_ROUNDED = frozenset({
    "linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "embedding", "conv1d", "conv2d", "einsum", "mean", "sum",
    "scaled_dot_product_attention", "layer_norm", "rms_norm", "grouped_mm", "_grouped_mm", "var", "rsqrt", "tanh",
})  # fmt: skip
"""Functions whose results are rounded in every real run, and feed no decision as they are."""

_MAY_BE_EXACT = frozenset({
    "add", "sub", "mul", "div", "true_divide", "pow", "square", "sqrt", "reciprocal", "exp", "exp2", "expm1", "log", "log2",
    "log1p", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan", "atan2", "sigmoid", "softmax", "log_softmax",
    "logsigmoid", "logsumexp", "softplus", "silu", "gelu", "mish", "erf", "erfc", "elu", "selu", "celu", "cumsum", "cumprod",
    "prod", "std", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "normalize", "group_norm", "batch_norm",
    "instance_norm", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "mv", "dot", "outer", "addcmul",
    "addcdiv", "addmv", "lerp", "rsub",
})  # fmt: skip
"""Functions whose results may be exact, too, where masks, positions and scales are made: such results stay."""

_SHORT = 2.0**16
"""A value that is whole when it is multiplied by this is held to be exact: what is rounded has more binary places."""


class Noise(TorchFunctionMode):
    """Moves every rounded value by one unit in the last place of float64, up or down at random.

    It is a mode and no watcher: it needs to know nothing of a value, and a run that nobody watches takes half as long.

    Args:
        seed: of its numbers.
        value: gives the float64 value of a tensor; that of the promotion that it is entered after.
    """

    def __init__(self, seed: int, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._seed, self._value = seed, value
        self._generators: dict[torch.device, torch.Generator] = {}
        self._drawn = np.random.default_rng(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function, kwargs = resolve(func), kwargs or {}
        if function.inner is not None:
            with self:
                return function.inner(*args, **kwargs)
        result = func(*args, **kwargs)
        name = function.name.removesuffix("_")
        if not (name in _ROUNDED or name in _MAY_BE_EXACT) or not isinstance(result, Tensor):
            return result
        with torch._C.DisableTorchFunction():
            value = self._value(result)
            if value.dtype != torch.float64 or type(value) not in PLAIN or value.is_nested:
                return result  # a subclass has rules of its own for what may be multiplied with it
            with torch.no_grad():
                moved = self._moved(value)
                if name in _MAY_BE_EXACT:
                    moved = torch.where((value * _SHORT).frac() == 0, value, moved)
            if value.requires_grad:  # gradients lead back from the value, and as if nothing had been moved
                value.data.copy_(moved)
                return result
            if kwargs.get("out") is None and name == function.name:
                return moved
            value.copy_(moved)  # which may lie beside a narrow tensor that was written to
            return result

    def _moved(self, value: Tensor) -> Tensor:
        generator = self._generators.get(value.device)
        if generator is None:  # drawn where the value is: elsewhere it takes longer than all that is computed
            generator = self._generators[value.device] = torch.Generator(value.device).manual_seed(self._seed)
        if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
            return self._moved_in_a_transform(value)
        drawn = torch.randint(
            0, 2, value.shape, generator=generator, dtype=torch.float64, device=value.device
        )
        factor = drawn.mul_(2.0**-51).add_(1 - 2.0**-52)  # 1 - 2**-52 or 1 + 2**-52, exactly
        return torch.where(value.abs() < 1e300, factor.mul_(value), value)

    def _moved_in_a_transform(self, value: Tensor) -> Tensor:
        """The same within `vmap` and its like, which let nothing be drawn, and nothing batched be written to what is not."""
        drawn = tensor_of(self._drawn.integers(0, 2, tuple(value.shape)).astype(np.float64))
        factor = drawn.mul_(2.0**-51).add_(1 - 2.0**-52).to(value.device)
        return torch.where(value.abs() < 1e300, factor * value, value)
