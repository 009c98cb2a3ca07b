"""Which dtypes are promoted, and to what."""

from __future__ import annotations

import torch

WIDE: dict[torch.dtype, torch.dtype] = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
"""Dtypes in which a model computes: read as, and replaced by, the exact one."""

QUANTISED: frozenset[torch.dtype] = frozenset(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
"""Dtypes in which a model stores what it has quantised.

They are read as float64, but a cast *to* them stays: it is a step of the model's own mathematics, as a cast
to int8 is, and the scale that comes with it may depend on other tokens. Taking the cast away would take that
dependence away too, and call a real difference rounding.
"""

READABLE: dict[torch.dtype, torch.dtype] = {**WIDE, **dict.fromkeys(QUANTISED, torch.float64)}
"""What a tensor of each narrow dtype is read as."""

_METHODS: dict[str, torch.dtype] = {
    "float": torch.float32,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
    "chalf": torch.complex32,
    "cfloat": torch.complex64,
    "cdouble": torch.complex128,
}

_LEGACY: dict[str, torch.dtype] = {
    "FloatTensor": torch.float32,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "DoubleTensor": torch.float64,
}


def requested_dtype(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> torch.dtype | None:
    """The dtype that a cast asks for, or None where it only moves or reshapes.

    >>> requested_dtype("to", (None, "cpu", torch.bfloat16), {})
    torch.bfloat16
    >>> requested_dtype("half", (None,), {})
    torch.float16
    >>> requested_dtype("type", (None, "torch.cuda.FloatTensor"), {})
    torch.float32
    >>> requested_dtype("to", (None, "cpu"), {"non_blocking": True}) is None
    True
    """
    if name in _METHODS:
        return _METHODS[name]
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, torch.Tensor) and name in ("to", "type_as"):
            return WIDE.get(value.dtype, value.dtype)  # as the tensor itself would say
        if name == "type":
            return legacy_dtype(value)
    return None


def legacy_dtype(value: object) -> torch.dtype | None:
    """The dtype of ``torch.FloatTensor``, ``torch.cuda.HalfTensor`` and the like, given as class or as text."""
    text = value if isinstance(value, str) else f"{getattr(value, '__name__', '')}"
    return _LEGACY.get(text.rpartition(".")[2])
