"""`forkpoint generate`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.asking import INVARIANT_NOTE
from forkpoint.cli.configured import Config
from forkpoint.cli.loading import load, say_first
from forkpoint.cli.outcome import answered
from forkpoint.cli.spoken import TYPED, command_line
from forkpoint.errors import InputError
from forkpoint.questions.choices import Generating
from forkpoint.support.files import check_writable
from forkpoint.support.progress import watching

if TYPE_CHECKING:
    from typing import Any

_RUN = "Run"


def generate(
    model: options.Model,
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    chat_template: options.ChatTemplate = False,
    against: Annotated[
        Generating,
        typer.Option(
            "--against",
            help="batch: in a batch with others; no-cache: without a cache; static, sliding, offloaded, quantized: with a cache "
            "of that kind; assisted: several candidates in one call.",
            rich_help_panel=_RUN,
        ),
    ] = "batch",
    assistant: Annotated[
        str | None,
        typer.Option(
            help="For assisted, a model that guesses the candidates; without one they are looked up in the text so far.",
            metavar="MODEL",
            rich_help_panel=_RUN,
        ),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=1, help="Most tokens to generate.", rich_help_panel=_RUN)
    ] = 32,
    size: Annotated[
        int, typer.Option(min=2, help="Rows of the batch, the prompt's among them.", rich_help_panel=_RUN)
    ] = 8,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attn: options.Attention = None,
    load_in_8bit: options.Int8 = False,
    trust_remote_code: options.TrustRemoteCode = False,
    max_memory: options.MaxMemory = None,
    invariant: options.Invariant = False,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
    no_probes: options.NoProbes = False,
    config: Config = None,  # noqa: ARG001 - its callback has read it
) -> None:
    """Generate greedily in two ways: the first token that differs, and the op behind it.

    Exit status: that of the verdict on both ways up to that token; 0 where no token differs.
    """
    texts = options.read_prompts(prompt, prompts)
    if len(texts) > 1:
        raise InputError(f"{len(texts)} prompts", "one")
    limit = options.read_size(max_memory)
    check_writable(json, html)
    loading: dict[str, Any] = {
        "revision": revision, "dtype": dtype, "device": device, "attn": attn, "load_in_8bit": load_in_8bit,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    loaded = load(model, **loading)
    say_first(loaded, lang, aside=quiet or json == options.STDOUT)

    import forkpoint as fp

    guessing = None if assistant is None else load(assistant, **{**loading, "revision": None}).model
    within = fp.invariant(loaded.model) if invariant else nullcontext()
    with watching() as progress, within:
        answer = fp.generate(
            loaded.model, loaded.tokenizer, texts[0], against, max_new_tokens=new_tokens, size=size, assistant=guessing,
            chat_template=chat_template, probes=not no_probes, max_memory=limit, progress=progress,
        )  # fmt: skip
    answer = replace(answer, call=command_line(TYPED.get()) or answer.call)
    if answer.result is not None:
        own = (INVARIANT_NOTE,) if invariant else ()
        notes = (*loaded.notes, *own, *answer.result.notes)
        answer = replace(answer, result=replace(answer.result, notes=notes))
    answered(answer, json=json, html=html, quiet=quiet, lang=lang)
