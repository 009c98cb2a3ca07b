"""Of Ray's API what is used of it, in threads of this process, for where Ray is not installed."""

from __future__ import annotations

from concurrent import futures
from types import SimpleNamespace
from typing import Any

from forkpoint.sweeps import CellOutcome


class RayError(Exception):
    """What `ray.get` raises where an actor has died."""


exceptions = SimpleNamespace(RayError=RayError)
inits: list[dict[str, Any]] = []
resources: list[dict[str, Any]] = []
cluster = {"CPU": 2.0, "GPU": 1.0}


def cluster_resources() -> dict[str, float]:
    return cluster


def is_initialized() -> bool:
    return bool(inits)


def init(**options: Any) -> None:
    inits.append(options)


def remote(**options: Any) -> Any:
    resources.append(options)
    return lambda kind: SimpleNamespace(remote=lambda *given: _Handle(kind(*given)))


class _Handle:
    def __init__(self, actor: Any) -> None:
        self.dead = False
        self.ask = SimpleNamespace(
            remote=lambda cell: futures.ThreadPoolExecutor(1).submit(self._ask, actor, cell)
        )

    def _ask(self, actor: Any, cell: Any) -> CellOutcome:
        if cell.given.get("do") in ("die", "exit"):
            raise RayError
        if cell.given.get("do") == "hang":
            while not self.dead:
                futures.wait([], 0.01)
            raise RayError
        return actor.ask(cell)


def wait(references: Any, *, num_returns: int, timeout: float | None) -> Any:
    assert num_returns == 1
    done, left = futures.wait(references, timeout, futures.FIRST_COMPLETED)
    return list(done), list(left)


def get(reference: Any) -> Any:
    return reference.result()


def kill(handle: Any) -> None:
    handle.dead = True
