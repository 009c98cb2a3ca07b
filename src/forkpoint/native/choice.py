"""The one switch between the parts in C and the Python that says what they do.

| environment | taken |
| --- | --- |
| nothing | the C where it was built from this version, else the Python |
| `FORKPOINT_PURE_PYTHON=1` | the Python; the extension is not even loaded |
| `FORKPOINT_COMPILED=1` | the C; an ImportError where there is none |
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

T = TypeVar("T")

FORM = 10
"""What the C has to be built from; increased here and in `module.c` when an earlier one no longer fits."""


class Seam(NamedTuple):
    """A part that is written twice."""

    python: Any
    in_c: Any


SEAMS: list[Seam] = []
"""All parts of which the C was taken, by the modules that have been imported."""

if TYPE_CHECKING:
    import forkpoint.native.compiled as compiled  # noqa: PLR0402 - the package imports this file
else:

    def _forced() -> bool | None:
        """Whether the C is asked for (True) or the Python (False)."""
        pure, in_c = (bool(os.environ.get(n)) for n in ("FORKPOINT_PURE_PYTHON", "FORKPOINT_COMPILED"))
        if pure and in_c:
            raise ImportError("FORKPOINT_PURE_PYTHON and FORKPOINT_COMPILED are both set: set one of them")
        return in_c if pure or in_c else None

    def _compiled() -> ModuleType | None:
        forced = _forced()
        if forced is False:
            return None
        try:
            import forkpoint.native.compiled as module
        except ImportError as error:
            if forced:
                raise ImportError(f"FORKPOINT_COMPILED is set, but there is no extension: {error}") from error
            return None
        if getattr(module, "FORM", None) != FORM:
            other = f"{module.__file__} was built from another version of forkpoint"
            anew = "install forkpoint again to build it anew (pip install -e . in a clone)"
            if forced:
                raise ImportError(f"FORKPOINT_COMPILED is set, but {other}; {anew}")
            warnings.warn(
                f"{other} and is left aside, so that tracing takes longer; {anew}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return module

    compiled = _compiled()

IN_USE: bool = compiled is not None
"""Whether the C is there and to be used; else `compiled` is None."""


def choose(python: T, in_c: Any) -> T:
    """The C where it is in use, else the Python that does the same.

    Args:
        python: a function or class.
        in_c: its name in the extension, or the class that was made of that.
    """
    if compiled is None:
        return python
    part = getattr(compiled, in_c) if isinstance(in_c, str) else in_c
    SEAMS.append(Seam(python, part))
    return part


def held_in_c() -> list[tuple[str, str]]:
    """The names of forkpoint's modules (module, name) that stand for a part in C at this moment."""
    parts = [seam.in_c for seam in SEAMS]
    if compiled is not None:
        parts.append(compiled)
    return [
        (module.__name__, name)
        for module in _modules()
        for name, value in vars(module).items()
        if any(value is part for part in parts)
    ]


@contextmanager
def python_alone() -> Generator[None]:
    """Do all in Python within the block, for tests that hold one against the other.

    Classes that are already made keep their bases (`Reel`, `Traits`), which hold attributes and do nothing; without those,
    too, a process runs with `FORKPOINT_PURE_PYTHON`.
    """
    instead = {id(seam.in_c): seam.python for seam in SEAMS if seam.in_c is not None}
    if compiled is not None:
        instead[id(compiled)] = None
    with ExitStack() as stack:
        for module in _modules():
            for name, value in list(vars(module).items()):
                if id(value) in instead:
                    stack.callback(setattr, module, name, value)
                    setattr(module, name, instead[id(value)])
        yield


def _modules() -> list[ModuleType]:
    """Forkpoint's own modules that have been imported, but for those that hold the switch itself."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("forkpoint.") and not name.startswith("forkpoint.native")
    ]
