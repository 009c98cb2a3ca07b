"""Does it matter: the gap of what the model returns, in loss, logits and predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from forkpoint.explain.results import ResultComparison, ResultGap, finite_parts
from forkpoint.explain.session import Results, Session
from forkpoint.match.align import rows
from forkpoint.result import Impact, NearTie
from forkpoint.runs.layout import DECODER, MAIN
from forkpoint.runs.modules import predicts_next
from forkpoint.runs.run import Run, token_ids

RETURNED, FROM_LABELS, FROM_IDS = "returned", "recomputed from labels", "recomputed from input_ids"
"""Where a loss comes from."""
_IGNORED = -100
"""A label that does not enter the loss."""


def measure(session: Session, compared: ResultComparison) -> Impact | None:
    """The impact of the gap; None where no result could be compared."""
    if not compared.gaps:
        return None
    floating = compared.floating
    logits = [g for g in floating if g.result in ("logits", "output") and g.a.dim() >= 3]
    vocabulary = _vocabulary(session, logits)
    seen = _look_at_logits(session, logits, vocabulary) if vocabulary is not None else None
    worst = _worst(floating, logits if seen is not None else [])
    part = finite_parts(compared)
    gaps = part if part.nonfinite_a or part.nonfinite_b or worst is None else worst.gap
    impact = Impact(
        None, None, None, gaps.max_abs, gaps.max_rel, None, None,
        _coordinates(floating or compared.gaps), (), "" if worst is None else worst.name,
        elements=part.elements, nonfinite_a=part.nonfinite_a, nonfinite_b=part.nonfinite_b,
        nonfinite_apart=part.apart, discrete_compared=compared.discrete_compared,
        discrete_differing=compared.discrete_differing,
    )  # fmt: skip
    if seen is not None:
        impact = replace(
            impact, max_kl=max(seen.kl, 0.0), top1_flips=len(seen.flips), tokens=seen.tokens, flips=tuple(seen.flips),
            predictions=seen.predictions,
        )  # fmt: skip
    return _with_loss(impact, session, compared, seen)


def _coordinates(gaps: Sequence[ResultGap]) -> int:
    """How many coordinates were compared, in all calls, of the result that has most."""
    by_result: dict[str, set[int]] = {}
    for g in gaps:
        by_result.setdefault(g.result, set()).update(g.pairs.distinct.tolist())
    return max(map(len, by_result.values()))


def _worst(floating: Sequence[ResultGap], logits: list[ResultGap]) -> ResultGap | None:
    """The result with the largest gap: of the logits and single numbers, where there are logits and these differ."""
    first = (
        [g for g in floating if any(g is one for one in logits) or g.a.numel() == 1] if logits else floating
    )
    worst = max(first, key=lambda g: (g.gap.max_abs, g.name == "logits"), default=None)
    if worst is None or worst.gap.max_abs:
        return worst
    return max(floating, key=lambda g: (g.gap.max_abs, g.name == "logits"))


# ---------------------------------------------------------------------- loss


def _with_loss(impact: Impact, session: Session, compared: ResultComparison, seen: _Logits | None) -> Impact:
    """The same with the losses that the models returned; with recomputed ones where causal models returned none."""
    (losses_a, names_a), (losses_b, names_b) = (
        _returned_losses(t.run, t.results) for t in (session.a, session.b)
    )
    if not losses_a and not losses_b:
        if seen is None or seen.source is None or not seen.losses_a:
            return impact
        a, b = float(np.mean(seen.losses_a)), float(np.mean(seen.losses_b))
        return replace(impact, loss_a=a, loss_b=b, loss_gap=abs(b - a), loss_source=seen.source)
    shared = next((g for g in compared.gaps if g.result in names_a & names_b), None)
    together = np.sum if shared is not None and shared.over_calls == "sum" else np.mean
    a, b = (float(together(losses)) if losses else None for losses in (losses_a, losses_b))
    gap = abs(b - a) if shared is not None and a is not None and b is not None else None
    return replace(
        impact, loss_a=a, loss_b=b, loss_gap=gap, loss_source=RETURNED, losses_a=losses_a, losses_b=losses_b
    )


def _returned_losses(run: Run, results: Results) -> tuple[tuple[float, ...], set[str]]:
    """The loss that each call returned, and what it is called there.

    It is the number of that name, or the first of a tuple if the call was given labels.
    """
    losses: list[float] = []
    names: set[str] = set()
    for call, inputs in zip(results, run.calls, strict=True):
        numbers = {n: v for n, (v, _) in call.items() if v.dim() == 0 and v.is_floating_point()}
        name = next(filter(_is_loss, numbers), None)
        if name is None and "labels" in inputs and next(iter(call), "") in ("[0]", "output"):
            name = next((n for n in numbers if n in ("[0]", "output")), None)
        if name is not None:
            losses.append(float(numbers[name].detach()))
            names.add(name)
    return tuple(losses), names


def _is_loss(name: str) -> bool:
    return name.rsplit(".", maxsplit=1)[-1] == "loss"


def _targets(run: Run) -> tuple[dict[tuple[int, int], int], str | None]:
    """The token that each (sample, position) should be predicted to be, and where that comes from.

    Nothing where the model is no causal language model.
    """
    if not predicts_next(run.modules):
        return {}, None
    if not any(isinstance(call.get("labels"), Tensor) for call in run.calls):
        return token_ids(run), FROM_IDS
    targets: dict[tuple[int, int], int] = {}
    for entry, call in zip(run.layout.calls, run.calls, strict=True):
        labels, coordinates = call.get("labels"), entry.get(DECODER, entry.get(MAIN))
        if coordinates is None or not isinstance(labels, Tensor) or tuple(labels.shape) != coordinates.shape:
            continue
        at = coordinates.valid & (labels.cpu() != _IGNORED)
        keys = zip(coordinates.sample[at].tolist(), coordinates.position[at].tolist(), strict=True)
        targets.update(zip(keys, labels.cpu()[at].tolist(), strict=True))
    return targets, FROM_LABELS


# ---------------------------------------------------------------------- logits


@dataclass
class _Logits:
    """What the logits of both runs show.

    Attributes:
        kl: largest divergence, in nats.
        predictions: next-token distributions that exist in both runs: of logits without NaN or plus infinity.
        losses_a, losses_b: cross-entropy of each next token that both runs have.
        source: what the next tokens were taken from; None where the model does not predict them.
    """

    source: str | None
    kl: float = 0.0
    flips: list[NearTie] = field(default_factory=list[NearTie])
    tokens: int = 0
    predictions: int = 0
    losses_a: list[float] = field(default_factory=list[float])
    losses_b: list[float] = field(default_factory=list[float])


def _vocabulary(session: Session, logits: list[ResultGap]) -> int | None:
    """The size of the last dimension of the logits, if the token ids can index it."""
    if not logits:
        return None
    size = int(logits[0].a.shape[-1])
    ids = token_ids(session.a.run).values()
    return size if ids and max(ids) < size and size > 2 else None


def _look_at_logits(session: Session, logits: list[ResultGap], vocabulary: int) -> _Logits:
    (targets_a, source_a), (targets_b, source_b) = _targets(session.a.run), _targets(session.b.run)
    seen = _Logits(source_a if source_a == source_b else None)
    to_b = dict(session.pairing.pairs)
    for result in logits:
        for start, rows_a, rows_b in _rows(result, vocabulary):
            log_a, log_b = torch.log_softmax(rows_a, -1), torch.log_softmax(rows_b, -1)
            seen.tokens += len(log_a)
            not_nan = ~(log_a.isnan().any(-1) | log_b.isnan().any(-1))
            seen.predictions += int(not_nan.sum())
            if bool(not_nan.any()):
                seen.kl = max(seen.kl, float(_divergence(log_a[not_nan], log_b[not_nan]).max()))
            places = [session.shared.place(result.pairs, start + i * vocabulary) for i in range(len(log_a))]
            seen.flips += _flips(session, rows_a, rows_b, not_nan, places)
            next_tokens: list[tuple[int, int, int]] = []
            for row, (sample, position) in enumerate(places):
                if sample is not None and position is not None:
                    target_a = targets_a.get((sample, position + 1))
                    target_b = targets_b.get((to_b.get(sample, -1), position + 1))
                    if target_a is not None and target_b is not None:
                        next_tokens.append((row, target_a, target_b))
            if next_tokens:
                at, of_a, of_b = torch.tensor(next_tokens, device=log_a.device).unbind(1)
                seen.losses_a += (-log_a[at, of_a]).tolist()
                seen.losses_b += (-log_b[at, of_b]).tolist()
    return seen


def _flips(
    session: Session, rows_a: Tensor, rows_b: Tensor, not_nan: Tensor,
    places: list[tuple[int | None, int | None]],
) -> Iterator[NearTie]:  # fmt: skip
    """The predictions that differ, of those that exist in both runs."""
    top_a, top_b = rows_a.argmax(-1), rows_b.argmax(-1)
    for row in torch.nonzero((top_a != top_b) & not_nan).reshape(-1).tolist():
        sample, position = places[row]
        x, y = int(top_a[row]), int(top_b[row])
        yield NearTie(
            None if sample is None else session.a.run.layout.name(sample),
            position if position is not None else -1, x, y,
            float(rows_a[row, x] - rows_a[row, y]), float(rows_b[row, y] - rows_b[row, x]),
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
