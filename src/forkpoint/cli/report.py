"""`forkpoint report`."""

from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.outcome import EXIT_STATUS
from forkpoint.errors import InputError
from forkpoint.support.files import check_writable
from forkpoint.support.progress import status

File = Annotated[Path, typer.Argument(metavar="RESULT", help="A file that --json wrote.", show_default=False)]


Markdown = Annotated[bool, typer.Option("--markdown", help="Print the report in Markdown.")]
Issue = Annotated[
    bool,
    typer.Option(
        "--issue",
        help="Print an issue in Markdown, without texts of prompts, names of samples, paths and notes.",
    ),
]
Private = Annotated[bool, typer.Option("--private", help="Leave those in the issue.")]


def report(
    file: File,
    details: options.Details = False,
    ops: options.Ops = False,
    op: options.Op = None,
    html: options.Html = None,
    markdown: Markdown = False,
    issue: Issue = False,
    private: Private = False,
    lang: options.Language = options.LANGUAGE,
) -> None:
    """Show the report of a result that was written to a file, without its models; `--html` writes it as a page, too.

    Exit status: that of the comparison, 2 if the file holds no result.
    """
    if private and not issue:
        raise InputError("--private without --issue", "both, or neither")
    if html is not None:
        check_writable(html)
    with status("reading"):
        from rich.console import Console

        from forkpoint.report.markdown import to_issue, to_markdown
        from forkpoint.report.terminal import render
        from forkpoint.result import Result

        result = Result.from_json(file)
    if issue:
        typer.echo(to_issue(result, lang=lang, private=private), nl=False)
    elif markdown:
        typer.echo(to_markdown(result, lang=lang), nl=False)
    else:
        render(result, Console(), details=details, ops=ops or op is not None, matching=op, lang=lang)
    if html is not None:
        result.to_html(html, lang=lang)
    raise typer.Exit(EXIT_STATUS[result.verdict.kind] if result.verdict.probed else 0)
