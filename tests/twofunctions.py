"""Pairs of small models of one form and the same weights, of which one number in forward differs.

    >>> found = next(draw(seed=0))
    >>> exact_gap(found, changed=False) < SOUND < EFFECT < exact_gap(found, changed=True)
    True

Run A's form is plain or not, run B's is one of `FORMS`: the same inputs, padding, batch mates, several calls with a
cache, packed rows. Without the change the two runs are equal in float64: nothing but the number is at fault, whatever
the form looks like.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forkpoint import Layout, Run

SOUND = 1e-11
"""What two equal runs may be apart in float64, relative to the largest value."""
EFFECT = 1e-7
"""What a change does to the result in float64, at the least."""
VOCABULARY = 41

Numbers = dict[str, Any]

FIRST: Numbers = {
    "eps": 1e-6, "scale": 1.0, "base": 10000.0, "factor": 1.0, "approximate": "none", "dim": -1, "slope": 0.01, "limit": 3.0,
    "temperature": 1.0, "unbiased": True, "shift": 0.0, "power": 1.0,
}  # fmt: skip
SECOND: dict[str, tuple[Any, ...]] = {
    "eps": (1e-5, 1e-2), "scale": (0.7, 1.25), "base": (500000.0, 5000.0), "factor": (1.01, 0.5), "approximate": ("tanh",),
    "dim": (-2,), "slope": (0.1, 0.02), "limit": (0.5, 0.8), "temperature": (1.3, 0.9), "unbiased": (False,),
    "shift": (0.1, -0.02), "power": (1.1, 0.9),
}  # fmt: skip
"""What each number of run B can be."""
FORMS = ("single", "padding", "mates", "steps", "packed")


class Decoder(nn.Module):
    """Layers of rotary attention with a cache, over padded, packed or plain rows; each number has a line of its own."""

    def __init__(self, numbers: Numbers, width: int, heads: int, layers: int, at: int) -> None:
        super().__init__()
        self.numbers, self.heads, self.at = numbers, heads, at
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        if position_ids is None:
            position_ids = torch.arange(past, past + input_ids.shape[1])[None].expand(input_ids.shape[0], -1)
        seen = _seen(input_ids, attention_mask, position_ids, past)
        hidden, kept = self.embed(input_ids), []
        for index, layer in enumerate(self.layers):
            numbers = self.numbers if index == self.at else FIRST
            old = None if past_key_values is None else past_key_values[index]
            mixed, cache = self.attend(layer, hidden, seen, position_ids, old, numbers)
            kept.append(cache)
            hidden = self.feed(hidden + mixed, numbers)
        return {"logits": self.head(hidden), "past_key_values": tuple(kept)}

    def attend(
        self, layer: Any, hidden: Tensor, seen: Tensor, place: Tensor, old: Any, numbers: Numbers
    ) -> Any:
        normal = F.layer_norm(hidden, hidden.shape[-1:], eps=numbers["eps"])  # eps
        query, key, value, gate = layer(normal).chunk(4, -1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        half = query.shape[-1] // 2
        inverse = numbers["base"] ** (-torch.arange(half) / half)  # base
        angles = place[:, None, :, None] * inverse
        query, key = (_turned(x, angles.cos(), angles.sin()) for x in (query, key))
        query = query * numbers["scale"]  # scale
        if old is not None:
            key, value = torch.cat([old[0], key], 2), torch.cat([old[1], value], 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        mixed = mixed.transpose(1, 2).flatten(2) * gate.sigmoid()
        mixed = mixed * numbers["factor"]  # factor
        return mixed, (key, value)

    def feed(self, hidden: Tensor, numbers: Numbers) -> Tensor:
        hidden = hidden + F.gelu(hidden, approximate=numbers["approximate"])  # approximate
        groups = hidden.unflatten(-1, (4, -1)).softmax(numbers["dim"]).flatten(-2)  # dim
        hidden = F.leaky_relu(hidden, numbers["slope"]) + groups  # slope
        hidden = hidden.clamp(-numbers["limit"], numbers["limit"])  # limit
        warm = (hidden / numbers["temperature"]).softmax(-1)  # temperature
        spread = hidden.std(-1, keepdim=True, unbiased=numbers["unbiased"])  # unbiased
        hidden = hidden / (spread + 1) + warm
        hidden = torch.add(hidden, numbers["shift"])  # shift
        return hidden.sign() * hidden.abs().pow(numbers["power"])  # power


def _seen(ids: Tensor, mask: Tensor | None, place: Tensor, past: int) -> Tensor:
    """[rows, 1, queries, keys], True where a query may see a key; packed samples don't see each other."""
    width = past + ids.shape[1]
    causal = torch.ones(ids.shape[1], width, dtype=torch.bool).tril(past)[None]
    if mask is not None:
        causal = causal & (mask[:, None, :] != 0)
    elif not past and bool((place[:, 1:] == 0).any()):
        sample = (place == 0).cumsum(-1)
        causal = causal & (sample[:, :, None] == sample[:, None, :])
    alone = torch.eye(ids.shape[1], width, dtype=torch.bool)  # a padding that sees nothing sees itself
    return (causal | (alone & ~causal.any(-1, keepdim=True)))[:, None]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


# --- Forms -----------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """The calls of one run, where its tokens are, and in which places of the results those of sample 0 and on lie."""

    calls: list[dict[str, Tensor]]
    layout: Any
    places: list[list[tuple[int, int, int]]]
    """For each sample, (call, row, column) of its tokens."""


