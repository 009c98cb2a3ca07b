"""Where a difference enters: loops over columns, convolutions over kept columns, several origins, dropped tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import mixers
from .case import Pair, case
from .expect import CAPACITY, FUNCTION, LEAK_EITHER, SOUND, semantic
from .modules import WIDTH, Tagger, seeded
from .pairs import batched, cached, padded, twice
from .tokens import VOCABULARY

# ---------------------------------------------------------------------- loops over columns


class Loop(nn.Module):
    """A state that decays from column to column. Padding goes into it, unless columns are masked.

    Args:
        over: gives the columns in the order in which the loop takes them, and their places.
        masked: padding adds nothing to the state.
    """

    def __init__(
        self,
        over: Callable[[Tensor], Iterable[tuple[int, Tensor]]],
        *,
        masked: bool = False,
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        self.into = nn.Linear(width, width)
        self.over, self.masked = over, masked

    def step(self, column: Tensor, state: Tensor) -> Tensor:
        decayed = 0.7 * state
        return decayed + column

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        inside = self.into(hidden)
        if self.masked and mask is not None:
            inside = inside * mask[..., None]
        state = torch.zeros_like(inside[:, 0])
        found: dict[int, Tensor] = {}
        for place, column in self.over(inside):
            state = found[place] = self.step(column, state)
        return hidden + torch.stack([found[place] for place in sorted(found)], 1)


class CellLoop(Loop):
    """The state of a GRU cell."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def step(self, column: Tensor, state: Tensor) -> Tensor:
        return self.cell(column, state)


class InPlaceLoop(Loop):
    """The state is one tensor, which is written to."""

    def step(self, column: Tensor, state: Tensor) -> Tensor:
        state.mul_(0.7).add_(column)
        return state.clone()


def forward(x: Tensor) -> Iterable[tuple[int, Tensor]]:
    return ((t, x[:, t]) for t in range(x.shape[1]))


def backward(x: Tensor) -> Iterable[tuple[int, Tensor]]:
    return ((t, x[:, t]) for t in reversed(range(x.shape[1])))


def unbound(x: Tensor) -> Iterable[tuple[int, Tensor]]:
    return enumerate(x.unbind(1))


def split(x: Tensor) -> Iterable[tuple[int, Tensor]]:
    return enumerate(part.squeeze(1) for part in x.split(1, dim=1))


def flipped(x: Tensor) -> Iterable[tuple[int, Tensor]]:
    turned = x.flip(1)
    return ((x.shape[1] - 1 - t, turned[:, t]) for t in range(x.shape[1]))


def _loops(make: Any, over: Any, side: str, *, masked: bool = False, **more: Any) -> Pair:
    return padded(seeded(Tagger, make(over, masked=masked)), side, **more)


@case(
    "44-loop-left",
    "A loop over columns whose state starts in the padding",
    LEAK_EITHER,
    origin="mixers.0/add",
)
def _() -> Pair:
    return _loops(Loop, forward, "left")


@case("44-loop-left-mates", "The same among mates", LEAK_EITHER, origin="mixers.0/add")
def _() -> Pair:
    return _loops(Loop, forward, "left", mates=2)


@case("44-loop-left-masked", "A loop over columns to which padding adds nothing", *SOUND)
def _() -> Pair:
    return _loops(Loop, forward, "left", masked=True, mates=1)


@case("44-loop-backward", "A loop backward, padded on the right", LEAK_EITHER, origin="mixers.0/add")
def _() -> Pair:
    return _loops(Loop, backward, "right", mates=1)


@case("44-loop-backward-masked", "A loop backward to which padding adds nothing", *SOUND)
def _() -> Pair:
    return _loops(Loop, backward, "right", masked=True, mates=1)


@case("44-loop-flipped", "A row turned round, then a loop forward", LEAK_EITHER, origin="mixers.0/add")
def _() -> Pair:
    return _loops(Loop, flipped, "right")


@case("44-loop-unbind", "A loop over the columns that unbind gives", LEAK_EITHER, origin="mixers.0/add")
def _() -> Pair:
    return _loops(Loop, unbound, "left")


@case("44-loop-split", "A loop over the columns that split gives", LEAK_EITHER, origin="mixers.0/add")
def _() -> Pair:
    return _loops(Loop, split, "left")


@case("44-loop-cells", "A GRU cell over columns, padding among them", LEAK_EITHER, origin="gru_cell")
def _() -> Pair:
    return _loops(CellLoop, forward, "left")


@case("44-loop-cells-right", "A GRU cell over columns, padding last", *SOUND)
def _() -> Pair:
    return _loops(CellLoop, forward, "right")


