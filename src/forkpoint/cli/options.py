"""Arguments and options that commands share, and what they read."""

import os
from pathlib import Path
from typing import Annotated

import typer

from forkpoint.errors import InputError
from forkpoint.questions.choices import PositionIds, Side
from forkpoint.support.files import reason
from forkpoint.support.language import Lang, of_locale
from forkpoint.support.sizes import parse_size

MAX_PROMPTS = 1 << 28
"""Most bytes of a file of prompts."""
_MODEL, _PROMPT, _RUN, _OUTPUT = "Model", "Prompt", "Run", "Output"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A local folder, a GGUF file, a hub id, or demo.", show_default=False
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=_MODEL, show_default=False),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 or float64; by default the checkpoint's.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps; by default cpu.", rich_help_panel=_MODEL, show_default=False),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attn",
        help="Attention implementation: eager, sdpa, …; by default the model's choice.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--load-in-8bit", help="Quantise the linear layers with bitsandbytes.", rich_help_panel=_MODEL
    ),
]

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python code that a model brings along: only if you trust whoever wrote it.",
        rich_help_panel=_MODEL,
    ),
]

Prompt = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--prompt", help="A prompt; may be given again.", rich_help_panel=_PROMPT, show_default=False
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="A file with one prompt a line.", rich_help_panel=_PROMPT, show_default=False),
]
ChatTemplate = Annotated[
    bool,
    typer.Option(
        "--chat-template", help="Put each prompt through the chat template.", rich_help_panel=_PROMPT
    ),
]
PadTo = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Length in tokens to pad to; by default 50 or more.",
        rich_help_panel=_PROMPT,
        show_default=False,
    ),
]
PaddingSide = Annotated[Side, typer.Option(help="Where the padding goes.", rich_help_panel=_PROMPT)]
Positions = Annotated[
    PositionIds,
    typer.Option(
        "--position-ids",
        help="mask: made from the mask as the architecture does in generate; none: left to the model.",
        rich_help_panel=_PROMPT,
    ),
]

MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Host memory for what is recorded, as 500MB or 2GiB; the rest goes to a temporary file. "
        "By default there is no limit.",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]

Details = Annotated[
    bool,
    typer.Option(
        "--details",
        help="The whole report: evidence, inputs, drift, counts.",
        rich_help_panel=_OUTPUT,
    ),
]
Op = Annotated[
    str | None,
    typer.Option(
        "--op",
        metavar="PATTERN",
        help="List the captured values whose name, variable or place in the source is like this: q_proj, '*/softmax'.",
        rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]
Invariant = Annotated[
    bool,
    typer.Option(
        "--invariant",
        help="Make both runs layout-invariantly, or say what stands in the way.",
        rich_help_panel=_RUN,
    ),
]

Ops = Annotated[
    bool, typer.Option("--ops", help="List the captured values by name.", rich_help_panel=_OUTPUT)
]
STDOUT = Path("/dev/stdout")


def _stdout(path: Path | None) -> Path | None:
    return STDOUT if path == Path("-") else path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the whole result; - prints it, and nothing else.",
        rich_help_panel=_OUTPUT,
        show_default=False,
        callback=_stdout,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Print no report; the exit status tells.", rich_help_panel=_OUTPUT),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the report as a page of HTML.",
        rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]


LANGUAGE = of_locale(os.environ)
"""The language of a report if nothing is said."""
Language = Annotated[
    Lang,
    typer.Option(
        "--lang",
        help="Language of the report, English or Chinese; by default the locale's.",
        rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]
AllSources = Annotated[
    bool,
    typer.Option(
        "--all-sources",
        help="List every op that parts ways on equal inputs, not the first alone.",
        rich_help_panel=_OUTPUT,
    ),
]
Backward = Annotated[
    bool,
    typer.Option(
        "--backward",
        help="Compare gradients, too: of every op's output and of every parameter, with the prompt as labels.",
        rich_help_panel=_OUTPUT,
    ),
]
NoProbes = Annotated[
    bool,
    typer.Option(
        "--no-probes", help="Only compare; don't look for the cause. Exit status 0.", rich_help_panel=_OUTPUT
    ),
]


def read_size(text: str | None) -> int | None:
    """`--max-memory` in bytes; None where it was not given.

    Raises:
        InputError: it is no size.
    """
    return None if text is None else parse_size(text, "--max-memory")


def read_prompts(texts: list[str] | None, file: Path | None, option: str = "--prompts") -> list[str]:
    """The prompts given one by one, then those of the file that an option names, one a line without blank lines.

    Raises:
        InputError: there is no prompt, or the file can't be read.
    """
    prompts = list(texts or ())
    if file is not None:
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_PROMPTS + 1)
            if len(data) > MAX_PROMPTS:  # /dev/zero, for one, has no end
                raise InputError(f"{option} {file} has more than {MAX_PROMPTS:,} bytes", "prompts")
            lines = data.decode().splitlines()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{option} {file} can't be read: {reason(error)}", "a UTF-8 file with one prompt a line"
            ) from None
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        expected = "-p PROMPT or --prompts FILE" if option == "--prompts" else f"{option} FILE"
        raise InputError("no prompt", f"{expected} with a line in it")
    return prompts
