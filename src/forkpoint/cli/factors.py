"""`forkpoint factors`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.configured import Config
from forkpoint.cli.loading import load, say_first
from forkpoint.cli.outcome import answered
from forkpoint.cli.spoken import TYPED, command_line
from forkpoint.support.files import check_writable
from forkpoint.support.progress import watching

if TYPE_CHECKING:
    from typing import Any


def factors(
    model: options.Model,
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    pad_to: options.PadTo = None,
    side: options.PaddingSide = "right",
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="NAMES",
            help="The settings that are wanted, as int8,float16,eager; by default all.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    position_ids: options.Positions = "mask",
    chat_template: options.ChatTemplate = False,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attn: options.Attention = None,
    load_in_8bit: options.Int8 = False,
    trust_remote_code: options.TrustRemoteCode = False,
    max_memory: options.MaxMemory = None,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
    no_probes: options.NoProbes = False,
    config: Config = None,  # noqa: ARG001 - its callback has read it
) -> None:
    """Compare a prompt with itself padded, under one setting after the other: int8, attention, dtype, device.

    Several prompts are one batch. Exit status: that of the worst row that could be made.
    """
    texts = options.read_prompts(prompt, prompts)
    limit = options.read_size(max_memory)
    check_writable(json, html)
    loading: dict[str, Any] = {
        "revision": revision, "dtype": dtype, "device": device, "attn": attn, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    loaded = load(model, load_in_8bit=load_in_8bit, **loading)
    say_first(loaded, lang, aside=quiet or json == options.STDOUT)

    import forkpoint as fp

    with watching() as progress:
        answer = fp.factors(
            loaded.model, loaded.tokenizer, texts, pad_to, side,
            unquantized=lambda: load(model, **loading).model if load_in_8bit else None,
            only=None if only is None else [name.strip() for name in only.split(",")],
            position_ids=position_ids, chat_template=chat_template, probes=not no_probes, max_memory=limit,
            progress=progress,
        )  # fmt: skip
    typed = command_line(TYPED.get())
    answer = replace(answer, notes=(*loaded.notes, *answer.notes), call=typed or answer.call)
    answered(answer, json=json, html=html, quiet=quiet, lang=lang)
