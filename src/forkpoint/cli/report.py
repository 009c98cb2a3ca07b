"""`forkpoint report`."""

from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.outcome import EXIT_STATUS
from forkpoint.support.files import check_writable
from forkpoint.support.progress import status

File = Annotated[Path, typer.Argument(metavar="RESULT", help="A file that --json wrote.", show_default=False)]


def report(
    file: File, ops: options.Ops = False, html: options.Html = None, lang: options.Language = "en"
) -> None:
    """Show the report of a result that was written to a file, without its models; `--html` writes it as a page, too.

    Exit status: that of the comparison, 2 if the file holds no result.
    """
    if html is not None:
        check_writable(html)
    with status("reading"):
        from rich.console import Console

        from forkpoint.report.terminal import render
        from forkpoint.result import Result

        result = Result.from_json(file)
    render(result, Console(), ops=ops, lang=lang)
    if html is not None:
        result.to_html(html, lang=lang)
    raise typer.Exit(EXIT_STATUS[result.verdict.kind] if result.verdict.probed else 0)
