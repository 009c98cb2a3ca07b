"""What questions are answered with that are more than one comparison: records with a report, as text, JSON and HTML."""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from forkpoint.support.files import write_atomically
from forkpoint.support.records import JsonRecord


class Answer(JsonRecord):
    """Base of frozen records that hold no model. `print(answer)` is the report."""

    report_module: ClassVar[str]
    """Name of the module of `forkpoint.report` that makes a document of it."""

    @property
    @abstractmethod
    def status(self) -> int:
        """The exit status of its command: 0 where nothing but rounding was seen, 1 where more was, 3 where it can't be told."""

    def to_text(self, *, lang: str = "en", width: int | None = None) -> str:
        """The report as plain text.

        Args:
            lang: `en` or `zh`.
            width: cells of a line; by default what its tables want.

        Raises:
            InputError: there is no such language.
        """
        return _renderers().to_text(self, lang=lang, width=width)

    def to_html(self, path: str | Path, *, lang: str = "en") -> None:
        """Write the report as one page of HTML that asks nothing of a network; the file appears whole or not at all.

        Args:
            path: the file.
            lang: `en` or `zh`.

        Raises:
            InputError: there is no such language, or the file can't be written.
        """
        write_atomically(Path(path), _renderers().to_html(self, lang=lang))

    def __str__(self) -> str:
        return self.to_text()


def _renderers() -> Any:
    """Reports read answers, not the other way round: theirs are imported when one is wanted."""
    return import_module("forkpoint.report.answers")
