"""`forkpoint report`."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from forkpoint.cli import options
from forkpoint.cli.outcome import EXIT_STATUS, show_answers, worst_status
from forkpoint.errors import InputError
from forkpoint.questions.answers import Factors, Generation
from forkpoint.result import Result
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
    """Show the report of what --json wrote, without its models; `--html` writes it as a page, too.

    Exit status: that of the command that wrote it, 2 if the file holds nothing of the kind.
    """
    if private and not issue:
        raise InputError("--private without --issue", "both, or neither")
    if html is not None:
        check_writable(html)
    with status("reading"):
        from forkpoint.cli.reading import read

        found = read(file)
    if isinstance(found, list):
        show_answers(found, details=details, ops=ops, op=op, html=html, lang=lang)
    if not isinstance(found, Result):
        if markdown or issue:
            raise InputError(
                f"--{'issue' if issue else 'markdown'} of {file}", "the result of one comparison"
            )
        _show(found, html, lang)
    if issue or markdown:
        from forkpoint.report.markdown import to_issue, to_markdown

        text = to_issue(found, lang=lang, private=private) if issue else to_markdown(found, lang=lang)
        typer.echo(text, nl=False)
    else:
        from rich.console import Console

        from forkpoint.report.terminal import render

        render(found, Console(), details=details, ops=ops or op is not None, matching=op, lang=lang)
    if html is not None:
        found.to_html(html, lang=lang)
    raise typer.Exit(EXIT_STATUS[found.verdict.kind] if found.verdict.probed else 0)


def _show(found: Factors | Generation, html: Path | None, lang: str) -> NoReturn:
    from rich.console import Console

    if isinstance(found, Factors):
        from forkpoint.report.factors import render_factors

        render_factors(found, Console(), lang=lang)
        kinds = [row.verdict for row in found.rows if row.verdict is not None and row.probed]
    else:
        from forkpoint.report.generation import render_generation

        render_generation(found, Console(), lang=lang)
        told = found.result is not None and found.result.verdict.probed
        kinds = [found.result.verdict.kind] if told and found.result is not None else []
    if html is not None:
        found.to_html(html, lang=lang)
    raise typer.Exit(worst_status(kinds))
