"""`forkpoint logprobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.outcome import answered
from forkpoint.support.files import check_writable

A = Annotated[Path, typer.Argument(metavar="A.jsonl", help="What one engine recorded.", show_default=False)]
B = Annotated[Path, typer.Argument(metavar="B.jsonl", help="What the other did.", show_default=False)]
Narrowest = Annotated[
    str, typer.Option(help="The narrowest that either engine computes in: float32, float16 or bfloat16.")
]


def logprobs(
    a: A,
    b: B,
    dtype: Narrowest = "bfloat16",
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
) -> None:
    """Tell from recorded log-probabilities alone how two engines differ: temperature, top-p, shifted positions, other weights.

    Each file has one JSON object a line, with token_ids and logprobs of one sequence.

    Exit status: 0 if nothing but rounding is seen, 1 if there is another cause, 3 if it can't be told.
    """
    check_writable(json, html)
    import forkpoint as fp

    answered(fp.logprobs(a, b, dtype=dtype), json=json, html=html, quiet=quiet, lang=lang)
