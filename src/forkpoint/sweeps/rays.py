"""Workers that are actors of Ray, where that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkpoint.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from forkpoint.sweeps.cells import Cell, CellOutcome


class Actors:
    """Actors on the cluster that `RAY_ADDRESS` names, or on this machine.

    Args:
        run: asks a cell; a function of a module that each node has installed.
        gpus: how many GPUs each actor has for itself.

    Raises:
        InputError: Ray is not installed, or its cluster lacks the GPUs.
    """

    def __init__(self, run: Callable[[Cell], CellOutcome], gpus: int = 0) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports] - it need not be there
        except ImportError:
            raise InputError("Ray, which is not installed", "Ray", "pip install ray") from None
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        self._ray, self._run, self._gpus = ray, run, gpus
        there = ray.cluster_resources()
        self.most = int(min(there.get("CPU", 0), there.get("GPU", 0) / gpus if gpus else float("inf")))
        """How many actors there can be at a time: one more would wait for ever."""
        if not self.most:
            raise InputError(f"Ray without a {'GPU' if gpus else 'processor'}", "a cluster that has one")

    def start(self) -> Actor:
        actor = self._ray.remote(num_cpus=1, num_gpus=self._gpus)(_Asking).remote(self._run)
        return Actor(self._ray, actor)

    def wait(self, workers: Sequence[Actor], seconds: float | None) -> Iterable[Actor]:
        by_answer = {worker.pending: worker for worker in workers}
        ready, _ = self._ray.wait(list(by_answer), num_returns=1, timeout=seconds)
        return [by_answer[one] for one in ready]


class Actor:
    """One actor and what it was asked last."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.pending: Any = None
        self._death = ""

    def ask(self, cell: Cell) -> None:
        self.pending = self._actor.ask.remote(cell)

    def answer(self) -> CellOutcome | None:
        try:
            return self._ray.get(self.pending)
        except self._ray.exceptions.RayError as error:
            self._death = type(error).__name__
            return None

    def death(self) -> str:
        return self._death

    def end(self) -> None:
        self._ray.kill(self._actor)


class _Asking:
    """What an actor does."""

    def __init__(self, run: Callable[[Cell], CellOutcome]) -> None:
        self._run = run

    def ask(self, cell: Cell) -> CellOutcome:
        return self._run(cell)
