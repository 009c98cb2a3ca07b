"""Mixtures of experts in bfloat16: routing that rounding flips, and routing that padding moves.

Each comparison is proved in plain torch (`flips`, `gap_with_one_routing`, `moved`): rounding flips the routing of a token
that both runs have, where none differs in float64, and with one routing in both runs no gap is left there; or padding
sends a token elsewhere in float64, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, WORDS, PAD = 32, 40, 0


class Attention(nn.Module):
    """Causal, by torch's own kernel: without a mask where there is no padding, which adds up in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        rows, columns, _ = hidden.shape
        query, key, value = self.into(hidden).view(rows, columns, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
        if bool(mask.all()):
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            seen = torch.ones(columns, columns, dtype=torch.bool).tril() & (mask[:, None, None, :] != 0)
            seen = seen | torch.eye(columns, dtype=torch.bool)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return hidden + self.out(mixed.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Two of four experts for a token (one where they are tied), by scores in float32.

    Args:
        tied: experts come in pairs whose scores are equal in exact arithmetic, so that rounding alone tells them apart.
        centred: scores lose their mean over all the tokens of the call, padding included, before a threshold.
        capacity: how many tokens an expert takes, first come, first served, padding included; None for all.
        chosen: whether experts choose tokens instead, the best half of all of the call.
    """

    def __init__(
        self, *, tied: bool = False, centred: bool = False, capacity: int | None = None, chosen: bool = False
    ) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 2 if tied else 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.tied, self.centred, self.capacity, self.chosen = tied, centred, capacity, chosen
        self.taken: Tensor | None = None
        self.held: Tensor | None = None

    def scores(self, flat: Tensor) -> Tensor:
        wide, weight = flat.float(), self.score.weight.float()
        scores = F.linear(wide, weight)
        if self.tied:  # the same sums in another order
            order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
            again = (wide[:, None, order] * weight[:, order]).cumsum(-1)[..., -1]
            scores = torch.cat([scores, again], -1)
        return scores

    def takes(self, scores: Tensor) -> Tensor:
        """Bool [tokens, experts], which experts take which tokens."""
        if self.chosen:
            best = scores.topk(scores.shape[0] // 2, dim=0).indices
            return torch.zeros_like(scores, dtype=torch.bool).scatter(0, best, True)
        if self.centred:
            return scores > scores.mean(0)
        best = scores.topk(1 if self.tied else 2, dim=-1).indices
        takes = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
        if self.capacity is not None:
            takes = takes & (takes.long().cumsum(0) <= self.capacity)
        return takes

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, 1)
        scores = self.scores(flat)
        takes = self.takes(scores) if self.held is None else self.held
        self.taken = takes
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows = takes[:, index].nonzero().squeeze(-1)
            out = out.index_add(0, rows, expert(flat[rows]).tanh())
        return hidden + out.view_as(hidden)


class Mixture(nn.Module):
    """Embedding, layers of attention and experts, logits."""

    def __init__(self, layers: int = 2, seed: int = 0, **experts: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(WORDS, WIDTH)
            self.attention = nn.ModuleList(Attention() for _ in range(layers))
            self.experts = nn.ModuleList(Experts(**experts) for _ in range(layers))
            self.head = nn.Linear(WIDTH, WORDS)
            for parameter in self.parameters():
                nn.init.normal_(parameter, 0, 0.25)
        self.to(torch.bfloat16).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for attention, experts in zip(self.attention, self.experts, strict=True):
            hidden = experts(attention(hidden, attention_mask))
        return self.head(hidden)


@dataclass
class Decided:
    """Two runs of one mixture: rows as they are, and padded."""

    title: str
    model: Mixture
    a: dict[str, Tensor]
    b: dict[str, Tensor]

    def __str__(self) -> str:
        return self.title

    @property
    def real(self) -> Tensor:
        """Bool [tokens of run B], which of them run A has."""
        return self.b["attention_mask"].flatten() != 0

    def compare(self) -> Any:
        import forkpoint as fp

        return fp.compare(fp.Run(self.model, self.a), fp.Run(self.model, self.b))


def build(
    title: str, seed: int, side: str, rows: int = 3, columns: int = 12, extra: int = 7, **experts: Any
) -> Decided:
    """One comparison; the seed draws weights and tokens."""
    ids = torch.randint(1, WORDS, (rows, columns), generator=torch.Generator().manual_seed(seed))
    around = (extra, 0) if side == "left" else (0, extra)
    mask = torch.ones_like(ids)
    return Decided(
        f"{title}, padding on the {side}, seed {seed}", Mixture(seed=seed, **experts),
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": F.pad(ids, around, value=PAD), "attention_mask": F.pad(mask, around)},
    )  # fmt: skip


SIDES = ("right", "left")
MOVED = {
    "experts of limited capacity": {"capacity": 14},
    "a threshold at the mean of all tokens": {"centred": True},
    "experts that choose tokens": {"chosen": True},
    "tied experts of limited capacity": {"tied": True, "capacity": 9},
}


def flipped_by_rounding() -> Iterator[Decided]:
    """Comparisons without end in which rounding alone flips the routing of some token."""
    for seed in count():
        pair = build("tied experts", seed, SIDES[seed % 2], layers=3, tied=True)
        if flips(pair):
            yield pair


def moved_by_padding() -> Iterator[Decided]:
    """Comparisons without end in which padding moves the routing of some token."""
    for seed in count():
        title = list(MOVED)[seed % len(MOVED)]
        pair = build(title, seed, SIDES[seed // 2 % 2], **MOVED[title])
        if moved(pair):
            yield pair


# ---------------------------------------------------------------------- the truth, in plain torch


def _made(model: Mixture, given: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits [tokens, words] and the routing of each layer, [tokens, experts]."""
    with torch.no_grad():
        logits = model(**given).flatten(0, 1)
    taken = [layer.taken for layer in model.experts if isinstance(layer, Experts) and layer.taken is not None]
    return logits.double(), taken


def flips(pair: Decided) -> int:
    """Routings of tokens that both runs have which differ in bfloat16."""
    routed_a, routed_b = (_made(pair.model, given)[1] for given in (pair.a, pair.b))
    return sum(int((a != b[pair.real]).sum()) for a, b in zip(routed_a, routed_b, strict=True))


def gap_with_one_routing(pair: Decided) -> float:
    """The gap in float64 when run A's routing holds for its tokens in run B, too."""
    wide = wider(pair.model)
    _, routed_a = _made(pair.model, pair.a)
    _, routed_b = _made(pair.model, pair.b)

    def held(given: dict[str, Tensor], routing: list[Tensor]) -> Tensor:
        for layer, takes in zip(wide.experts, routing, strict=True):
            layer.held = takes
        return _made(wide, given)[0]

    mixed = [b.clone() for b in routed_b]
    for a, b in zip(routed_a, mixed, strict=True):
        b[pair.real] = a
    return float((held(pair.a, routed_a) - held(pair.b, mixed)[pair.real]).abs().max())


def moved(pair: Decided) -> int:
    """Routings of tokens that both runs have which differ in float64, where rounding flips none that is no tie."""
    wide = wider(pair.model)
    routed_a, routed_b = (_made(wide, given)[1] for given in (pair.a, pair.b))
    return sum(int((a != b[pair.real]).sum()) for a, b in zip(routed_a, routed_b, strict=True))


def wider(model: Mixture) -> Mixture:
    """A copy in float64, whose scores are, too."""
    wide = copy.deepcopy(model).double()
    for layer in wide.experts:
        layer.scores = _wide_scores(layer)  # type: ignore[method-assign]
    return wide


def _wide_scores(layer: Any) -> Callable[[Tensor], Tensor]:
    def scores(flat: Tensor) -> Tensor:
        found = F.linear(flat, layer.score.weight)
        return torch.cat([found, found], -1) if layer.tied else found

    return scores