@case(
    "44-loop-in-place", "A state that is written to", LEAK_EITHER, origin=("mixers.0/add_", "mixers.0/mul_")
)
def _() -> Pair:
    return _loops(InPlaceLoop, forward, "left")


@case("44-loop-as-wide-as-long", "A state with as many features as there are columns", *SOUND)
def _() -> Pair:
    return _loops(Loop, forward, "left", masked=True, length=WIDTH - 4)


# ---------------------------------------------------------------------- convolutions over kept columns


class KeptConvolution(nn.Module):
    """Embeddings → causal convolution over them and the last columns of the call before → logits.

    Args:
        forgets: the columns of the call before are not looked at.
    """

    def __init__(self, *, forgets: bool = False, kernel: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.weight = nn.Parameter(torch.empty(WIDTH, 1, kernel))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.forgets, self.kernel = forgets, kernel

    def forward(self, input_ids: Tensor, past_key_values: Any = None) -> dict[str, Any]:
        hidden = self.embed(input_ids).mT
        past = None if self.forgets or past_key_values is None else past_key_values[0]
        joined = hidden if past is None else torch.cat([past, hidden], -1)
        mixed = F.conv1d(joined, self.weight, padding=self.kernel - 1, groups=WIDTH)[..., : joined.shape[-1]]
        mixed = mixed[..., -hidden.shape[-1] :]
        return {"logits": self.head(mixed.mT), "past_key_values": (joined[..., 1 - self.kernel :],)}


@case(
    "44-conv-history",
    "A convolution over the columns kept of the call before, whose own outputs are thrown away",
    *SOUND,
)
def _() -> Pair:
    return cached(seeded(KeptConvolution), prompt=5, steps=3)


@case("44-conv-forgets", "A convolution that forgets the call before", semantic(), origin="conv1d")
def _() -> Pair:
    return cached(seeded(KeptConvolution, forgets=True), prompt=5, steps=3)


# ---------------------------------------------------------------------- several origins


class Scaled(nn.Module):
    """A layer with a factor of its own."""

    factor = 1.0

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + torch.tanh(self.up(hidden)) * self.factor


def _scaled(*layers: int) -> Pair:
    a, b = (seeded(Tagger, *(Scaled() for _ in range(4)), spread=0.1) for _ in range(2))
    for layer in layers:
        b.mixers[layer].factor = 1.3
    return twice(a, b)


@case("44-factor-in-one-layer", "A factor in the third of four layers", FUNCTION, origin="mixers.2/mul")
def _() -> Pair:
    return _scaled(2)


@case("44-factor-in-every-layer", "A factor in each of four layers", FUNCTION, origin="mixers.0/mul")
def _() -> Pair:
    return _scaled(0, 1, 2, 3)


@case("44-factor-in-none", "Two models of the same factors", *SOUND)
def _() -> Pair:
    return _scaled()


# ---------------------------------------------------------------------- dropped tokens


@case(
    "44-capacity-drops-all",
    "Experts whose places are all taken by the rows before",
    CAPACITY,
    floor=1e-3,
    origin="mixers.0/le",
)
def _() -> Pair:
    return batched(seeded(Tagger, mixers.CapacityExperts(capacity=6)), mates=2, place=2, length=8)


@case("44-capacity-drops-none", "Experts with a place for every token", *SOUND)
def _() -> Pair:
    return batched(seeded(Tagger, mixers.CapacityExperts(capacity=64)), mates=2, place=2, length=8)


class ExpertChoice(nn.Module):
    """One expert that takes the tokens of the batch that score best."""

    def __init__(self, takes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.router, self.expert = nn.Linear(width, 1), nn.Linear(width, width)
        self.takes = takes

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        flat = hidden.flatten(0, 1)
        score, taken = self.router(flat).squeeze(-1).topk(min(self.takes, len(flat)))
        return hidden + torch.zeros_like(flat).index_copy(
            0, taken, self.expert(flat[taken]) * score[:, None]
        ).view_as(hidden)


@case(
    "44-expert-choice",
    "An expert that takes the best tokens of the batch, a row alone or among three",
    semantic(),
    floor=1e-3,
    origin="mixers.0/topk",
)
def _() -> Pair:
    return batched(seeded(Tagger, ExpertChoice(6)), mates=2, place=1, length=8)


@case("44-expert-takes-all", "An expert that takes every token", *SOUND)
def _() -> Pair:
    return batched(seeded(Tagger, ExpertChoice(64)), mates=2, place=1, length=8)
