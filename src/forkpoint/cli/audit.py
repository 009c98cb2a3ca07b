"""`forkpoint audit`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.loading import load, say_first
from forkpoint.cli.outcome import answered
from forkpoint.support.files import check_writable

if TYPE_CHECKING:
    from typing import Any

_RUN = "Run"


def audit(
    model: options.Model,
    longest: Annotated[int, typer.Option(min=2, help="Most tokens of a row.", rich_help_panel=_RUN)] = 130,
    seconds: Annotated[
        float, typer.Option(min=0, help="The time after which nothing more is tried.", rich_help_panel=_RUN)
    ] = 300.0,
    invariant: options.Invariant = False,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attn: options.Attention = None,
    load_in_8bit: options.Int8 = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = None,
    html: options.Html = None,
    lang: options.Language = options.LANGUAGE,
) -> None:
    """Look for layouts in which the same tokens get other bits: padding, batches, caches, at sizes where kernels change.

    Exit status: 0 if no layout that was tried changes a bit, else 1.
    """
    check_writable(json, html)
    loading: dict[str, Any] = {
        "revision": revision, "dtype": dtype, "device": device, "attn": attn, "load_in_8bit": load_in_8bit,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    loaded = load(model, **loading)
    say_first(loaded, lang, aside=json == options.STDOUT)

    import forkpoint as fp

    with fp.invariant(loaded.model) if invariant else nullcontext():
        answer = fp.audit(loaded.model, longest=longest, seconds=seconds)
    answered(answer, json=json, html=html, lang=lang)
