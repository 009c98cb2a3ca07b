"""What a command leaves behind: the report, the files, the exit status."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import typer

from forkpoint.cli.options import STDOUT
from forkpoint.cli.spoken import TYPED, command_line
from forkpoint.errors import ForkpointError, InputError
from forkpoint.result import VerdictKind
from forkpoint.result.statuses import EXIT_STATUS, SEVERITY, worst_status
from forkpoint.support.files import write_atomically, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console

    from forkpoint.result import Result
    from forkpoint.support.answers import Answer


class Fixed(NamedTuple):
    """What `forkpoint fix` found: the answers to a question as it is, and again under `fp.invariant`."""

    as_it_is: Sequence[tuple[str, Result]]
    invariant: Sequence[tuple[str, Result]]


def finish(
    answers: Sequence[tuple[str, Result]],
    *,
    notes: tuple[str, ...] = (),
    details: bool = False,
    ops: bool = False,
    op: str | None = None,
    json: Path | None = None,
    html: Path | None = None,
    quiet: bool = False,
    lang: str = "en",
    probes: bool = True,
    save: Callable[[Result], tuple[str, ...]] = lambda _: (),
) -> NoReturn:
    """Print the report, write the files, and exit.

    Of several prompts the report is a line for each, and then that of the worst in full.

    Args:
        answers: each prompt, and what the command found for it.
        notes: what the report should say besides, such as how the model was loaded.
        details: the whole report, not the short one.
        ops: list the captured values too.
        op: list those that are like this.
        json, html: the files to write.
        quiet: print no report.
        lang: language of the report, `en` or `zh`.
        probes: whether probes were asked for; without them the exit status doesn't depend on the verdict.
        save: saves the scene of the result that is shown, if one is wanted, and says so.

    Raises:
        InputError: a file can't be written; the report has been printed.
    """
    from forkpoint.report.terminal import render, render_summary

    answers = worded(answers, notes, command_line(TYPED.get()))
    index = worst_of(answers)
    text, worst = answers[index]
    worst = replace(worst, notes=(*notes, *save(worst), *worst.notes[len(notes) :]))
    answers[index] = text, worst
    shown = console(quiet=quiet, json=json)
    if len(answers) > 1:
        render_summary(answers, index, shown, lang=lang)
    render(worst, shown, details=details, ops=ops or op is not None, matching=op, lang=lang)
    write_all(
        (json, lambda path: _write(path, answers)),
        (html, lambda path: _write_page(path, answers, index, lang)),
    )
    raise typer.Exit(EXIT_STATUS[worst.verdict.kind] if probes else 0)


def console(*, quiet: bool = False, json: Path | None = None) -> Console:
    """Where a report is printed: nowhere, if nobody wants it or JSON goes to standard output."""
    from rich.console import Console

    return Console(quiet=quiet or json == STDOUT)


def answered(
    answer: Answer,
    *,
    json: Path | None = None,
    html: Path | None = None,
    quiet: bool = False,
    lang: str = "en",
    details: bool = False,
) -> NoReturn:
    """Print the report of what is more than a comparison, write the files, and exit.

    Args:
        answer: what is shown and written.
        json, html: the files to write.
        quiet: print no report.
        lang: `en` or `zh`.
        details: the whole report, not the short one.
    """
    from forkpoint.report.answers import render

    render(answer, console(quiet=quiet, json=json), lang=lang, details=details)
    write_all((json, answer.to_json), (html, lambda path: answer.to_html(path, lang=lang)))
    raise typer.Exit(answer.status)


def write_all(*files: tuple[Path | None, Callable[[Path], None]]) -> None:
    """Write each file that is wanted, though another can't be written.

    Raises:
        InputError: some can't be written; each is named.
    """
    unwritten: list[ForkpointError] = []
    for file, write in files:
        try:
            if file is not None:
                write(file)
        except ForkpointError as error:
            unwritten.append(error)
    if len(unwritten) == 1:
        raise unwritten[0]
    if unwritten:
        raise InputError("; ".join(map(str, unwritten)))


def show_answers(
    answers: Sequence[tuple[str, Result]],
    *,
    details: bool,
    ops: bool,
    op: str | None,
    html: Path | None,
    lang: str,
) -> NoReturn:
    """Print what was read of several prompts, and write it as a page if one is wanted; then exit."""
    from rich.console import Console

    from forkpoint.report.terminal import render, render_summary

    index = worst_of(answers)
    worst = answers[index][1]
    render_summary(answers, index, Console(), lang=lang)
    render(worst, Console(), details=details, ops=ops or op is not None, matching=op, lang=lang)
    if html is not None:
        _write_page(html, answers, index, lang)
    raise typer.Exit(EXIT_STATUS[worst.verdict.kind] if worst.verdict.probed else 0)


def worst_of(answers: Sequence[tuple[str, Result]]) -> int:
    """Index of the result that is shown in full."""
    return max(range(len(answers)), key=lambda index: severity(answers[index][1]))


def let_go(answers: list[tuple[str, Result]]) -> None:
    """Keep the traces of the worst result alone: only its scene is saved, and those of many prompts would fill the memory."""
    worst = worst_of(answers)
    answers[:] = [
        (text, result if index == worst else result.without_runs())
        for index, (text, result) in enumerate(answers)
    ]


def severity(result: Result) -> tuple[int, int, float]:
    """Of several results the greatest is the worst: one that fails before one that is not told, then the larger gap."""
    gap = result.impact.max_rel if result.impact is not None else 0.0
    kind = result.verdict.kind
    return SEVERITY[EXIT_STATUS[kind]], int(kind is VerdictKind.ROUNDING), 0.0 if isnan(gap) else gap


def worded(
    answers: Sequence[tuple[str, Result]], notes: tuple[str, ...], call: str
) -> list[tuple[str, Result]]:
    """The results with what their reports say besides, and with how they were asked for."""
    return [
        (text, replace(result, notes=(*notes, *result.notes), call=call or result.call))
        for text, result in answers
    ]


def document(answers: Sequence[tuple[str, Result]]) -> dict[str, Any]:
    """What JSON says of one prompt, or of several."""
    if len(answers) == 1:
        return answers[0][1].to_dict()
    return {"prompts": [{"prompt": text, "result": result.to_dict()} for text, result in answers]}


def show(
    answers: Sequence[tuple[str, Result]], *, details: bool, lang: str, json: Path | None = None
) -> None:
    """Print the report that a command would: of several prompts a line for each, and then that of the worst."""
    from forkpoint.report.terminal import render, render_summary

    index, shown = worst_of(answers), console(json=json)
    if len(answers) > 1:
        render_summary(answers, index, shown, lang=lang)
    render(answers[index][1], shown, details=details, lang=lang)


def show_fixed(fixed: Fixed, *, details: bool, lang: str) -> NoReturn:
    """Print both reports of `forkpoint fix`, and exit: 0 only where the second is identical."""
    for answers in fixed:
        show(answers, details=details, lang=lang)
    raise typer.Exit(worst_if_not_identical(fixed.invariant))


def worst_if_not_identical(answers: Sequence[tuple[str, Result]]) -> int:
    """0 where every result is identical, 3 where the worst is undetermined, else 1."""
    kinds = {result.verdict.kind for _, result in answers}
    if kinds == {VerdictKind.IDENTICAL}:
        return 0
    return worst_status(kinds) or 1


def _write(path: Path, answers: Sequence[tuple[str, Result]]) -> None:
    if len(answers) == 1:
        answers[0][1].to_json(path)
    else:
        write_json(path, document(answers))


def _write_page(path: Path, answers: Sequence[tuple[str, Result]], worst: int, lang: str) -> None:
    """The worst in full, below a line for each where there are several."""
    from forkpoint.report.page import to_html
    from forkpoint.report.summary import summary
    from forkpoint.report.words import Words

    above = (summary(answers, worst, Words(lang)),) if len(answers) > 1 else ()
    write_atomically(path, to_html(answers[worst][1], lang=lang, above=above))
