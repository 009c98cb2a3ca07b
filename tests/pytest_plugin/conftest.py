"""Runs of pytest within a test: what they import stays imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from _pytest.pytester import SysModulesSnapshot


@pytest.fixture(autouse=True)
def imported_once(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """pytester forgets all that a run has imported. Only the projects' own modules are to go.

    What is imported once more has other classes, and what is patched in the one is not in the other; numba and other parts
    in C are not made for it.
    """
    projects, restore = tmp_path_factory.getbasetemp(), SysModulesSnapshot.restore

    def restored(snapshot: SysModulesSnapshot) -> None:
        found = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
        stay = [
            name for name, file in found.items() if file is None or not Path(file).is_relative_to(projects)
        ]
        kept = {name: sys.modules[name] for name in stay}
        restore(snapshot)
        sys.modules.update(kept)

    monkeypatch.setattr(SysModulesSnapshot, "restore", restored)
