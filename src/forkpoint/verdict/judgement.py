"""What the experiments come to."""

from __future__ import annotations

from dataclasses import dataclass

from forkpoint.explain.locate import Located
from forkpoint.probes.nonfinite import Unfinite
from forkpoint.probes.origin import Origin
from forkpoint.result import Divergence, Verdict


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the origins if the runs differ in exact arithmetic and they could be located.

    Attributes:
        origins: what a report shows of them.
        origin: the first of them as the experiments in float64 came upon it; None where none did.
        unfinite: NaN and infinities of both runs, and what makes them.
        by_module: whether the origin is a compiled module, which is known by its path whatever its ops are called.
        located: the first origin as it ran in both runs, where that is known without another pass.
    """

    verdict: Verdict
    origins: tuple[Divergence, ...] = ()
    origin: Origin | None = None
    unfinite: Unfinite | None = None
    located: Located | None = None
    by_module: bool = False
