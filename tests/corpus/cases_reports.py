"""Found in public reports: pooling by ids, numbers cast, tensors that share memory, weights in a call's place, wraps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from .case import UNCHECKED, Pair, Side, case
from .exact import gap, picked
from .expect import CACHE, FUNCTION, LEAK, LEAK_EITHER, LEAK_UNMASKED, PARAMETERS, POOLING, SOUND, semantic
from .modules import seeded
from .pairs import batched, cached, padded, twice
from .tokens import VOCABULARY, first_rows, floats, pad_floats, row, whole, words

# ---------------------------------------------------------------------- pooling by what ids say


def _report(pair: Pair) -> str:
    """The whole report, on one line."""
    import forkpoint as fp

    found = fp.compare(fp.Run(pair.a.model, pair.a.inputs), fp.Run(pair.b.model, pair.b.inputs))
    return " ".join(found.to_text().split())


class PooledById(nn.Module):
    """Tokens summed up to each, and that at one id taken: the largest, or the end of the text."""

    end, padding = VOCABULARY, VOCABULARY + 2

    def __init__(self, *, largest: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY + 4, 16), nn.Linear(16, 8)
        self.largest = largest

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids).cumsum(1)
        at = input_ids.argmax(-1) if self.largest else (input_ids == self.end).int().argmax(-1)
        return self.head(hidden[torch.arange(len(hidden)), at])


def _by_id(*, largest: bool) -> Pair:
    model = seeded(PooledById, largest=largest)
    ids = row([*words(7), model.end])
    longer = torch.cat([ids, torch.full((1, 4), model.padding)], 1)
    mask = (longer != model.padding).long()
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, first_rows(1)),
        Side(model, {"input_ids": longer, "attention_mask": mask}, first_rows(1)),
    )


case(
    "55-pool-largest-id",
    "The token of the largest id is taken, and padding's id is larger",
    POOLING,
    floor=1e-2,
)(partial(_by_id, largest=True))
case("55-pool-end-id", "The first token of the end's id is taken", *SOUND)(partial(_by_id, largest=False))


class Bag(nn.Module):
    """The mean of all ids' vectors in one op; that of padding's too, unless it is told which that is."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.bag, self.head = (
            nn.EmbeddingBag(VOCABULARY, 16, mode="mean", padding_idx=padding),
            nn.Linear(16, 8),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.bag(input_ids))


case("55-bag-padded", "nn.EmbeddingBag takes the mean over padding too", POOLING, floor=1e-2)(
    lambda: padded(seeded(Bag, None), vector=True)
)
case("55-bag-skips", "nn.EmbeddingBag that leaves padding's id out", *SOUND)(
    lambda: padded(seeded(Bag, 0), vector=True)
)

# ---------------------------------------------------------------------- large whole numbers in a narrow dtype


class Timed(nn.Module):
    """Frames and waves of a step of diffusion, in bfloat16; `casts` rounds the steps themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.out = nn.Linear(8, 16), nn.Linear(16, 8)
        self.casts = False

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        step = timestep.to(sample.dtype) if self.casts else timestep
        angles = step[:, None].float() * torch.exp(-0.5 * torch.arange(8))
        waves = torch.cat([angles.sin(), angles.cos()], -1).to(sample.dtype)
        return self.out(F.silu(waves[:, None] + self.frames(sample)))


def _timed(first: int) -> Pair:
    plain = seeded(Timed).bfloat16()
    casting = copy.deepcopy(plain)
    casting.casts = True
    given = {"sample": floats(6, 3, 8).bfloat16(), "timestep": torch.arange(first, first + 6)}
    return Pair(Side(plain, given, whole()), Side(casting, dict(given), whole()))


def _collapses(pair: Pair) -> None:
    """Six steps become two, and with these two in place of the six the result is another in float64."""
    steps: Any = pair.a.calls[0]["timestep"]
    left = steps.bfloat16()
    assert len(left.unique()) == 2
    pair.b.model.casts = False
    pair.b.change(timestep=left.long())
    assert gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) > 0.05
    pair.b.model.casts = True
    pair.b.change(timestep=steps)
    said = _report(pair)
    assert "positions are" not in said.lower()
    assert "exact arithmetic" not in said  # float64 has no gap
    assert "Compute positions as integers" in said


case(
    "55-steps-in-bfloat16",
    "Steps 990 to 995 of a diffusion, cast to bfloat16 before their waves are made",
    FUNCTION,
    truth=UNCHECKED,
    check=_collapses,
    note="float64 tells them all apart; no position is shifted",
)(lambda: _timed(990))
case("55-steps-few-in-bfloat16", "The same with steps 90 to 95, which bfloat16 has", *SOUND)(
    lambda: _timed(90)
)

# ---------------------------------------------------------------------- tensors that share memory


class Doubled(nn.Module):
    """A residual and what is made of the doubled hidden states; `in_place` doubles the residual with them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = (
            nn.Embedding(VOCABULARY, 16),
            nn.Linear(16, 16),
            nn.Linear(16, VOCABULARY),
        )
        self.in_place = self.copies = False

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        residual = hidden.clone() if self.copies else hidden
        hidden = hidden.mul_(2) if self.in_place else hidden * 2
        return self.head(residual + self.inner(hidden).relu())


