"""The scoreboard: `python -m tests.corpus [part of an id ...]`; exit status 1 if any verdict is wrong.

`--truth` checks the cases themselves instead, by plain forward passes without forkpoint.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings

import torch
from rich.console import Console
from rich.table import Table

from . import CASES, Case
from .judge import Outcome, judge
from .truth import prove


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.corpus", description="Scoreboard of the corpus of verdicts."
    )
    parser.add_argument(
        "ids", nargs="*", help="rows of the table (`12`) or parts of case ids; all cases without any"
    )
    parser.add_argument("--truth", action="store_true", help="check the cases themselves, without forkpoint")
    parser.add_argument(
        "--pending", action="store_true", help="ask about cases that wait for a later part, too"
    )
    parser.add_argument("--wrong", action="store_true", help="show wrong verdicts only")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    cases = [
        case
        for case in CASES.values()
        if not given.ids or any(_asks_for(part, case.id) for part in given.ids)
    ]
    console = Console(width=None if sys.stdout.isatty() else 190)
    if not cases:
        console.print(f"no case has {' or '.join(given.ids)} in its id", style="red")
        return 2
    if given.truth:
        return _show_truth(console, cases)
    asked = [case for case in cases if given.pending or not case.pending]
    outcomes = []
    for case in asked:
        with console.status(case.id):
            outcomes.append(judge(case))
    return _show_verdicts(console, outcomes, len(cases) - len(asked), wrong_only=given.wrong)


def _asks_for(part: str, name: str) -> bool:
    """A number stands for a row of the table, anything else for a part of the id."""
    return name.startswith(f"{int(part):02}-") if part.isdigit() else part in name


def _show_verdicts(console: Console, outcomes: list[Outcome], pending: int, *, wrong_only: bool) -> int:
    table = Table(title="Corpus of verdicts", row_styles=("", "dim"))
    for column in ("", "case", "expected", "verdict", "mechanism", "by design", "origin (op)"):
        table.add_column(column, overflow="fold")
    table.add_column("seconds", justify="right")
    for outcome in outcomes:
        if wrong_only and outcome.right and outcome.origin_right is not False:
            continue
        origin = outcome.origin or ""
        table.add_row(
            "[green]✓[/]" if outcome.right else "[bold red]✗[/]",
            outcome.case.id,
            " or ".join(str(expect) for expect in outcome.case.expected),
            outcome.kind if outcome.right else f"[red]{outcome.kind}[/]",
            outcome.mechanism or "",
            "" if outcome.by_design is None else str(outcome.by_design),
            f"[yellow]{origin or 'none'}[/]" if outcome.origin_right is False else origin,
            f"{outcome.seconds:.2f}",
        )
    console.print(table)
    wrong = [outcome for outcome in outcomes if not outcome.right]
    for outcome in wrong:
        console.print(outcome.complaint, style="red", markup=False, highlight=False)
    hinted = [outcome for outcome in outcomes if outcome.origin_right is not None]
    found = sum(bool(outcome.origin_right) for outcome in hinted)
    total = sum(outcome.seconds for outcome in outcomes)
    console.print(
        f"{len(outcomes) - len(wrong)} of {len(outcomes)} verdicts right, {found} of {len(hinted)} origins at the cause, "
        f"{total:.0f} s" + (f"; {pending} wait for a later part" if pending else "")
    )
    return 1 if wrong else 0


def _show_truth(console: Console, cases: list[Case]) -> int:
    table = Table(title="The cases themselves: relative gaps of plain runs", row_styles=("", "dim"))
    for column in ("", "case", "claims", "native", "float64", "seconds"):
        table.add_column(column)
    wrong = 0
    for case in cases:
        began = time.perf_counter()
        try:
            truth = prove(case)
            native, exact = ("" if gap is None else f"{gap:.2g}" for gap in (truth.native, truth.exact))
            mark = "[green]✓[/]"
        except AssertionError as error:
            native, exact, mark, wrong = str(error), "", "[bold red]✗[/]", wrong + 1
        table.add_row(mark, case.id, case.truth, native, exact, f"{time.perf_counter() - began:.2f}")
    console.print(table)
    console.print(f"{len(cases) - wrong} of {len(cases)} cases are what they claim to be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
