"""Loading a model for a command."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from forkpoint.support.progress import status

if TYPE_CHECKING:
    from forkpoint.models.loading import LoadedModel


def load(name: str, **options: Any) -> LoadedModel:
    """`fp.load`, with a sign of life while torch is imported.

    Its notes say once what bitsandbytes would log on every call of every layer.
    """
    with status("starting"):
        import forkpoint as fp

        load = fp.load
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return load(name, **options)
