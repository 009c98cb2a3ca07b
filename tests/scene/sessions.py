"""Two runs, traced and joined, and the op at which they part ways: what a scene is made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from forkpoint import scene
from forkpoint.explain.locate import Located, locate
from forkpoint.explain.session import Session, trace_faithfully
from forkpoint.match import Join, Shared
from forkpoint.runs.pairing import pair_samples, read_content
from forkpoint.runs.run import Run

T = TypeVar("T")


def here(function: Callable[[], T]) -> T:
    """Calls it from one place: an op of a model that is torch's own has its place in the caller's source."""
    return function()


def join(a: Run, b: Run) -> tuple[Session, Located | None]:
    pairing = pair_samples(
        a.layout, b.layout, read_content(a.layout, a.calls), read_content(b.layout, b.calls)
    )
    traced_a, traced_b = here(partial(trace_faithfully, a)), here(partial(trace_faithfully, b))
    shared = Shared(traced_a.trace.table, traced_b.trace.table, pairing)
    joined = Join(traced_a.trace, traced_b.trace, shared)
    session = Session(traced_a, traced_b, shared, joined, look=scene.look)
    return session, here(partial(locate, session, lambda _sample, _position: None))


def save(a: Run, b: Run, directory: Path, **options: Any) -> scene.Scene:
    """The scene of the first divergence of two runs, which must differ."""
    session, located = join(a, b)
    assert located is not None, "the runs don't differ"
    return here(partial(scene.save, session, located, directory, versions={"torch": "test"}, **options))