def plain(rows: list[list[int]], width: int = 0, left: bool = False) -> Inputs:
    """Rows in a batch, padded to the longest or to a width."""
    width = max(width, *map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, tokens in enumerate(rows):
        start = width - len(tokens) if left else 0
        ids[index, start : start + len(tokens)] = torch.tensor(tokens)
        mask[index, start : start + len(tokens)] = 1
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    places = [[(0, row, column) for column in mask[row].nonzero()[:, 0].tolist()] for row in range(len(rows))]
    return Inputs([given], None, places)


def steps(tokens: list[int], prompt: int) -> Inputs:
    """A prompt, then a token a call."""
    edges = [0, *range(prompt, len(tokens) + 1)]
    calls = [{"input_ids": torch.tensor([tokens[a:b]])} for a, b in pairwise(edges)]
    places = [(c, 0, i) for c, call in enumerate(calls) for i in range(call["input_ids"].shape[1])]
    return Inputs(calls, None, [places])


def packed(rows: list[list[int]]) -> Inputs:
    """Rows one after the other in one."""
    place = torch.cat([torch.arange(len(tokens)) for tokens in rows])[None]
    ids = torch.tensor([[token for tokens in rows for token in tokens]])
    starts = [sum(map(len, rows[:index])) for index in range(len(rows))]
    places = [
        [(0, 0, start + i) for i in range(len(tokens))] for start, tokens in zip(starts, rows, strict=True)
    ]
    return Inputs([{"input_ids": ids, "position_ids": place}], Layout.packed(place), places)


# --- Pairs -----------------------------------------------------------------------------------------


@dataclass
class TwoFunctions:
    """Two models of one form, and the inputs of both runs.

    Attributes:
        number: which of the numbers differs.
        samples: how many samples both runs have.
    """

    number: str
    form: str
    title: str
    first: Decoder
    second: Decoder
    a: Inputs
    b: Inputs
    samples: int = field(default=1)

    def runs(self) -> tuple[Run, Run]:
        return tuple(
            Run(model, given.calls, layout=given.layout)
            for model, given in ((self.first, self.a), (self.second, self.b))
        )  # type: ignore[return-value]

    def origin_right(self, origin: Any) -> bool:
        """Whether an origin is the op that the number goes into: its line says which."""
        return origin is not None and origin.code.endswith(f"# {self.number}")


def exact_gap(pair: TwoFunctions, *, changed: bool) -> float:
    """The gap of the logits at shared tokens in float64, relative to the largest; `changed` with run B's number."""
    a = _logits(pair.first, pair.a, pair.samples)
    b = _logits(pair.second if changed else pair.first, pair.b, pair.samples)
    return float((a - b).abs().max() / a.abs().max())


@torch.no_grad()
def _logits(model: Decoder, given: Inputs, samples: int) -> Tensor:
    wide, cache, found = copy.deepcopy(model).double(), None, []
    for call in given.calls:
        output = wide(**call, past_key_values=cache)
        cache = output["past_key_values"]
        found.append(output["logits"])
    return torch.stack(
        [found[c][row, column] for sample in given.places[:samples] for c, row, column in sample]
    )


def draw(seed: int) -> Iterator[TwoFunctions]:
    """Pairs without end, forms and numbers in turn; only those that are sound without the change, and show it."""
    numbers = random.Random(f"two functions {seed}")
    turns = [(form, number) for number in SECOND for form in FORMS]
    while True:
        for form, number in numbers.sample(turns, len(turns)):
            pair = _pair(numbers, form, number)
            if exact_gap(pair, changed=False) < SOUND and exact_gap(pair, changed=True) > EFFECT:
                yield pair


def _pair(numbers: random.Random, form: str, number: str) -> TwoFunctions:
    heads, layers = numbers.choice((1, 2)), numbers.choice((1, 2))
    at, seed, value = numbers.randrange(layers), numbers.randrange(1000), numbers.choice(SECOND[number])
    torch.manual_seed(seed)
    first = Decoder(FIRST, 16, heads, layers, at).eval()
    second = Decoder({**FIRST, number: value}, 16, heads, layers, at).eval()
    second.load_state_dict(first.state_dict())
    rows = [
        [numbers.randrange(1, VOCABULARY) for _ in range(numbers.randint(4, 9))]
        for _ in range(numbers.choice((2, 3)))
    ]
    a, b, samples = _inputs(numbers, form, rows)
    title = f"{number} {FIRST[number]} or {value}, {form}, layer {at} of {layers}, rows {[*map(len, rows)]}, seed {seed}"
    return TwoFunctions(number, form, title, first, second, a, b, samples)


def _inputs(numbers: random.Random, form: str, rows: list[list[int]]) -> tuple[Inputs, Inputs, int]:
    """Of both runs, and how many samples they share."""
    if form == "padding":
        left, width = numbers.random() < 0.5, max(map(len, rows)) + numbers.randint(1, 4)
        if numbers.random() < 0.5:
            return plain(rows[:1]), plain(rows[:1], width, left), 1
        return plain(rows), plain(rows, width, left), len(rows)
    if form == "mates":
        return plain(rows[:1]), plain(rows, left=numbers.random() < 0.5), 1
    if form == "steps":
        prompt = numbers.randint(2, len(rows[0]) - 1)
        whole = Inputs(
            [{"input_ids": torch.tensor(rows[:1])}], None, [[(0, 0, i) for i in range(len(rows[0]))]]
        )
        b = steps(rows[0], prompt)
        return numbers.choice((whole, steps(rows[0], prompt))), b, 1
    if form == "packed":
        return numbers.choice((plain(rows), packed(rows))), packed(rows), len(rows)
    given = plain(rows)
    return given, given, len(rows)
