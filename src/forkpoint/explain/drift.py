"""How the gap grows from layer to layer: the output of every layer of both runs, per token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import CopiedCall, Fetch
from forkpoint.explain.results import ResultComparison, ResultGap
from forkpoint.explain.session import Session
from forkpoint.match.align import gap, pair_elements
from forkpoint.match.pairs import Pairs
from forkpoint.result import LayerDrift
from forkpoint.support.memory import Shelved, load

Output = tuple[Tensor | Shelved, Label | None]
Outputs = dict[str, list[Output]]

_SHARE = 0.1
"""Of a GPU's free memory that may be taken for outputs of layers."""


def layer_paths(model: nn.Module | None) -> list[str]:
    """Paths of the model's layers: the entries of its outermost lists of like modules.

    >>> layer_paths(nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])))
    ['0.0', '0.1']
    """
    paths: dict[str, None] = {}
    for name, module in model.named_modules() if model is not None else ():
        inside = any(name[:end] in paths for end, letter in enumerate(name) if letter == ".")
        listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1 and not inside
        if listed and len({type(child) for child in module.children()}) == 1:
            paths |= dict.fromkeys(f"{name}.{key}" if name else key for key, _ in module.named_children())
    return list(paths)


class LayerOutputs:
    """The first output of every layer of both runs, for every call: on their GPU if it has room, else on the host.

    They are gathered by whatever second pass is made, so that they need none of their own.

    Attributes:
        fetches: what a second pass of run A, and one of run B, has to keep; each is to be made once.
        of: for each run, outputs and their labels by the layer's path.
    """

    def __init__(self, session: Session) -> None:
        trace_a, trace_b = session.a.trace, session.b.trace
        theirs = {trace_b.plain(path): path for path in layer_paths(session.b.run.modules)}
        mine = layer_paths(session.a.run.modules)
        self.paths = {path: theirs[plain] for path in mine if (plain := trace_a.plain(path)) in theirs}
        """Path of each layer in run A, and in run B."""
        self.of: tuple[Outputs, Outputs] = ({}, {})
        self.shelf = session.memory.shelf()
        self._room: dict[torch.device, int] = {}
        self.fetches = (
            self._fetches(self.of[0], self.paths.keys()),
            self._fetches(self.of[1], self.paths.values()),
        )

    def _fetches(self, outputs: Outputs, paths: Iterable[str]) -> list[Fetch]:
        def keep(call: CopiedCall) -> None:
            output = call.outputs[0] if self._stays(call.outputs[0]) else call.outputs[0].cpu()
            outputs.setdefault(call.op.module, []).append((self.shelf.keep(output), call.output_labels[0]))

        return [Fetch((path, "output", "?"), None, None, keep, output=0) for path in paths]

    def _stays(self, output: Tensor) -> bool:
        """Whether an output stays on its device, where comparing takes a fraction of the time of copying it."""
        if not output.is_cuda:
            return False
        room = self._room.get(output.device)
        if room is None:
            cached = torch.cuda.memory_reserved(output.device) - torch.cuda.memory_allocated(output.device)
            room = int(_SHARE * (torch.cuda.mem_get_info(output.device)[0] + cached))
        self._room[output.device] = room - output.nbytes
        return room >= output.nbytes

    def gather(self, session: Session) -> None:
        """Make a second pass for them, if none was made."""
        for traced, outputs, fetches in zip((session.a, session.b), self.of, self.fetches, strict=True):
            if fetches and not outputs:
                traced.again(fetches)


def measure(
    session: Session, compared: ResultComparison, outputs: LayerOutputs | None = None
) -> tuple[LayerDrift, ...]:
    """The gap of each layer's output, and of each floating-point result after them.

    Args:
        outputs: those that a second pass has gathered already; without, one is made.
    """
    session.progress.begin("measuring each layer")
    outputs = outputs or LayerOutputs(session)
    outputs.gather(session)
    rows: list[LayerDrift] = []
    session.progress.count(rows.__len__, len(outputs.paths))
    for path, theirs in outputs.paths.items():
        passes_a, passes_b = outputs.of[0].get(path, []), outputs.of[1].get(theirs, [])
        parts = _paired(session, passes_a, passes_b)
        first = next(parts, None)
        if first is not None:
            rows.append(_row(session, path, itertools.chain([first], parts)))
    rows += [_row(session, g.name, [(g.a, g.b, g.pairs)]) for g in compared.gaps if _shown(g)]
    outputs.shelf.close()
    return tuple(rows)


def _paired(
    session: Session, passes_a: list[Output], passes_b: list[Output]
) -> Iterator[tuple[Tensor, Tensor, Pairs]]:
    """The outputs of a layer that share elements, of one pair of calls at a time."""
    one_to_one = len(passes_a) == len(passes_b)
    for i, (kept_a, label_a) in enumerate(passes_a):
        a = load(kept_a)
        for j, (kept_b, label_b) in enumerate(passes_b):
            if one_to_one and i != j:
                continue
            b = load(kept_b)
            pairs = pair_elements(a, label_a, b, label_b, session.shared)
            if len(pairs):
                yield a, b, pairs


def _shown(result: ResultGap) -> bool:
    return result.a.dtype.is_floating_point and not result.name.startswith(("hidden_states", "attentions"))


def _row(session: Session, name: str, parts: Iterable[tuple[Tensor, Tensor, Pairs]]) -> LayerDrift:
    largest, relative = 0.0, 0.0
    per_place: dict[tuple[int | None, int | None], float] = {}
    for a, b, pairs in parts:
        apart = gap(a, b, pairs)
        largest, relative = max(largest, apart.max_abs), max(relative, apart.max_rel)
        largest_each = np.maximum.reduceat(apart.largest[pairs.order], pairs.starts).tolist()
        places = session.shared.places(pairs.distinct, by_sample=pairs.by_sample)
        for place, value in zip(places, largest_each, strict=True):
            per_place[place] = max(per_place.get(place, 0.0), value)
    names = session.a.run.layout.name
    tokens = [
        (None if s is None else names(s), position, value) for (s, position), value in per_place.items()
    ]
    return LayerDrift(name, largest, relative, tuple(tokens))
