"""What runs once for every call, module or layer, in C.

A trace of a small model is all interpreter: thousands of calls of a few microseconds each. The loops that run for each
of them are written twice, in Python next to what they belong to, and here in C for CPython's own interface alone, so
that they need no more than a compiler where the package is installed:

| C | Python |
| --- | --- |
| `tap.c` | `capture.mode` (`Tap`, `Reel`), `capture.taps` (what stands in for a module's call: `Gate`) |
| `passage.c` | `capture.pattern` (`Pattern`) |
| `values.c` | `capture.marks` (`versions_of`), `capture.digest.places` (`places_of`) |
| `held.c` | `runs.modules` (`survey`), `runs.state` (`Held`), `capture.inventory` (`same_weights`) |

Both do the same, and tests hold one against the other. `shortcut.c` alone has no Python: it tells a tap what torch tells it
by itself, in less time (`capture.shortcuts`). `make` builds the C anew when a file of it has changed, as does
`pip install -e .`. Where it was not compiled, or `FORKPOINT_PURE_PYTHON` is set to anything but nothing, the Python is
taken: a trace then says the same and takes longer.
"""

from __future__ import annotations

import os
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

FORM = 10
"""What the C has to be built from; increased here and in `module.c` when an earlier one no longer fits."""

if TYPE_CHECKING:
    from forkpoint.native import compiled
else:

    def _compiled() -> ModuleType | None:
        if os.environ.get("FORKPOINT_PURE_PYTHON"):
            return None
        try:
            from forkpoint.native import compiled as found
        except ImportError:
            return None
        if getattr(found, "FORM", None) != FORM:
            warnings.warn(
                f"{found.__file__} was built from another version of forkpoint and is left aside, so that tracing "
                "takes longer; install forkpoint again to build it anew (pip install -e . in a clone)",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return found

    compiled = _compiled()

IN_USE: bool = compiled is not None
"""Whether the C is there and to be used; else `compiled` is None."""
