"""Does it matter: the gap of what the model returns, in loss, logits and predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from forkpoint.align import Gap, gap, pair_elements, rows
from forkpoint.finite import FinitePart, all_finite, finite_part
from forkpoint.match import Shared
from forkpoint.pairs import Pairs
from forkpoint.result import Impact, NearTie
from forkpoint.run import token_ids
from forkpoint.session import Results, Session


@dataclass(frozen=True)
class ResultGap:
    """One returned tensor of both runs, compared.

    Attributes:
        name: its name, with the call where there are several.
        coordinates: how many token coordinates (or whole values) were compared.
    """

    name: str
    a: Tensor
    b: Tensor
    pairs: Pairs
    gap: Gap
    coordinates: int

    @property
    def result(self) -> str:
        """The name without the call."""
        return self.name.split(" (call")[0]


@dataclass(frozen=True)
class ResultComparison:
    """Every returned tensor of both runs, compared; and those that could not be."""

    gaps: tuple[ResultGap, ...]
    left_out: tuple[tuple[str, str], ...]
    missing: str = ""
    """Tokens of a result that both runs have but that could not be compared; empty where there are none."""

    @property
    def identical(self) -> bool:
        """Every result that both runs have is the same, bit for bit, and there is one."""
        return bool(self.gaps) and not self.missing and not self.differs

    @property
    def differs(self) -> bool:
        """Whether anything that was compared does."""
        return any(g.gap.differing for g in self.gaps)

    @property
    def max_abs(self) -> float:
        return max((g.gap.max_abs for g in self.gaps), default=0.0)


def compare_results(
    session: Session, a: Results | None = None, b: Results | None = None, *, own: str | None = None
) -> ResultComparison:
    """Compare what the two runs returned, at shared coordinates where it has them, whole where not.

    Calls meet one to one if the runs have as many; else every call meets every other, where they
    share tokens (a full forward against prefill and decoding steps).

    Args:
        a, b: other results of the runs (in float64); by default those of the traced runs.
        own: `a` or `b` if both results are of that one run.
    """
    shared = session.shared if own is None else session.shared.within(own)
    results_a, results_b = a or session.a.results, b or session.b.results
    missing = ""
    names = [
        n for n in dict.fromkeys(n for call in results_a for n in call) if any(n in c for c in results_b)
    ]
    gaps: list[ResultGap] = []
    left_out: list[tuple[str, str]] = []
    for name in names:
        found = False
        reason = ""
        for index_a, call_a in enumerate(results_a):
            for index_b, call_b in enumerate(results_b):
                if name not in call_a or name not in call_b:
                    continue
                if len(results_a) == len(results_b) and index_a != index_b:
                    continue
                (value_a, label_a), (value_b, label_b) = call_a[name], call_b[name]
                pairs = pair_elements(value_a, label_a, value_b, label_b, shared)
                if not len(pairs):
                    reason = pairs.reason
                    continue
                found = True
                several = len(results_a) > 1 or len(results_b) > 1
                title = f"{name} (call {index_a} and {index_b})" if several else name
                count = len(pairs.distinct)
                gaps.append(ResultGap(title, value_a, value_b, pairs, gap(value_a, value_b, pairs), count))
        if not found:
            left_out.append((name, reason))
            continue
        lost = _uncompared(shared, name, results_a, results_b, gaps)
        if lost:
            missing = f"{lost} tokens that both runs have could not be compared in {name}"
            left_out.append((name, missing))
    for name in {n for call in (*results_a, *results_b) for n in call} - set(names):
        left_out.append((name, "only one run returns it"))
    return ResultComparison(tuple(gaps), tuple(sorted(left_out)), missing)


def _uncompared(shared: Shared, name: str, a: Results, b: Results, gaps: list[ResultGap]) -> int:
    """How many tokens a result holds in both runs without having been compared."""

    def tokens(results: Results, numbers: np.ndarray) -> set[int]:
        found: set[int] = set()
        for call in results:
            label = call[name][1] if name in call else None
            if label is not None:
                found.update(int(n) for n in np.unique(numbers[label.q]) if n > 0)
        return found

    mine = [g for g in gaps if g.result == name]
    if any(g.pairs.by_sample or (len(g.pairs) and not g.pairs.coordinates.any()) for g in mine):
        return 0  # compared whole, or a vector for each sample
    compared: set[int] = set()
    for result in mine:
        compared.update(result.pairs.distinct.tolist())
    return len((tokens(a, shared.a) & tokens(b, shared.b)) - compared)


def measure(session: Session, compared: ResultComparison) -> Impact | None:
    """The impact of the gap; None where no floating-point result could be compared."""
    found = _measured(session, compared)
    part = finite_parts(compared)
    if found is None or not (part.nonfinite_a or part.nonfinite_b):
        return None if found is None else replace(found, elements=part.elements)
    return replace(
        found, max_abs=part.max_abs, max_rel=part.max_rel, elements=part.elements, nonfinite_a=part.nonfinite_a,
        nonfinite_b=part.nonfinite_b, nonfinite_apart=part.apart,
    )  # fmt: skip


def finite_parts(compared: ResultComparison) -> FinitePart:
    """The NaN and infinities of all floating-point results, and the gap of their other elements."""
    parts = [
        FinitePart(len(g.pairs), max_abs=g.gap.max_abs, max_rel=g.gap.max_rel)
        if all_finite(g.a) and all_finite(g.b)
        else finite_part(g.a, g.b, g.pairs)
        for g in compared.gaps
        if g.a.is_floating_point() and g.b.is_floating_point()
    ]
    return sum(parts, FinitePart())


def _measured(session: Session, compared: ResultComparison) -> Impact | None:
    floating = [g for g in compared.gaps if g.a.dtype.is_floating_point and g.b.dtype.is_floating_point]
    if not floating:
        return None
    worst = max(floating, key=lambda g: (g.gap.max_abs, g.name == "logits"))
    logits = [g for g in floating if g.name.split(" ")[0] in ("logits", "output") and g.a.dim() >= 3]
    vocabulary = _vocabulary(session, logits)
    if vocabulary is None:
        losses = [g for g in floating if g.name.split(" ")[0] == "loss" and g.a.numel() == 1]
        loss_a, loss_b = (float(losses[0].a), float(losses[0].b)) if losses else (None, None)
        return Impact(
            loss_a, loss_b, None if loss_a is None or loss_b is None else abs(loss_b - loss_a), worst.gap.max_abs,
            worst.gap.max_rel, None, None, max(g.coordinates for g in floating), (), worst.name,
        )  # fmt: skip
    worst = max(logits, key=lambda g: g.gap.max_abs)
    return _of_logits(session, logits, vocabulary, worst)


def _vocabulary(session: Session, logits: list[ResultGap]) -> int | None:
    """The size of the last dimension of the logits, if the token ids can index it."""
    if not logits:
        return None
    size = int(logits[0].a.shape[-1])
    ids = token_ids(session.a.run).values()
    return size if ids and max(ids) < size and size > 2 else None


def _of_logits(session: Session, logits: list[ResultGap], vocabulary: int, worst: ResultGap) -> Impact:
    ids_a, ids_b = token_ids(session.a.run), token_ids(session.b.run)
    to_b = dict(session.pairing.pairs)
    losses_a: list[float] = []
    losses_b: list[float] = []
    kl, flips, tokens, predictions = 0.0, [], 0, 0
    for result in logits:
        pairs = result.pairs
        for start, rows_a, rows_b in _rows(result, vocabulary):
            log_a, log_b = torch.log_softmax(rows_a, -1), torch.log_softmax(rows_b, -1)
            tokens += len(log_a)
            known = ~(log_a.isnan().any(-1) | log_b.isnan().any(-1))
            predictions += int(known.sum())
            if bool(known.any()):
                kl = max(kl, float(_divergence(log_a[known], log_b[known]).max()))
            top_a, top_b = rows_a.argmax(-1), rows_b.argmax(-1)
            places = [session.shared.place(pairs, start + i * vocabulary) for i in range(len(log_a))]
            for row in torch.nonzero((top_a != top_b) & known).reshape(-1).tolist():
                sample, position = places[row]
                x, y = int(top_a[row]), int(top_b[row])
                name = None if sample is None else session.a.run.layout.name(sample)
                flips.append(
                    NearTie(
                        name, position if position is not None else -1, x, y,
                        float(rows_a[row, x] - rows_a[row, y]), float(rows_b[row, y] - rows_b[row, x]),
                    )
                )  # fmt: skip
            targets: list[tuple[int, int, int]] = []
            for row, (sample, position) in enumerate(places):
                if sample is not None and position is not None:
                    target_a = ids_a.get((sample, position + 1))
                    target_b = ids_b.get((to_b.get(sample, -1), position + 1))
                    if target_a is not None and target_b is not None:
                        targets.append((row, target_a, target_b))
            if targets:
                at, of_a, of_b = torch.tensor(targets, device=log_a.device).unbind(1)
                losses_a += (-log_a[at, of_a]).tolist()
                losses_b += (-log_b[at, of_b]).tolist()
    loss_a = float(np.mean(losses_a)) if losses_a else None
    loss_b = float(np.mean(losses_b)) if losses_b else None
    return Impact(
        loss_a, loss_b, None if loss_a is None or loss_b is None else abs(loss_b - loss_a), worst.gap.max_abs,
        worst.gap.max_rel, max(kl, 0.0), len(flips), tokens, tuple(flips), worst.name,
        predictions=predictions,
    )  # fmt: skip


def _rows(result: ResultGap, vocabulary: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The logits at shared coordinates, in float64, a row for each: in chunks, with the index of the first pair."""
    pairs = result.pairs
    for start, a, b in rows(result.a, result.b, pairs, vocabulary):
        begin = start * len(pairs.inner_a)
        yield begin, a.double().reshape(-1, vocabulary), b.double().reshape(-1, vocabulary)


def _divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """[rows], KL divergence of two distributions in nats."""
    terms = log_a.exp() * (log_a - log_b)
    return torch.where(log_a.isneginf(), 0.0, terms).sum(
        -1
    )  # what A rules out adds nothing, even if B does, too
