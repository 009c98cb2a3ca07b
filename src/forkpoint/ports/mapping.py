"""`mapping`: which parameters and modules of a port are which of its reference, and how each was found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from forkpoint.errors import InputError
from forkpoint.ports.weights import Ints, SharedRows, Slices, meet, slices_of
from forkpoint.runs.run import Run

HOW = {
    "weights": "the same values",
    "rows": "rows with the same values",
    "transposed": "columns that have the values of its rows, or rows of its columns",
    "module": "its module's other parameters",
    "order": "the only place left in its module, or its order there",
    "user": "given by hand",
}
"""By what a match was found."""


@dataclass(frozen=True)
class Match:
    """One parameter of a port, all of it or some rows, and what it is in the reference.

    Attributes:
        mine, reference: names of the parameters.
        how: a key of `HOW`.
        rows_mine, rows_reference: the rows that belong together, in pairs; None where all do, one for one.
    """

    mine: str
    reference: str
    how: str
    rows_mine: Ints | None = None
    rows_reference: Ints | None = None


class Mapping:
    """Which parameter of a port is which of the reference; made by `mapping`, and changed by hand.

    >>> import torch
    >>> reference = nn.ModuleDict({"q": nn.Linear(3, 4), "k": nn.Linear(3, 4)})
    >>> port = nn.ModuleDict({"qk": nn.Linear(3, 8)})
    >>> with torch.no_grad():
    ...     for part in ("weight", "bias"):
    ...         both = [getattr(reference[name], part) for name in "qk"]
    ...         _ = getattr(port["qk"], part).copy_(torch.cat(both))
    >>> print(mapping(port, reference))
    qk.weight [0:4]  q.weight  rows
    qk.weight [4:8]  k.weight  rows
    qk.bias [0:4]    q.bias    rows
    qk.bias [4:8]    k.bias    rows

    Attributes:
        matches: in the order of the port's parameters.
        modules: for a module of the port, the one of the reference that does the same; by their paths.
        unmatched_mine, unmatched_reference: names of parameters without a counterpart.
    """

    def __init__(self, mine: list[Slices], reference: list[Slices], modules: _Paths, others: _Paths) -> None:
        self._mine, self._reference = {s.name: s for s in mine}, {s.name: s for s in reference}
        self._paths, self._others = modules, others
        self._by_user: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._work_out()

    def set(self, mine: str, reference: str) -> None:
        """Say that a parameter or a module of the port is one of the reference.

        Raises:
            InputError: one of them is not there.
        """
        for name, names, whose in (
            (mine, self._mine.keys() | self._paths.keys(), "port"),
            (reference, self._reference.keys() | self._others.keys(), "reference"),
        ):
            if name not in names:
                raise InputError(f"{name}, which the {whose} has not", "a parameter or a module, by its path")
        if (mine in self._mine) != (reference in self._reference):
            raise InputError(f"{mine} and {reference}", "two parameters, or two modules")
        self._by_user[mine] = reference
        self._dropped.discard(mine)
        self._work_out()

    def drop(self, mine: str) -> None:
        """Say that a parameter or a module of the port has no counterpart."""
        if mine not in self._mine and mine not in self._paths:
            raise InputError(f"{mine}, which the port has not", "a parameter or a module, by its path")
        self._by_user.pop(mine, None)
        self._dropped.add(mine)
        self._work_out()

    def _work_out(self) -> None:
        by_user = {m: r for m, r in self._by_user.items() if m in self._mine}
        free_a = [s for s in self._mine.values() if s.name not in by_user and not self._is_dropped(s.name)]
        free_b = [s for s in self._reference.values() if s.name not in by_user.values()]
        matches = [Match(m, r, "user") for m, r in by_user.items()]
        matches += [_match(shared) for shared in meet(free_a, free_b)]
        matches += self._of_modules(matches, free_a, free_b)
        self.modules = self._modules(matches)
        while more := self._in_order(matches, free_a, free_b):
            matches += more
            self.modules = self._modules(matches)
        place = {name: i for i, name in enumerate(self._mine)}
        first = {id(m): 0 if m.rows_mine is None else int(m.rows_mine.min()) for m in matches}
        self.matches = tuple(sorted(matches, key=lambda m: (place[m.mine], first[id(m)])))
        there = {m.mine for m in matches}, {m.reference for m in matches}
        self.unmatched_mine = tuple(n for n in self._mine if n not in there[0])
        self.unmatched_reference = tuple(n for n in self._reference if n not in there[1])

    def _is_dropped(self, name: str) -> bool:
        return any(name == one or name.startswith(f"{one}.") for one in self._dropped)

    def _of_modules(self, matches: list[Match], a: list[Slices], b: list[Slices]) -> list[Match]:
        """Of modules whose other parameters belong together, those that are named alike: a bias of zeros."""
        done = {m.mine for m in matches}, {m.reference for m in matches}
        partners: dict[str, set[str]] = {}
        for m in matches:
            partners.setdefault(_module(m.mine), set()).add(_module(m.reference))
        pairs: list[Match] = []
        rest = {(s.module, s.own_name): s for s in b if s.name not in done[1]}
        for s in a:
            theirs = partners.get(s.module, set())
            if s.name in done[0]:
                continue
            for module in sorted(theirs):
                other = rest.get((module, s.own_name))
                if other is not None and (len(theirs) > 1 or other.shape == s.shape):
                    like = next(
                        m for m in matches if (_module(m.mine), _module(m.reference)) == (s.module, module)
                    )
                    rows = (
                        (like.rows_mine, like.rows_reference)
                        if s.is_vector and like.how == "rows"
                        else (None, None)
                    )
                    pairs.append(Match(s.name, other.name, "module", *rows))
        return pairs

    def _in_order(self, matches: list[Match], a: list[Slices], b: list[Slices]) -> list[Match]:
        """Within modules that belong together, parameters of one shape of which both have as many, in their order.

        In the whole model order tells nothing: one may list the norms by layer, the other by kind.
        """
        done = {m.mine for m in matches}, {m.reference for m in matches}
        rest_a, rest_b = [s for s in a if s.name not in done[0]], [s for s in b if s.name not in done[1]]
        held = _held(matches) | self.modules
        for path in sorted(held, key=lambda p: -p.count(".") - bool(p)):
            other = held[path]
            mine = [s for s in rest_a if _inside(s.name, path)]
            theirs = [s for s in rest_b if _inside(s.name, other)]
            pairs: list[Match] = []
            for kind in dict.fromkeys(_kind(s) for s in mine):
                left, right = [s for s in mine if _kind(s) == kind], [s for s in theirs if _kind(s) == kind]
                if len(left) == len(right) and (len(left) == 1 or (path and other)):
                    pairs += [Match(x.name, y.name, "order") for x, y in zip(left, right, strict=True)]
            if pairs:
                return pairs
        return []

    def _modules(self, matches: list[Match]) -> dict[str, str]:
        """Modules that hold the same parameters, the innermost ones of each such set."""
        partners = {"": ""}
        there: dict[str, set[str]] = {}
        back: dict[str, set[str]] = {}
        for m in matches:
            for path in _above(m.mine):
                there.setdefault(path, set()).add(m.reference)
            for path in _above(m.reference):
                back.setdefault(path, set()).add(m.mine)
        for path, names in there.items():
            other = _common(names)
            if path and other and _common(back[other]) == path:
                partners[path] = other
        partners |= {m: r for m, r in self._by_user.items() if m in self._paths}
        return {path: other for path, other in partners.items() if not (path and self._is_dropped(path))}

    def counterpart(self, module: str) -> str | None:
        """The reference's path of a module of the port, if it is known: of a part of a fused one, of what it is in."""
        while module not in self.modules:
            if not module:
                return None
            module = module.rpartition(".")[0]
        return self.modules[module]

    def __str__(self) -> str:
        rows = [(m.mine + _span(m.rows_mine, self._mine[m.mine]), m.reference + _span(m.rows_reference, self._reference[m.reference]), m.how) for m in self.matches]  # fmt: skip
        rows += [(name, "-", "") for name in self.unmatched_mine]
        rows += [("-", name, "") for name in self.unmatched_reference]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        return "\n".join(f"{x:{widths[0]}}  {y:{widths[1]}}  {how}".rstrip() for x, y, how in rows)

    __repr__ = __str__


_Paths = dict[str, None]


def mapping(mine: Run | nn.Module, reference: Run | nn.Module) -> Mapping:
    """Find which parameters and modules of a port are which of its reference, by their values alone.

    Projections that are fused, split, transposed or whose rows are in another order meet row by row. Where values can't
    tell (norms that are all ones), what is left in modules that belong together meets in its order.

    Args:
        mine: the port, a model or a run of one.
        reference: what it was ported from.

    Returns:
        The mapping: `print` shows it, `set` and `drop` change it, `compare(..., mapping=...)` takes it.

    Raises:
        InputError: one of them has no modules.
    """
    models = [_model_of(one) for one in (mine, reference)]
    paths = [dict.fromkeys(name for name, _ in model.named_modules()) for model in models]
    return Mapping(slices_of(models[0]), slices_of(models[1]), paths[0], paths[1])


def _model_of(source: Any) -> nn.Module:
    model = source.modules if isinstance(source, Run) else source
    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(source).__name__} without modules", "a model, or an fp.Run of one")
    return model


def _match(shared: SharedRows) -> Match:
    how = "weights" if shared.rows_mine is None else "transposed" if shared.transposed else "rows"
    return Match(shared.mine, shared.reference, how, shared.rows_mine, shared.rows_reference)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _above(name: str) -> Iterable[str]:
    """The modules around a parameter, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _common(names: Iterable[str]) -> str:
    """The innermost module around some parameters."""
    parts = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _held(matches: list[Match]) -> dict[str, str]:
    """For each module of the port, the innermost one of the reference that holds all that is known of it."""
    there: dict[str, set[str]] = {}
    for m in matches:
        for path in _above(m.mine):
            there.setdefault(path, set()).add(m.reference)
    return {path: _common(names) for path, names in there.items() if path}


def _inside(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _kind(s: Slices) -> tuple[Any, ...]:
    return s.shape, s.own_name == "bias", s.looked_up


def _span(rows: Ints | None, of: Slices) -> str:
    """Rows as a slice, where they are one."""
    if rows is None or len(rows) == len(of.rows):
        return ""
    first, last = int(rows.min()), int(rows.max())
    return f" [{first}:{last + 1}]" if last + 1 - first == len(rows) else f" [{len(rows)} rows]"


__all__ = ["HOW", "Mapping", "Match", "mapping"]
