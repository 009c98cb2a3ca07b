"""How the gap grows from layer to layer: the output of every layer of both runs, per token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from forkpoint.align import gap, pair_elements
from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import Fetch, Taken
from forkpoint.impact import ResultComparison, ResultGap
from forkpoint.memory import Shelf, Shelved, load
from forkpoint.pairs import Pairs
from forkpoint.result import LayerDrift
from forkpoint.session import Session, Traced


def layer_paths(model: nn.Module | None) -> list[str]:
    """Paths of the model's layers: the entries of its outermost lists of like modules.

    >>> layer_paths(nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])))
    ['0.0', '0.1']
    """
    paths: list[str] = []
    for name, module in model.named_modules() if model is not None else ():
        inside = any(name.startswith(f"{path}.") for path in paths)
        listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1 and not inside
        if listed and len({type(child) for child in module.children()}) == 1:
            paths += [f"{name}.{key}" if name else key for key, _ in module.named_children()]
    return paths


Output = tuple[Tensor | Shelved, Label | None]


def layer_outputs(traced: Traced, paths: Sequence[str], shelf: Shelf) -> dict[str, list[Output]]:
    """The first output of each module, for every call, on the host."""
    found: dict[str, list[Output]] = {}

    def keep(taken: Taken) -> None:
        output = shelf.keep(taken.outputs[0].cpu())
        found.setdefault(taken.op.module, []).append((output, taken.output_labels[0]))

    traced.again([Fetch((path, "output", "?"), None, None, keep, output=0) for path in paths])
    return found


def measure(session: Session, compared: ResultComparison) -> tuple[LayerDrift, ...]:
    """The gap of each layer's output, and of each floating-point result after them."""
    paths = layer_paths(session.a.run.modules)
    session.progress.begin("measuring each layer")
    shelf = session.memory.shelf()
    outputs_a = layer_outputs(session.a, paths, shelf) if paths else {}
    outputs_b = layer_outputs(session.b, paths, shelf) if paths else {}
    rows: list[LayerDrift] = []
    session.progress.count(rows.__len__, len(paths))
    for path in paths:
        passes_a, passes_b = outputs_a.get(path, []), outputs_b.get(path, [])
        parts = _paired(session, passes_a, passes_b)
        first = next(parts, None)
        if first is not None:
            rows.append(_row(session, path, itertools.chain([first], parts)))
    rows += [_row(session, g.name, [(g.a, g.b, g.pairs)]) for g in compared.gaps if _shown(g)]
    shelf.close()
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
        found = gap(a, b, pairs)
        largest, relative = max(largest, found.max_abs), max(relative, found.max_rel)
        order = np.argsort(pairs.numbers, kind="stable")
        _, starts = np.unique(pairs.numbers[order], return_index=True)
        largest_each = np.maximum.reduceat(found.absolute[order], starts)
        for at, value in zip(order[starts].tolist(), largest_each.tolist(), strict=True):
            place = session.shared.place(pairs, at)
            per_place[place] = max(per_place.get(place, 0.0), value)
    names = session.a.run.layout.name
    tokens = [
        (None if s is None else names(s), position, value) for (s, position), value in per_place.items()
    ]
    return LayerDrift(name, largest, relative, tuple(tokens))
