"""The Python of what is also written in C, in place of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from forkpoint.capture import inventory, ledger, marks, mode, passages, pattern, taps
from forkpoint.capture.digest import places
from forkpoint.runs import modules, state


@contextmanager
def in_python() -> Generator[None]:
    """Nothing of what runs once for every call is done in C."""
    with ExitStack() as stack:
        for module, name, value in (
            (taps, "Tap", mode.PythonTap),
            (taps, "compiled", None),
            (pattern, "compiled", None),
            (passages, "Pattern", pattern.PythonPattern),
            (ledger, "versions_of", marks.python_versions),
            (places, "_places", places.python_places),
            (state, "Held", state.PythonHeld),
            (state, "survey", modules.python_survey),
            (inventory, "survey", modules.python_survey),
            (inventory, "same_weights", inventory.python_same_weights),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield
