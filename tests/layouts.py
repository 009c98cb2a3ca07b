"""Random layouts of random rows of tokens, and each row by itself: what must have the same bits.

>>> layout = next(draw(seed=0))
>>> layout.kind in KINDS
True
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tests.architectures import ARCHITECTURES, Architecture, prompt
from torch import Tensor, nn

from forkpoint.runs.returned import caches_in

Kind = Literal["padded", "packed", "stepwise", "chunked", "decoder"]
KINDS: tuple[Kind, ...] = ("padded", "packed", "stepwise", "chunked", "decoder")
NAMES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "opt", "bert", "mixtral", "t5",
)  # fmt: skip
CACHED = tuple(name for name in NAMES if name not in ("bert", "t5"))
PACKED = tuple(name for name in CACHED if name != "opt")
"""Architectures that tell packed sequences apart by their position ids."""
LEFT = tuple(name for name in NAMES if name != "bert")
"""Architectures whose positions are a matter of the mask, wherever the padding is."""
DTYPES = (torch.float32, torch.bfloat16)

Rows = list[list[int]]
Model = Callable[..., Any]


@dataclass(frozen=True)
class Layout:
    """One layout of some rows.

    Attributes:
        name: the architecture's name, or that of the model that is given from outside.
        kind: how the rows are laid out.
        rows: token ids.
        dtype: of the model.
        side: where padding goes.
        width: tokens and padding of a row.
        ends: columns after which a call ends; the last is `width`.
        variant: which of the model's sizes.
    """

    name: str
    kind: Kind
    rows: Rows
    dtype: torch.dtype
    side: Literal["left", "right"]
    width: int
    ends: tuple[int, ...]
    variant: int

    @property
    def words(self) -> str:
        """What a report says of it."""
        lengths = [len(row) for row in self.rows]
        calls = f", calls end at {self.ends}" if len(self.ends) > 1 else ""
        return (
            f"{self.name} (variant {self.variant}) in {self.dtype}: {self.kind}, rows of {lengths} tokens, "
            f"{self.side} in {self.width} columns{calls}"
        )


def draw(
    seed: int,
    names: tuple[str, ...] = NAMES,
    longest: int = 512,
    vocabulary: int | None = None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    pool: Rows | None = None,
) -> Iterator[Layout]:
    """Layouts at random, without end; no call has more than `longest` columns in all, nor a row more than 2,048.

    With a `pool` of rows each row is the beginning of one of them.
    """
    numbers = random.Random(seed)
    while True:
        name = numbers.choice(names)
        cached = name in CACHED or name not in NAMES
        kinds: list[Kind] = ["padded"]
        if cached:
            kinds.extend(("stepwise", "chunked"))
        if name in PACKED or name not in NAMES:
            kinds.append("packed")
        if name == "t5":
            kinds.append("decoder")
        kind = numbers.choice(kinds)
        count = 1 if numbers.random() < 0.3 and kind != "packed" else numbers.randint(1, 32)
        room = min(2048, longest // count)
        top = max(1, int(room ** numbers.uniform(0.3, 1)))
        lengths = [numbers.randint(1, top) for _ in range(count)]
        rows = [prompt(length, numbers.randrange(1 << 30)) for length in lengths]
        if pool is not None:
            rows = [numbers.choice(pool)[:length] for length in lengths]
        elif vocabulary is not None:
            rows = [[numbers.randrange(3, vocabulary) for _ in row] for row in rows]
        width = max(lengths) + numbers.randint(0, room - max(lengths)) * (numbers.random() < 0.6)
        side = numbers.choice(("left", "right")) if name in LEFT or name not in NAMES else "right"
        ends: tuple[int, ...] = (width,)
        if kind == "stepwise":
            side = "left" if count > 1 else side
            width = max(lengths) if side == "right" else width
            first = max(1, width - numbers.randint(1, 6))
            ends = (*range(first, width), width)
        elif kind == "chunked":
            cuts = sorted({numbers.randint(1, width) for _ in range(numbers.randint(1, 4))})
            ends = (*(cut for cut in cuts if cut < width), width)
        yield Layout(
            name, kind, rows, numbers.choice(dtypes), side, width, ends, numbers.randrange(len(VARIANTS))
        )


VARIANTS: tuple[dict[str, dict[str, Any]], ...] = (
    {},
    {
        "": {"hidden_size": 64, "intermediate_size": 100},
        "gpt2": {"n_embd": 64, "n_inner": 100},
        "t5": {"d_model": 64, "d_ff": 100},
        "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 100},
        "mixtral": {"hidden_size": 64, "intermediate_size": 40},
    },
    {
        "": {"hidden_size": 256, "intermediate_size": 640},
        "gpt2": {"n_embd": 256, "n_inner": 640},
        "t5": {"d_model": 128, "d_ff": 640},
        "opt": {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 640},
    },
)
"""Changes of sizes, by architecture; those under the empty name are the others'."""

