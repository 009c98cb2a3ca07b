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
`pip install -e .`. Which of both is taken is decided in `choice.py`; without the C a trace says the same and takes longer.
"""

from __future__ import annotations

from forkpoint.native.choice import FORM, IN_USE, compiled

__all__ = ["FORM", "IN_USE", "compiled"]
