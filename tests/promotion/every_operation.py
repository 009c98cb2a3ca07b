"""Every operation that torch describes for its own tests, against the same call on float64 tensors.

    python -m tests.promotion.every_operation bfloat16

A program of its own, as torch's test harness changes settings of the process that imports it.
"""

from __future__ import annotations

import itertools
import sys
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from forkpoint.promotion import Promotion
from forkpoint.promotion.dtypes import WIDE

SAMPLES = 2
UNLIKE_FLOAT64 = {
    "bfloat16", "chalf", "cfloat", "float", "half",  # casts by name
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",  # unwritten memory
    "sparse.mm.reduce", "sparse.sampled_addmm",  # whose results can't be compared as they are
}  # fmt: skip
FORMS = ("resize_", "as_strided", "squeeze", "unsqueeze", "transpose", "t")
"""In place they change the form of their input, which is not its values."""
BROADCAST_IN_PLACE = {"addbmm"}
"""torch gives the result another shape than the tensor that it is written to."""


def described() -> list[Any]:
    """torch's descriptions of operations. They come with its test harness, which asks for a package that they
    don't use."""
    if "expecttest" not in sys.modules:
        stand_in: Any = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    from torch.testing._internal.common_methods_invocations import op_db

    return op_db


def calls(described: list[Any], dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[..., Any], Any]]:
    for op in described:
        if op.name in UNLIKE_FLOAT64 or dtype not in op.supported_dtypes("cpu"):
            continue
        try:
            samples = list(itertools.islice(op.sample_inputs("cpu", dtype), SAMPLES))
        except (RuntimeError, ImportError):  # samples that need packages or devices
            continue
        variants = {"function": op.op, "method": op.method_variant, "in place": op.inplace_variant}
        for way, function in variants.items():
            if function is None or (way == "in place" and op.name in (*FORMS, *BROADCAST_IN_PLACE)):
                continue
            for sample in samples:
                yield op.name, way, function, (sample.input, sample.args, sample.kwargs)


def copied(arguments: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), arguments)


def in_float64(arguments: Any) -> Any:
    def wide(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(WIDE.get(value.dtype, value.dtype))
        return WIDE.get(value, value) if isinstance(value, torch.dtype) else value

    return tree_map(wide, arguments)


def outcome(function: Callable[..., Any], arguments: Any) -> Any:
    torch.manual_seed(0)
    first, rest, options = arguments
    with torch.no_grad():
        return function(first, *rest, **options)


def failure(function: Callable[..., Any], arguments: Any) -> str | None:
    """Why a promoted call differs from the call in float64; None if it doesn't, or if that call fails."""
    torch.set_default_dtype(torch.float64)
    try:
        expected = outcome(function, in_float64(copied(arguments)))
    except Exception:  # noqa: BLE001 - not an operation for float64
        return None
    finally:
        torch.set_default_dtype(torch.float32)
    given = copied(arguments)
    with Promotion() as promotion:
        result = outcome(function, given)
    if promotion.refused:
        return str(promotion.refused[0])
    try:
        pairs = zip(tree_leaves(promotion.values(result)), tree_leaves(expected), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-14, equal_nan=True)
        for left, before in zip(tree_leaves(given), tree_leaves(arguments), strict=True):
            if isinstance(left, torch.Tensor) and left.dtype in WIDE and left.layout is torch.strided:
                torch.testing.assert_close(left, before.detach(), rtol=0, atol=0, equal_nan=True)
    except AssertionError as error:
        return str(error)
    return None


def main(dtype: torch.dtype) -> None:
    """Prints how many calls were compared, and each that differs."""
    warnings.simplefilter("ignore")
    counted = 0
    for name, way, function, arguments in calls(described(), dtype):
        counted += 1
        why = failure(function, arguments)
        if why is not None:
            print(f"{name} ({way}): {why}")
    print(f"{counted} calls")


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
