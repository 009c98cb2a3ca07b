"""Functions whose values are of no token, or of the tokens of their first argument."""

from __future__ import annotations

from forkpoint.capture.labels import Label
from forkpoint.capture.rules.call import (
    Call,
)
from forkpoint.capture.rules.defaults import default
from forkpoint.capture.rules.registry import rule


@rule(
    "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "zeros", "ones", "full", "empty", "arange",
    "zeros_like", "ones_like", "empty_like", "full_like", "eye", "linspace", "rand", "randn", "randint", "finfo", "iinfo", "empty_strided",
)  # fmt: skip
def _creation(_: Call) -> Label | None:
    """None, even of a constant in the shape of tokens' values: a state that starts as zeros is of what goes into it."""
    return None


@rule(
    "tensor", "as_tensor", "to", "type", "type_as", "clone", "contiguous", "detach", "float", "half", "bfloat16", "double", "long", "int",
    "bool", "cpu", "cuda", "requires_grad_", "alias", "data", "real", "imag", "rand_like", "randn_like", "bernoulli",
    "fill_", "zero_", "normal_", "uniform_", "layer_norm", "rms_norm",
    "group_norm", "batch_norm", "instance_norm", "dropout", "softmax", "log_softmax", "_to_copy", "pin_memory",
)  # fmt: skip
def _as_first(call: Call) -> Label | None:
    first = call.arg(0, "input", "self", "data")
    label = call.label(first)
    if label is not None and tuple(first.shape) != tuple(call.outputs[0].shape):
        return default(call)[0]
    return label
