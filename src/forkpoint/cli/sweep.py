"""`forkpoint sweep`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.outcome import answered
from forkpoint.cli.spoken import TYPED, command_line
from forkpoint.errors import InputError
from forkpoint.support.files import check_writable
from forkpoint.support.progress import watching

_RUN, _OUTPUT = "Run", "Output"
File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="The questions, as TOML.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="DIR", help="Keep the answers there; by default in FILE without its suffix.",
        rich_help_panel=_OUTPUT, show_default=False,
    ),
]  # fmt: skip
Workers = Annotated[
    int,
    typer.Option(min=1, help="Questions that are asked at a time, each in a process with one model.", rich_help_panel=_RUN),
]  # fmt: skip
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", min=0.001, help="The time after which a question is given up; by default there is none.",
        rich_help_panel=_RUN, show_default=False,
    ),
]  # fmt: skip
Ray = Annotated[
    bool, typer.Option("--ray", help="Ask in actors of Ray, not in processes of this machine.", rich_help_panel=_RUN)
]  # fmt: skip


def sweep(
    file: File,
    out: Out = None,
    workers: Workers = 1,
    timeout: Timeout = None,
    ray: Ray = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
) -> None:
    """Ask many questions of many models and prompts, and put the answers into one table.

    What was answered is kept in a folder as it comes, so that the same command goes on where it was interrupted.

    Exit status: that of the worst answer; a question without an answer counts as 3.
    """
    from forkpoint.cli.swept import sweep as ask_all

    check_writable(json, html)
    if out is None and not file.suffix:
        raise InputError(f"{file} without a suffix", "--out DIR")
    with watching() as progress:
        answer = ask_all(
            file, out or file.with_suffix(""), workers=workers, timeout=timeout, ray=ray,
            trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    answer = replace(answer, call=command_line(TYPED.get()))
    answered(answer, json=json, html=html, quiet=quiet, lang=lang)
