"""The arguments of a call as JSON, with references where the tensors go.

What is plain in JSON (None, bools, finite numbers, text, lists) stands for itself; anything else is an
object with one key that says what it is: `{"tensor": 3}`, `{"dtype": "bfloat16"}`, `{"slice": [0, 4, null]}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.errors import SceneError

MAX_DEPTH = 8
_MEMORY_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_LAYOUTS = ("strided",)


@dataclass(frozen=True)
class Ref:
    """Where a tensor goes: its number in the scene."""

    index: int


def dtype_named(name: Any) -> torch.dtype:
    """A dtype by its name.

    >>> dtype_named("bfloat16")
    torch.bfloat16

    Raises:
        SceneError: torch has no such dtype.
    """
    dtype = getattr(torch, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(dtype, torch.dtype):
        raise SceneError(f"the dtype {name!r}", "a dtype of torch")
    return dtype


def short(dtype: torch.dtype) -> str:
    """The name of a dtype without `torch.`."""
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------- references


def with_refs(value: Any, number: Callable[[Tensor], int]) -> Any:
    """The same structure with a reference in place of every tensor."""
    if isinstance(value, Tensor):
        return Ref(number(value))
    return _rebuilt(value, lambda item: with_refs(item, number))


def filled(value: Any, tensors: Sequence[Tensor], device: torch.device) -> Any:
    """The same structure with the tensors in it; a device among the arguments becomes `device`."""
    if isinstance(value, Ref):
        return tensors[value.index]
    if isinstance(value, torch.device):
        return device
    return _rebuilt(value, lambda item: filled(item, tensors, device))


def refs_in(value: Any) -> list[int]:
    """The numbers of the tensors in a structure, in order."""
    if isinstance(value, Ref):
        return [value.index]
    if isinstance(value, slice):
        return [i for item in (value.start, value.stop, value.step) for i in refs_in(item)]
    if isinstance(value, (list, tuple)):
        return [i for item in value for i in refs_in(item)]
    if isinstance(value, dict):
        return [i for item in value.values() for i in refs_in(item)]
    return []


def tensors_in_order(value: Any) -> list[Tensor]:
    """The tensors in a structure, in the order of `refs_in`."""
    tensors: list[Tensor] = []

    def number(tensor: Tensor) -> int:
        tensors.append(tensor)
        return 0

    with_refs(value, number)
    return tensors


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, slice):
        return slice(change(value.start), change(value.stop), change(value.step))
    if isinstance(value, tuple):
        return tuple([change(item) for item in value])
    if isinstance(value, list):
        return [change(item) for item in value]
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    return value


# ---------------------------------------------------------------------- JSON


def to_json(value: Any) -> Any:
    """Arguments, with references for tensors, as JSON.

    >>> to_json((Ref(0), slice(1, None), torch.float32, float("-inf")))
    {'tuple': [{'tensor': 0}, {'slice': [1, None, None]}, {'dtype': 'float32'}, {'float': '-inf'}]}

    Raises:
        SceneError: a function, a generator of random numbers, or another object that a scene can't hold.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if value is None or type(value) is str:
        return value
    if isinstance(value, complex):
        return {"complex": [str(value.real), str(value.imag)]}
    if isinstance(value, torch.Size):
        return {"size": [int(n) for n in value]}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [to_json(item) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": [[key, to_json(item)] for key, item in value.items()]}
    return _named_to_json(value)


def _named_to_json(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"tensor": value.index}
    if isinstance(value, torch.dtype):
        return {"dtype": short(value)}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, slice):
        return {"slice": [to_json(value.start), to_json(value.stop), to_json(value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.memory_format) and short(value) in _MEMORY_FORMATS:  # type: ignore[arg-type]
        return {"memory_format": short(value)}  # type: ignore[arg-type]
    if isinstance(value, torch.layout) and short(value) in _LAYOUTS:  # type: ignore[arg-type]
        return {"layout": short(value)}  # type: ignore[arg-type]
    raise SceneError(
        f"an argument of type {type(value).__module__}.{type(value).__qualname__} can't be kept in a scene",
        "tensors, numbers, text, dtypes, devices and slices",
    )


def from_json(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Arguments from JSON.

    >>> from_json({"tuple": [{"tensor": 0}, {"dtype": "float32"}, [1, 2]]})
    (Ref(index=0), torch.float32, [1, 2])

    Raises:
        SceneError: something that `to_json` doesn't write.
    """
    if depth < 0:
        raise SceneError(f"arguments nested more than {MAX_DEPTH} deep", "the arguments of a torch function")
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise SceneError(f"an argument of {len(str(abs(value)))} digits", "a number of 64 bits")
        return value
    if isinstance(value, list):
        return [from_json(item, depth - 1) for item in value]
    if isinstance(value, dict) and len(value) == 1:
        [(kind, content)] = value.items()
        read = _READERS.get(kind)
        if read is not None:
            return read(content, depth - 1)
    raise SceneError(f"the argument {str(value)[:60]!r}", "one of the kinds that the scene's format names")


def _items(content: Any, kind: str, length: int | None = None) -> list[Any]:
    if not isinstance(content, list) or (length is not None and len(content) != length):
        raise SceneError(f"a {kind} written as {str(content)[:60]!r}", "a list")
    return content


def _tensor(content: Any, _: int) -> Ref:
    if type(content) is not int or content < 0:
        raise SceneError(f"a reference to tensor {content!r}", "a number from 0")
    return Ref(content)


def _float(content: Any, _: int) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise SceneError(f"the float {content!r}", "inf, -inf or nan")
    return float(content)


def _complex(content: Any, _: int) -> complex:
    try:
        return complex(*(float(str(part)) for part in _items(content, "complex number", 2)))
    except ValueError:
        raise SceneError(f"the complex number {content!r}", "two numbers") from None


def _size(content: Any, _: int) -> torch.Size:
    sizes = _items(content, "size")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in sizes):
        raise SceneError(f"the size {sizes!r}", "numbers from 0")
    return torch.Size(sizes)


def _slice(content: Any, depth: int) -> slice:
    return slice(*(from_json(part, depth) for part in _items(content, "slice", 3)))


def _dict(content: Any, depth: int) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for entry in _items(content, "dict"):
        key, item = _items(entry, "dict entry", 2)
        if not isinstance(key, str):
            raise SceneError(f"the key {key!r}", "text")
        entries[key] = from_json(item, depth)
    return entries


def _choice(names: Sequence[str], kind: str) -> Callable[[Any, int], Any]:
    def read(content: Any, _: int) -> Any:
        if content not in names:
            raise SceneError(f"the {kind} {content!r}", " or ".join(names))
        return getattr(torch, content)

    return read


def _device(content: Any, _: int) -> torch.device:
    if content not in ("cpu", "cuda", "mps", "xpu"):
        raise SceneError(f"the device {content!r}", "cpu, cuda, mps or xpu")
    return torch.device(content)


_READERS: dict[str, Callable[[Any, int], Any]] = {
    "tensor": _tensor,
    "float": _float,
    "complex": _complex,
    "size": _size,
    "slice": _slice,
    "dict": _dict,
    "device": _device,
    "tuple": lambda content, depth: tuple(from_json(item, depth) for item in _items(content, "tuple")),
    "dtype": lambda content, _: dtype_named(content),
    "ellipsis": lambda _content, _depth: Ellipsis,
    "memory_format": _choice(_MEMORY_FORMATS, "memory format"),
    "layout": _choice(_LAYOUTS, "layout"),
}
