"""Loading a model for a command."""

from __future__ import annotations

import gc
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import typer

from forkpoint.support.progress import status

if TYPE_CHECKING:
    from forkpoint.models.loading import LoadedModel


CACHE: ContextVar[dict[Any, LoadedModel] | None] = ContextVar("CACHE", default=None)
"""Where the model that was loaded last is kept, in a process that asks several questions; None elsewhere."""


def load(name: str, **options: Any) -> LoadedModel:
    """`fp.load`, with a sign of life while torch is imported.

    Its notes say once what bitsandbytes would log on every call of every layer.
    """
    cache, key = CACHE.get(), (name, tuple(sorted(options.items())))
    if cache is not None and key in cache:
        return cache[key]
    if cache is not None:
        cache.clear()  # before the next one is there: a machine may have room for one alone
        gc.collect()
    with status("starting"):
        import forkpoint as fp

        load = fp.load
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    loaded = load(name, **options)
    if cache is not None:
        cache[key] = loaded
    return loaded


def say_first(loaded: LoadedModel, lang: str, *, aside: bool = False) -> None:
    """Print what a reader should know before anything else: that the demo is not the model that is meant by it.

    It goes to standard error (`aside`) where standard output is for something else.
    """
    from forkpoint.models.demo import RANDOM_NOTE

    if RANDOM_NOTE in loaded.notes:
        say(RANDOM_NOTE, lang=lang, aside=aside)


def say(note: str, *, lang: str, aside: bool) -> None:
    """Print a note before the report, to standard error (`aside`) where standard output is for something else."""
    from forkpoint.report.words import Words

    typer.echo(Words(lang).sentence(note), err=aside)
