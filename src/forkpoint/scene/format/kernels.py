"""Which kernels ran in a call of each run, and what that tells."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREPARING = frozenset(
    [
        "aten::scalar_tensor",
        "aten::to",
        "aten::_to_copy",
        "aten::copy_",
        "aten::where",
        "aten::fill_",
        "aten::zero_",
        "aten::ones",
        "aten::zeros",
        "aten::full",
        "aten::tril",
        "aten::masked_fill_",
        "aten::clone",
        "aten::contiguous",
    ]
)
"""Operators that prepare an argument, as a mask of bools is made one of numbers."""


@dataclass(frozen=True)
class Kernels:
    """The kernels that ran in one call.

    Attributes:
        names: in the order of execution; empty where nothing is known.
        reason: why nothing is known.
    """

    names: tuple[str, ...]
    reason: str = ""


def short_name(name: str) -> str:
    """A kernel's name without the arguments and template parameters that C++ adds.

    >>> short_name("void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor<float> >(int, long)")
    'at::native::vectorized_elementwise_kernel'
    >>> short_name("sm80_xmma_gemm_f32f32_tilesize32x32x8")
    'sm80_xmma_gemm_f32f32_tilesize32x32x8'
    """
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain, maxsplit=1)[0].strip() or name


def evidence(a: Kernels, b: Kernels) -> str:
    """What the kernels of two calls tell, in one sentence.

    >>> evidence(Kernels(("gemm_32x64",)), Kernels(("gemm_64x256_splitK", "splitKreduce")))
    'The two runs ran different kernels: gemm_32x64 in A; gemm_64x256_splitK, splitKreduce in B, which splits the sum.'
    >>> evidence(Kernels(("aten::bmm",)), Kernels(("aten::bmm",)))
    'Both runs ran aten::bmm.'
    """
    if not a.names or not b.names:
        return f"Which kernels ran is not known: {a.reason or b.reason or 'nothing was seen'}."
    left, right = _main(a.names, b.names), _main(b.names, a.names)
    names_a, names_b = (", ".join(dict.fromkeys(map(short_name, names))) for names in (left, right))
    if left == right:
        return f"Both runs ran {names_a}."
    if names_a == names_b:
        return f"Both runs ran {names_a}, in forms of their own."
    return f"The two runs ran different kernels: {names_a} in A{_splits(a)}; {names_b} in B{_splits(b)}."


def differ(a: Kernels, b: Kernels) -> bool | None:
    """Whether two calls ran different kernels, apart from what prepares their arguments; None if not known."""
    if not a.names or not b.names:
        return None
    return _main(a.names, b.names) != _main(b.names, a.names)


def _main(names: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """The names without operators that only prepare arguments; all of them if nothing else ran on one side."""
    computing = tuple(name for name in names if not _prepares(name))
    return computing if computing and not all(map(_prepares, others)) else names


def _prepares(name: str) -> bool:
    return name in _PREPARING or any(part in name for part in ("FillFunctor", "where_kernel", "copy_kernel"))


def _splits(kernels_: Kernels) -> str:
    names = " ".join(kernels_.names).lower().replace("_", "").replace("-", "")
    return ", which splits the sum" if "splitk" in names else ""
