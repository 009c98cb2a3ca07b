"""What the difference costs: log-probabilities of both, token by token, each computing freely from the same token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.engines.answer import Check, Cost
from forkpoint.engines.plan import Plan, Point
from forkpoint.engines.recording import Recording
from forkpoint.screening import Screening, logprobs
from forkpoint.screening.screen import EPSILON

CLOSE = 1e-4
"""Nats by which a log-probability that was reported may be away from what the engine's own logits give."""


def logits_point(plan: Plan, model: nn.Module) -> Point | None:
    """The engine's logits."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    paths = {path for path, module in model.named_modules() if module is head}
    return next((p for p in plan.points if p.path in paths and p.role == "output"), None)


def free_logits(model: nn.Module, ids: Mapping[int, list[int]]) -> dict[int, Tensor]:
    """The reference's logits in its own dtype, [tokens, vocabulary], by sample."""
    logits: dict[int, Tensor] = {}
    device = next(model.parameters()).device
    with torch.no_grad():
        for sample, whole in ids.items():
            output: Any = model(input_ids=torch.tensor([whole], device=device), use_cache=False)
            logits[sample] = output.logits[0].cpu()
    return logits


def cost(point: Point | None, free: Mapping[int, Tensor], ids: Mapping[int, list[int]]) -> Cost | None:
    """Both distributions at all tokens at which the engine's logits are known.

    Args:
        point: the engine's logits; None where they were not recorded.
        free: the reference's.
        ids: token ids, with those that were generated.
    """
    gaps: list[Tensor] = []
    divergences: list[Tensor] = []
    flips = 0
    for sample, rows in (point.rows if point is not None else {}).items():
        if sample not in free:
            continue
        at = rows.position[rows.position < len(free[sample])]
        theirs = torch.log_softmax(rows.value[: len(at)].double(), -1)
        mine = torch.log_softmax(free[sample][at].double(), -1)
        terms = mine.exp() * (mine - theirs)
        divergences.append(torch.where(mine.exp() == 0, 0.0, terms).sum(-1))
        flips += int((theirs.argmax(-1) != mine.argmax(-1)).sum())
        whole = torch.tensor(ids[sample])
        follows = at + 1 < len(whole)
        token = whole[at[follows] + 1]
        index = torch.arange(len(at))[follows]
        gaps.append(theirs[index, token] - mine[index, token])
    if not divergences:
        return None
    gap, divergence = torch.cat(gaps), torch.cat(divergences)
    if not len(gap):
        gap = torch.zeros(1, dtype=torch.float64)
    return Cost(
        tokens=len(divergence), mean_abs=float(gap.abs().mean()), max_abs=float(gap.abs().max()),
        mean_kl=float(divergence.mean()), max_kl=float(divergence.max()), ratio=float(gap.exp().mean()), top1_flips=flips,
    )  # fmt: skip


def reported(
    recording: Recording, point: Point | None, free: Mapping[int, Tensor], dtype: str
) -> tuple[Screening | None, Check | None]:
    """What the log-probabilities that the engine returned say: against the reference's, and against its own logits.

    Where they are those of its own logits nothing was done to them, and there is nothing to ask of the numbers alone. Those of
    tokens that were not computed come from elsewhere: the check is called `reported_elsewhere`, and differs where they are
    farther from the reference's than rounding takes them.
    """
    prompts = {one.sample: one.prompt for one in recording.facts.samples}
    mine: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    apart = uncomputed = compared = 0
    for sample, logits in free.items():
        returned = recording.reported_of(prompts.get(sample))
        if returned is None:
            continue
        ids = list(returned.token_ids)
        own = _next(logits, ids)
        mine.append({"id": sample, "token_ids": ids, "logprobs": own})
        theirs.append({"id": sample, "token_ids": ids, "logprobs": list(returned.logprobs)})
        rows = None if point is None else point.rows.get(sample)
        if rows is None:
            continue
        computed = dict(zip((rows.position + 1).tolist(), rows.value, strict=True))
        for place, value in enumerate(returned.logprobs):
            if value is None:
                continue
            if place not in computed:
                uncomputed += 1
                continue
            compared += 1
            truth = float(torch.log_softmax(computed[place].double(), -1)[ids[place]])
            apart += abs(truth - value) > CLOSE
    if not mine:
        return None, None
    screening = logprobs(mine, theirs, dtype=dtype if dtype in EPSILON else "float32")
    if uncomputed:
        text = f"{uncomputed} log-probabilities were returned of tokens whose logits were not computed in this run"
        if not screening.agrees:
            return screening, Check("reported_elsewhere", "differs", text)
        if not apart:
            return screening, Check(
                "reported_elsewhere", "unknown", f"{text}; they are the reference's but for rounding"
            )
    if apart:
        text = f"{apart} of {compared} log-probabilities that the engine returned are not those of its own logits"
        return screening, Check("reported", "differs", text)
    if not compared:
        return screening, None
    text = f"{compared} log-probabilities that the engine returned are those of its own logits"
    return None, Check("reported", "same", text)


def _next(logits: Tensor, ids: list[int]) -> list[float | None]:
    """Log p of each token given those before; None for the first, and beyond the logits."""
    table = torch.log_softmax(logits.double(), -1)
    values: list[float | None] = [None]
    for place in range(1, len(ids)):
        values.append(float(table[place - 1, ids[place]]) if place - 1 < len(table) else None)
    return values