_models: dict[tuple[str, torch.dtype, int], nn.Module] = {}


def model_of(layout: Layout) -> nn.Module:
    """The tiny model that a layout is for; made once."""
    key = layout.name, layout.dtype, layout.variant
    if key not in _models:
        made = ARCHITECTURES[layout.name]
        variant = VARIANTS[layout.variant]
        changes = dict(variant.get(layout.name, variant.get("", {})))
        changes["n_positions" if layout.name == "gpt2" else "max_position_embeddings"] = 600
        if layout.name == "t5":
            del changes["max_position_embeddings"]
        _models[key] = made.build(seed=layout.variant, dtype=layout.dtype, **changes)
    return _models[key]


def alone(model: Model, layout: Layout) -> list[Tensor]:
    """What the model returns for each row by itself, in one forward call: `[tokens, …]`."""
    architecture = ARCHITECTURES.get(layout.name, ARCHITECTURES["llama"])
    return [
        model(**_filled(model, architecture, [row], len(row), "right"), **_uncached(layout))[0][0]
        for row in layout.rows
    ]


def laid_out(model: Model, layout: Layout) -> list[Tensor]:
    """What it returns for each row in the layout, without padding."""
    architecture = ARCHITECTURES.get(layout.name, ARCHITECTURES["llama"])
    if layout.kind == "packed":
        return _packed(model, layout)
    if layout.kind == "decoder":
        return _decoded(model, layout, architecture)
    inputs = _filled(model, architecture, layout.rows, layout.width, layout.side)
    if len(layout.ends) == 1:
        made = model(**inputs, **_uncached(layout))[0]
    else:
        made = _called(model, inputs, layout.ends)
    if architecture.decoder:
        return list(made)
    return _rows(made, layout)


def _rows(made: Tensor, layout: Layout) -> list[Tensor]:
    lengths = [len(row) for row in layout.rows]
    if layout.side == "left":
        return [one[layout.width - length :] for one, length in zip(made, lengths, strict=True)]
    return [one[:length] for one, length in zip(made, lengths, strict=True)]


def _called(model: Model, inputs: dict[str, Tensor], ends: tuple[int, ...]) -> Tensor:
    """One call after the other, with a cache."""
    parts: list[Tensor] = []
    caches: dict[str, Any] = {}
    for start, end in zip((0, *ends), ends, strict=False):
        call = {name: value[:, start:end] for name, value in inputs.items()}
        if "attention_mask" in inputs:
            call["attention_mask"] = inputs["attention_mask"][:, :end]
        made = model(**call, use_cache=True, **caches)
        caches = caches_in(made, model)
        parts.append(made.logits)
    return torch.cat(parts, 1)


def _packed(model: Model, layout: Layout) -> list[Tensor]:
    ids = torch.tensor([[token for row in layout.rows for token in row]])
    positions = torch.cat([torch.arange(len(row)) for row in layout.rows])[None]
    inputs = _moved(model, {"input_ids": ids, "position_ids": positions})
    made = model(**inputs, use_cache=False)[0][0]
    return list(made.split([len(row) for row in layout.rows]))


def _decoded(model: Model, layout: Layout, architecture: Architecture) -> list[Tensor]:
    """An encoder-decoder whose decoder runs step by step."""
    inputs = _filled(model, architecture, layout.rows, layout.width, layout.side)
    decoder = inputs.pop("decoder_input_ids")
    made = model(**inputs, decoder_input_ids=decoder[:, :1], use_cache=True)
    parts, state = [made.logits], made
    for step in range(1, decoder.shape[1]):
        made = model(
            encoder_outputs=(state.encoder_last_hidden_state,),
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=decoder[:, step : step + 1],
            **caches_in(made, model),
            use_cache=True,
        )
        parts.append(made.logits)
    return list(torch.cat(parts, 1))


def _filled(model: Model, architecture: Architecture, rows: Rows, width: int, side: Any) -> dict[str, Tensor]:
    inputs = architecture.inputs(rows, width, side)
    if all(len(row) == width for row in rows) and not architecture.decoder:
        del inputs["attention_mask"]
    return _moved(model, inputs)


def _moved(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(model.device) for name, value in inputs.items()}


def _uncached(layout: Layout) -> dict[str, Any]:
    return {} if layout.name in ("bert", "t5") else {"use_cache": False}