def _doubled(*, copies: bool) -> Pair:
    plain = seeded(Doubled)
    writing = copy.deepcopy(plain)
    writing.in_place, writing.copies = True, copies
    return twice(plain, writing)


def _says_what_writes(pair: Pair) -> None:
    """What reads the residual says which op wrote into it, and not that nobody saw that."""
    said = _report(pair)
    assert "Run B alone writes in place into what this op reads: (model)/mul_ (" in said
    assert "can't see" not in said


case(
    "55-residual-written",
    "A residual that is doubled together with what shares its memory",
    FUNCTION,
    floor=1e-2,
    origin="add",
    check=_says_what_writes,
)(partial(_doubled, copies=False))
case("55-residual-copied", "The same with a copy for the residual", *SOUND)(partial(_doubled, copies=True))


class Renormed(nn.Module):
    """Logits by the embedding's own matrix, whose rows the lookup writes; or by another one."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16, max_norm=1.0)
        self.head = nn.Linear(16, VOCABULARY, bias=False)
        self.tied = tied

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        return hidden @ self.embed.weight.t() if self.tied else self.head(hidden)


def _is_put_back(pair: Pair) -> None:
    """A comparison leaves the rows as they were, though each lookup writes them; and no padding is spoken of."""
    import forkpoint as fp

    before = pair.a.model.embed.weight.detach().clone()  # type: ignore[union-attr]
    found = fp.compare(fp.Run(pair.a.model, pair.a.inputs), fp.Run(pair.b.model, pair.b.inputs)).verdict
    assert torch.equal(before, pair.a.model.embed.weight)  # type: ignore[arg-type]
    assert "padd" not in found.summary + found.advice


case(
    "55-renormed-tied",
    "An embedding with max_norm writes rows that mates look up, and logits are made by them",
    LEAK,
    floor=1e-2,
    check=_is_put_back,
    source="pytorch#26596",
)(lambda: batched(seeded(Renormed, tied=True)))
case("55-renormed-untied", "The same with a matrix of its own for the logits", *SOUND)(
    lambda: batched(seeded(Renormed, tied=False))
)

# ---------------------------------------------------------------------- parameters that a call puts in place


def _with_parameters(change: Callable[[Tensor], Tensor]) -> Pair:
    """`functional_call` with copies of the parameters, one of them changed."""
    found = twice(seeded(Doubled))
    others = {name: value.detach().clone() for name, value in found.a.model.named_parameters()}
    others["head.weight"] = change(others["head.weight"])

    def call(model: nn.Module, given: Mapping[str, Any]) -> Any:
        dtype = given_dtype(model)
        return torch.func.functional_call(model, {n: v.to(dtype) for n, v in others.items()}, (), dict(given))

    found.b.call = call
    return found


def given_dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _differ(pair: Pair) -> None:
    assert gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) > 1e-3


case(
    "55-functional-other",
    "torch.func.functional_call with another matrix in place of a parameter",
    PARAMETERS,
    truth=UNCHECKED,
    check=_differ,
)(partial(_with_parameters, lambda weight: weight * 1.1))
case("55-functional-own", "The same with copies of the parameters", *SOUND)(
    partial(_with_parameters, lambda weight: weight)
)

# ---------------------------------------------------------------------- a loss of alignments, a state of few columns


class Aligned(nn.Module):
    """The loss of an alignment of frames, over the mask's frames or over all that there are."""

    def __init__(self, *, heeds: bool) -> None:
        super().__init__()
        self.classes, self.heeds = nn.Linear(8, 12), heeds

    def forward(self, frames: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = F.log_softmax(self.classes(frames), -1).transpose(0, 1)
        lengths = attention_mask.sum(1) if self.heeds else torch.full((len(frames),), frames.shape[1])
        return {"loss": F.ctc_loss(scores, labels, lengths, torch.full((len(frames),), labels.shape[1]))}


def _alignment_loss(outputs: list[Any]) -> Tensor:
    return outputs[0]["loss"].reshape(1)


def _aligned(*, heeds: bool) -> Pair:
    model, frames = seeded(Aligned, heeds=heeds), floats(1, 10, 8)
    longer, mask = pad_floats(frames, "right", 4)
    more = {"labels": torch.tensor([[3, 4, 5]])}
    alone = {"frames": frames, "attention_mask": torch.ones(1, 10, dtype=torch.long), **more}
    return Pair(
        Side(model, alone, _alignment_loss),
        Side(model, {"frames": longer, "attention_mask": mask, **more}, _alignment_loss),
    )


case(
    "55-ctc-all-frames",
    "A CTC loss over padded frames",
    semantic("padding_leak", None),
    floor=1e-2,
    origin="ctc_loss",
)(partial(_aligned, heeds=False))
case("55-ctc-lengths", "A CTC loss over the mask's frames", *SOUND)(partial(_aligned, heeds=True))


class ShortState(nn.Module):
    """A causal convolution over four columns; the state of a shorter prompt is filled up behind it, or before it."""

    def __init__(self, *, behind: bool) -> None:
        super().__init__()
        self.embed, self.conv, self.head = (
            nn.Embedding(VOCABULARY, 8), nn.Conv1d(8, 8, 4, groups=8), nn.Linear(8, VOCABULARY),
        )  # fmt: skip
        self.behind = behind

    def forward(self, input_ids: Tensor, past_key_values: Tensor | None = None) -> CausalLMOutputWithPast:
        columns = self.embed(input_ids).transpose(1, 2)
        before = (
            F.pad(columns, (3, 0)) if past_key_values is None else torch.cat([past_key_values, columns], -1)
        )
        made = F.silu(self.conv(before)).transpose(1, 2)
        state = (columns if past_key_values is None else before)[..., -3:]
        lacking = 3 - state.shape[-1]
        state = F.pad(state, (0, lacking) if self.behind else (lacking, 0))
        return CausalLMOutputWithPast(logits=self.head(made), past_key_values=state)  # pyright: ignore[reportArgumentType]


case(
    "55-conv-state-behind",
    "The state of a prompt shorter than a convolution is filled up on the wrong side",
    CACHE,
    floor=1e-2,
    origin="conv1d",
)(lambda: cached(seeded(ShortState, behind=True), prompt=2))
case("55-conv-state-before", "The same, filled up on the right side", *SOUND)(
    lambda: cached(seeded(ShortState, behind=False), prompt=2)
)


# ---------------------------------------------------------------------- what the report says of padding, loops and wraps


class Penalised(nn.Module):
    """The last token's logits, lower where an id went in; those of padding too, unless it heeds the mask."""

    def __init__(self, *, heeds: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.heeds = heeds

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.head(self.embed(input_ids))[:, -1]
        ids = torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:]) if self.heeds else input_ids
        scores = logits.gather(1, ids)
        return logits.scatter(1, ids, torch.where(scores < 0, scores * 1.3, scores / 1.3))


