"""`forkpoint record` and `forkpoint compare`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.language import words
from forkpoint.cli.outcome import finish
from forkpoint.errors import InputError
from forkpoint.support.files import check_writable

Script = Annotated[
    list[str], typer.Argument(metavar="SCRIPT [ARGS]…", help="A script of Python, and its arguments.", show_default=False)
]  # fmt: skip
Output = Annotated[
    str, typer.Option("-o", "--output", help="The folder to write the trace to; new or empty.", show_default=False)
]  # fmt: skip
Values = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep the values of ops of this name (patterns: 'model.layers.0.*'); may be given again.",
        show_default=False,
    ),
]
TraceA = Annotated[
    str, typer.Argument(metavar="TRACE_A", help="A folder that record wrote.", show_default=False)
]
TraceB = Annotated[str, typer.Argument(metavar="TRACE_B", help="Another one.", show_default=False)]
Rename = Annotated[
    list[str] | None,
    typer.Option(
        help="THEIRS=OURS: modules of B whose paths begin so are A's; may be given again.", show_default=False
    ),
]


def record(script: Script, output: Output, values: Values = None) -> None:
    """Run a script, and write a trace of the models that it calls; `compare` then compares it with another.

    Exit status: the script's own.
    """
    path = Path(script[0])
    if not path.is_file():
        raise InputError(f"{path}, where there is no file", "a script of Python")
    from forkpoint.traces import record as recorded

    before = sys.argv, sys.path[:]
    try:
        with recorded(output, values=values or ()) as remarks:
            sys.argv, sys.path[0:0] = list(script), [str(path.resolve().parent)]
            try:
                runpy.run_path(str(path), run_name="__main__")
            finally:
                typer.echo(words()("record.written", folder=output), err=True)
    finally:
        sys.argv, sys.path[:] = before
    for remark in remarks:
        typer.echo(words().sentence(remark), err=True)


def compare(
    trace_a: TraceA,
    trace_b: TraceB,
    rename: Rename = None,
    details: options.Details = False,
    ops: options.Ops = False,
    op: options.Op = None,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
) -> None:
    """Compare two traces, on any machine and without the models.

    Exit status: 0 if all that the models returned is the same; 1 if what went in differs; 3 if the runs differ, and only
    running them again can tell why.
    """
    pairs = [text.partition("=") for text in rename or ()]
    for theirs, equals, _ in pairs:
        if not equals:
            raise InputError(f"--rename {theirs}", "THEIRS=OURS")
    check_writable(json, html)
    from forkpoint.traces import compare_traces

    result = compare_traces(trace_a, trace_b, rename={theirs: ours for theirs, _, ours in pairs})
    finish([("", result)], details=details, ops=ops, op=op, json=json, html=html, quiet=quiet, lang=lang)
