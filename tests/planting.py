"""Plants a fault below forkpoint: in what a torch function returns.

The torch functions that a model calls are replaced by stand-ins that call the originals and then
change one element of one result. A stand-in passes itself to a function mode, as torch's own
functions do, and its code claims to lie in the folder of torch, so that the place in the source
stays the model's.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

TORCH_FOLDER = str(Path(torch.__file__).parent) + "/"

KINDS = ("ulp", "sign", "swap", "cancel", "nan")
"""What is done to an element: see `change`."""


# --- Replacing torch's functions -----------------------------------------------------------------

OWNERS = (torch.nn.functional, torch.Tensor, torch, torch.special, torch.linalg)
"""Where a model finds the functions that it calls."""

OPERATORS = {
    "add": ("__add__", "__radd__"),
    "sub": ("__sub__",),
    "mul": ("__mul__", "__rmul__"),
    "div": ("__truediv__", "__div__"),
    "pow": ("__pow__",),
    "neg": ("__neg__",),
    "matmul": ("__matmul__",),
    "add_": ("__iadd__",),
    "mul_": ("__imul__",),
    "div_": ("__itruediv__", "__idiv__"),
}
"""The special methods that report themselves as one of a tensor's methods."""

REPLACEMENT = compile(
    """
def replacement(*args, **kwargs):
    if is_mode_enabled():
        announce(args)
        return handle_torch_function(replacement, tensors(args, kwargs), *args, **kwargs)
    return execute(args, kwargs)
""",
    TORCH_FOLDER + "replacement.py",
    "exec",
)


class Replacements:
    """Stand-ins for the torch functions that a model calls. Each counts its calls by the model."""

    def __init__(self, functions: list[Any]) -> None:
        self.calls: Counter[str] = Counter()
        self.armed: tuple[str, int] | None = None
        self.change: Callable[[Any], None] | None = None
        self._announced: tuple[str, tuple[int, ...], int] | None = None
        self._busy = False
        self._watched = False
        self.sites = [
            (owner, attribute, self._replacement(f"{owner.__name__}.{function.__name__}", function))
            for owner, attribute, function in find_sites(functions)
        ]

    @contextlib.contextmanager
    def installed(self) -> Generator[None]:
        """The stand-ins are in place, and count from 0. A function mode that watches is there already."""
        self.calls.clear()
        self._watched = torch._C._is_torch_function_mode_enabled()
        before = [(owner, name, vars(owner).get(name, self)) for owner, name, _ in self.sites]
        try:
            for owner, name, replacement in self.sites:
                setattr(owner, name, replacement)
            yield
        finally:
            for owner, name, value in before:
                if value is self:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)

    def _replacement(self, key: str, original: Any) -> Any:
        def announce(args: Any) -> None:
            self._announced = key, tuple(map(id, args)), self._next(key)

        def execute(args: Any, kwargs: Any) -> Any:
            call = None
            if self._announced is not None and self._announced[:2] == (key, tuple(map(id, args))):
                call, self._announced = self._announced[2], None
            elif not self._busy and not self._watched:
                # Below a function mode, what isn't announced is the mode's own doing.
                call = self._next(key)
            if self._busy or call is None:
                return original(*args, **kwargs)
            # What the original calls in its turn is not called by the model.
            self._busy = True
            try:
                result = original(*args, **kwargs)
                if self.armed == (key, call) and self.change is not None:
                    self.change(result)
            finally:
                self._busy = False
            return result

        names = {
            "is_mode_enabled": torch._C._is_torch_function_mode_enabled,
            "handle_torch_function": torch.overrides.handle_torch_function,
            "tensors": lambda args, kwargs: [
                v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)
            ],
            "announce": announce,
            "execute": execute,
        }
        exec(REPLACEMENT, names)
        replacement = functools.wraps(original)(names["replacement"])  # pyright: ignore[reportArgumentType]
        replacement.planted_key = key  # pyright: ignore[reportAttributeAccessIssue]
        return replacement

    def _next(self, key: str) -> int:
        self.calls[key] += 1
        return self.calls[key] - 1


def find_sites(functions: list[Any]) -> list[tuple[Any, str, Any]]:
    """Where each function can be replaced, so that the model calls the replacement."""
    sites = []
    for owner in OWNERS:
        for name in dir(owner):
            value = getattr(owner, name)
            found = next(
                (f for f in functions if f is value or (type(f) is type(value) and f == value)), None
            )
            if found is not None and callable(value):
                sites.append((owner, name, found))
                if owner is torch.Tensor:
                    sites += [
                        (owner, operator, found)
                        for operator in OPERATORS.get(name, ())
                        if hasattr(owner, operator)
                    ]
    return sites


# --- Faults --------------------------------------------------------------------------------------


def change(kind: str, tensor: torch.Tensor, element: tuple[int, ...], other: tuple[int, ...] | None) -> bool:
    """Plants a fault; says whether a value changed.

    - ulp: the next number up or down, in the order of their bits
    - sign: the negative of it
    - swap: exchanged with another element of the same token
    - cancel: one ULP up here, one down there, so that a sum of the bits stays
    - nan: not a number
    """
    with torch._C.DisableTorchFunction(), torch.no_grad():
        values = tensor.detach()
        before = values.clone()
        if kind == "ulp":
            values[element] = bits_plus(values[element], 1)
        elif kind == "sign":
            values[element] = -values[element]
        elif kind == "nan":
            values[element] = float("nan")
        elif other is None:
            return False
        elif kind == "swap":
            values[element], values[other] = before[other], before[element]
        else:
            values[element] = bits_plus(values[element], 1)
            values[other] = bits_plus(values[other], -1)
        return not bool(((values == before) | ((values != values) & (before != before))).all())


def bits_plus(value: torch.Tensor, step: int) -> torch.Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    return (value.reshape(1).view(integer) + step).view(value.dtype)[0]
