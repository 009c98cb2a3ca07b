"""The fixture `forkpoint_baseline`: a run of a test is what it was, bit for bit, when its baseline was written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.errors import DifferenceError, InputError
from forkpoint.support.files import write_atomically
from forkpoint.testing.baseline import Baseline, difference, record

if TYPE_CHECKING:
    import pytest

    from forkpoint.pytest_plugin.settings import Settings
    from forkpoint.runs.run import Run

UPDATE = "pytest --forkpoint-update"


class Baselines:
    """The baselines of one test.

    Args:
        folder: where those of its file are.
        test: the test's name.
        update: whether to write them.
    """

    def __init__(self, folder: Path, test: str, *, update: bool) -> None:
        self._folder, self._test, self._update = folder, test, update
        self._used: set[Path] = set()

    @classmethod
    def of(cls, request: pytest.FixtureRequest, settings: Settings) -> Baselines:
        """Those of the test that asks for them, beside the file in which it is."""
        folder = request.path.parent / settings.baselines / request.path.stem
        of_class = f"{request.cls.__name__}." if request.cls is not None else ""
        return cls(folder, of_class + request.node.name, update=settings.update)

    def check(self, run: Run, name: str = "") -> None:
        """Fail unless every value of a run has the bits that it had, or, with `--forkpoint-update`, write them down.

        Args:
            run: an `fp.Run`; whatever is drawn in it at random has to be seeded.
            name: tells several of one test apart.

        Raises:
            DifferenceError: a value has other bits, an op is new or gone, or there is no baseline yet.
            InputError: a name is used twice, the run does not repeat itself, or the file can't be read or written.
        """
        __tracebackhide__ = True
        path = self._path(name)
        if path in self._used:
            raise InputError(f"a second baseline {name!r} in one test", "a name for each")
        self._used.add(path)
        now = record(run)
        if self._update:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, now.to_text())
            return
        if not path.is_file():
            raise DifferenceError(f"no baseline {path.name} in {path.parent}; `{UPDATE}` writes it")
        change = difference(self._read(path), now)
        if change is not None:
            raise DifferenceError(
                f"not as in baseline {path.name}: {change.text}\n\nIf that is meant, `{UPDATE}` writes what is so now "
                f"to {path}. Why it is so is told by fp.compare, of both versions of the model.",
                op=change.op,
                source=change.source,
            )

    def _path(self, name: str) -> Path:
        shown = re.sub(r"[^A-Za-z0-9_.\[\]=,+-]+", "_", f"{self._test}.{name}" if name else self._test)
        return self._folder / f"{shown}.txt"

    @staticmethod
    def _read(path: Path) -> Baseline:
        try:
            return Baseline.from_text(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}", "a baseline", f"{UPDATE} writes it") from None
