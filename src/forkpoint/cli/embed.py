"""`forkpoint embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.cli import options, scene
from forkpoint.cli.configured import Config
from forkpoint.cli.outcome import finish
from forkpoint.errors import InputError
from forkpoint.questions.choices import Pooling
from forkpoint.support.files import check_writable
from forkpoint.support.progress import status, watching

if TYPE_CHECKING:
    from typing import Any

_PROMPT, _RUN = "Prompt", "Run"


def embed(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A local folder or a hub id.", show_default=False)
    ],
    texts: Annotated[
        Path,
        typer.Option(
            help="A file with one text a line; a line with a tab is a pair, for a cross-encoder.",
            rich_help_panel=_PROMPT,
            show_default=False,
        ),
    ],
    batch_size: Annotated[
        str, typer.Option(metavar="A,B", help="The batch sizes of both runs.", rich_help_panel=_RUN)
    ] = "1,32",
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="Pool the encoder's last hidden state; by default what sentence-transformers does, else mean.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attn: options.Attention = None,
    trust_remote_code: options.TrustRemoteCode = False,
    max_memory: options.MaxMemory = None,
    details: options.Details = False,
    ops: options.Ops = False,
    op: options.Op = None,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
    scene_folder: scene.SceneFolder = None,
    all_sources: options.AllSources = False,
    no_probes: options.NoProbes = False,
    config: Config = None,  # noqa: ARG001 - its callback has read it
) -> None:
    """Compare the vectors of texts in batches of one size and of another."""
    entries = [_pair(line) for line in options.read_prompts(None, texts, "--texts")]
    sizes = _sizes(batch_size)
    limit = options.read_size(max_memory)
    check_writable(json, html)
    scene.check(scene_folder)
    with status("starting"):
        import forkpoint as fp
        from forkpoint.models.embedding import load_embedding
    loaded = load_embedding(
        model, pooling=pooling, revision=revision, dtype=dtype, device=device, attn=attn,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    how: dict[str, Any] = {} if loaded.tokenizer is None else {"pooling": loaded.pooling}
    with watching() as progress:
        result = fp.embed(
            loaded.model, entries, sizes, tokenizer=loaded.tokenizer, probes=not no_probes, sources=all_sources,
            max_memory=limit, progress=progress, **how,
        )  # fmt: skip
    finish(
        [(f"{len(entries)} texts", result)], notes=tuple(loaded.notes), details=details, ops=ops, op=op, json=json, html=html, quiet=quiet, lang=lang,
        probes=not no_probes, save=lambda answer: scene.save(answer, scene_folder),
    )  # fmt: skip


def _pair(line: str) -> str | tuple[str, str]:
    first, tab, second = line.partition("\t")
    return (first, second) if tab else line


def _sizes(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--batch-size {text}", "two batch sizes, as 1,32")
    return int(parts[0]), int(parts[1])
