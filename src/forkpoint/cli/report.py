"""`forkpoint report`."""

from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.outcome import Fixed, answered, show_answers, show_fixed, write_all
from forkpoint.errors import InputError
from forkpoint.result import Result
from forkpoint.result.statuses import EXIT_STATUS
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
TableFile = Annotated[
    Path | None,
    typer.Option(
        "--table",
        metavar="FILE",
        help="Write the table of ops as FILE.csv or FILE.parquet (with pyarrow).",
        show_default=False,
    ),
]
Explorer = Annotated[
    Path | None,
    typer.Option(
        "--model-explorer",
        metavar="FILE",
        help="Write a graph for Model Explorer, and its node data beside it.",
        show_default=False,
    ),
]
Private = Annotated[bool, typer.Option("--private", help="Leave those in the issue.")]


def report(
    file: File,
    details: options.Details = False,
    ops: options.Ops = False,
    op: options.Op = None,
    html: options.Html = None,
    table: TableFile = None,
    model_explorer: Explorer = None,
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
    check_writable(html, table, model_explorer)
    with status("reading"):
        from forkpoint.cli.reading import read

        answer = read(file)
    outputs = {"--table": table, "--model-explorer": model_explorer, "--issue": issue, "--markdown": markdown}
    wanted = next((option for option, value in outputs.items() if value), "")
    if wanted and not isinstance(answer, Result):
        raise InputError(f"{wanted} of {file}", "the result of one comparison")
    if isinstance(answer, Fixed):
        if html is not None:
            raise InputError(f"--html of {file}", "the result of one comparison")
        show_fixed(answer, details=details, lang=lang)
    if isinstance(answer, list):
        show_answers(answer, details=details, ops=ops, op=op, html=html, lang=lang)
    if not isinstance(answer, Result):
        answered(answer, html=html, lang=lang, details=details)
    if issue or markdown:
        from forkpoint.report.markdown import to_issue, to_markdown

        text = to_issue(answer, lang=lang, private=private) if issue else to_markdown(answer, lang=lang)
        typer.echo(text, nl=False)
    else:
        from rich.console import Console

        from forkpoint.report.terminal import render

        render(answer, Console(), details=details, ops=ops or op is not None, matching=op, lang=lang)
    from forkpoint.report.export import write_model_explorer, write_table

    write_all(
        (html, lambda path: answer.to_html(path, lang=lang)),
        (table, lambda path: write_table(answer, path)),
        (model_explorer, lambda path: write_model_explorer(answer, path)),
    )
    raise typer.Exit(EXIT_STATUS[answer.verdict.kind] if answer.verdict.probed else 0)