def _advises_on_ids(pair: Pair) -> None:
    """Zeroing padding would not help."""
    said = _report(pair)
    assert "Leave padding's ids out" in said
    assert "to zero" not in said


case(
    "55-penalty-of-padding",
    "A repetition penalty that counts padding's id",
    LEAK_UNMASKED,
    floor=1e-3,
    check=_advises_on_ids,
    note="no vector of padding is looked at: its id is",
)(lambda: padded(seeded(Penalised, heeds=False), "left", vector=True))
case("55-penalty-of-tokens", "The same without padding's", *SOUND)(
    lambda: padded(seeded(Penalised, heeds=True), "left", vector=True)
)


class LeavesEarly(nn.Module):
    """Layers until all rows are sure, or all of them."""

    def __init__(self, *, leaves: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.leaves = leaves

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
            if self.leaves and bool((hidden.mean((1, 2)).abs() > 0.05).all()):
                break
        return self.head(hidden)


def _tells_of_the_loop(pair: Pair) -> None:
    said = _report(pair)
    assert "is passed another number of times: 1 in run A, 3 in run B" in said
    assert "differs already, though" not in said


case(
    "55-leaves-early",
    "A row leaves a loop of layers after the first, where its mates are sure as well",
    semantic("padding_leak", None, by_design=None),
    floor=0.1,
    check=_tells_of_the_loop,
)(lambda: batched(seeded(LeavesEarly, leaves=True, spread=0.5), mates=3))
case("55-leaves-never", "All layers, whatever the mates", *SOUND)(
    lambda: batched(seeded(LeavesEarly, leaves=False, spread=0.5), mates=3)
)


class LongConvolution(nn.Module):
    """A filter as long as the row, by Fourier transforms, with room for what wraps around or without."""

    def __init__(self, *, room: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.filter, self.room = nn.Parameter(torch.zeros(32, 16)), room

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        columns = hidden.shape[1]
        size = 2 * columns if self.room else columns
        product = torch.fft.rfft(hidden, size, dim=1) * torch.fft.rfft(self.filter[:columns], size, dim=0)
        return self.head(torch.fft.irfft(product, size, dim=1)[:, :columns])


case(
    "55-fourier-wraps",
    "A long convolution by Fourier transforms that wraps padding around to the first tokens",
    LEAK_EITHER,
    floor=1e-2,
    note="after the transforms no column has a name: results are read by their places",
)(lambda: padded(seeded(LongConvolution, room=False)))
case("55-fourier-room", "The same with room for what wraps around", *SOUND)(
    lambda: padded(seeded(LongConvolution, room=True))
)
