"""What a command leaves behind: the report, the JSON file, the exit status."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import typer

from forkpoint.errors import ForkpointError
from forkpoint.result import VerdictKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from forkpoint.result import Result

EXIT_STATUS = {
    VerdictKind.IDENTICAL: 0,
    VerdictKind.ROUNDING: 0,
    VerdictKind.SEMANTIC: 1,
    VerdictKind.NONDETERMINISM: 1,
    VerdictKind.INPUTS: 1,
    VerdictKind.UNDETERMINED: 3,
}


def finish(
    result: Result,
    *,
    notes: Sequence[str] = (),
    ops: bool = False,
    json: Path | None = None,
    lang: str = "en",
    probes: bool = True,
) -> NoReturn:
    """Write the JSON file, print the report, and exit.

    Args:
        result: what the command found.
        notes: what the report should say besides, such as how the model was loaded.
        ops: list the captured values too.
        json: the file to write.
        lang: language of the report, `en` or `zh`.
        probes: whether probes were asked for; without them the exit status doesn't depend on the verdict.

    Raises:
        InputError: the file can't be written; the report has been printed.
    """
    from rich.console import Console

    from forkpoint.report.terminal import render

    result = replace(result, notes=(*notes, *result.notes))
    unwritten: ForkpointError | None = None
    if json is not None:
        try:
            result.to_json(json)
        except ForkpointError as error:
            unwritten = error  # which is no reason to lose the report
    render(result, Console(), ops=ops, lang=lang)
    if unwritten is not None:
        raise unwritten
    raise typer.Exit(EXIT_STATUS[result.verdict.kind] if probes else 0)
