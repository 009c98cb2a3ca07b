"""Sound comparisons: two runs that differ in layout, kernel or dtype, and in exact arithmetic not at all.

    >>> comparison = next(draw(seed=0))
    >>> exact_gap(comparison) < SOUND
    True

Each is drawn at random: an architecture, a family (`FAMILIES`: what the two runs differ in), lengths, rows,
dtypes, sides. That it is sound is not taken on trust: `exact_gap` makes both runs in float64, by plain forward
passes that know nothing of forkpoint, and compares what they return for every real token.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as tf
from tests.architectures import ARCHITECTURES, VOCABULARY, Architecture, answer
from tests.architectures import Side as PaddingSide
from tests.corpus import case, exact
from torch import Tensor, nn

SOUND = 1e-10
"""Gap, relative to the largest value, up to which two float64 runs are equal in exact arithmetic."""

Inputs = Mapping[str, Any]
Coordinates = Mapping[str, Tensor]
"""For each stream, [rows, columns] of the input: sample * 1000 + position, -1 for padding.

Streams are "tokens" and "decoder", or "pooled" for a result that has one row for each sample."""

ROTARY = (
    "llama", "qwen3", "gemma2", "phi3", "falcon", "gpt_neox", "mixtral", "mistral", "qwen2", "qwen2_moe", "gemma",
    "stablelm", "cohere", "olmo2", "granite", "starcoder2",
)  # fmt: skip
"""Architectures that see only how far two tokens are apart: their positions can be shifted together.

Not GPT-J, whose table of sines is stored in float32: shifted, it is another table, by 3e-8."""
LEFT = (*ROTARY, "gptj", "gpt2", "opt", "gpt_neo", "bloom", "mpt", "mamba", "mamba2", "t5")
"""Architectures that can be padded on the left."""
RECURRENT = ("mamba", "mamba2")
PACKED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "olmo2",
    "cohere",
    "granite",
    "starcoder2",
    "mixtral",
)
STATIC = (*PACKED, "gpt2", "gpt_neox", "phi3")
CLASSIFIERS: dict[str, type] = {
    "llama": tf.LlamaForSequenceClassification,
    "gpt2": tf.GPT2ForSequenceClassification,
    "mistral": tf.MistralForSequenceClassification,
    "gpt_neox": tf.GPTNeoXForSequenceClassification,
    "qwen2": tf.Qwen2ForSequenceClassification,
    "bert": tf.BertForSequenceClassification,
    "roberta": tf.RobertaForSequenceClassification,
    "distilbert": tf.DistilBertForSequenceClassification,
    "electra": tf.ElectraForSequenceClassification,
    "deberta": tf.DebertaV2ForSequenceClassification,
}
EXPERTS = ("mixtral", "qwen2_moe")
NAMES = tuple(name for name, a in ARCHITECTURES.items() if a.mask or a.input_features is not None)
"""Architectures that can be compared soundly: all that take a mask, or no token ids."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# --- Two runs ------------------------------------------------------------------------------------


@dataclass
class Side:
    """One run.

    Attributes:
        coordinates: for each call, where the tokens are.
        call: how to call the model; None for `model(**inputs)`.
        exact_model: the model to make the exact run with, where the weights of the two sides differ by rounding.
        by_hand: whether the layout has to be given by hand.
    """

    model: nn.Module
    calls: list[dict[str, Any]]
    coordinates: list[Coordinates]
    call: Callable[[Any, dict[str, Any]], Any] | None = None
    exact_model: nn.Module | None = None
    by_hand: bool = False

    def run(self, name: str) -> Any:
        import forkpoint as fp

        layout = None
        if self.by_hand:
            layout = fp.Layout(
                [{_INPUT[s]: _coordinates(c) for s, c in entry.items()} for entry in self.coordinates]
            )
        calls = self.calls if len(self.calls) > 1 else self.calls[0]
        return fp.Run(self.model, calls, layout=layout, call=self.call, name=name)


_INPUT = {"tokens": "input_ids", "decoder": "decoder_input_ids"}


def _coordinates(places: Tensor) -> Any:
    import forkpoint as fp

    padding = torch.full_like(places, -1)
    valid = places >= 0
    return fp.Coordinates(
        torch.where(valid, places // 1000, padding), torch.where(valid, places % 1000, padding)
    )


@dataclass
class Comparison:
    """Two runs, and what they are."""

    architecture: str
    family: str
    detail: str
    a: Side
    b: Side

    @property
    def title(self) -> str:
        return f"{self.architecture} {self.family}: {self.detail}"

    def compare(self) -> Any:
        """forkpoint's result."""
        import forkpoint as fp

        return fp.compare(self.a.run("A"), self.b.run("B"))


# --- What plain forward passes say ---------------------------------------------------------------

Values = dict[tuple[str, int], Tensor]
"""By (stream, place), the vector that the model returned for a token; by ("loss", -1) the loss."""


def values_of(side: Side, *, exactly: bool) -> Values:
    """What a run returns for each real token, in float64 or in the model's own dtype."""
    model = side.exact_model if exactly and side.exact_model is not None else side.model
    plain = case.Side(model, side.calls, _no_pick, call=side.call)
    found: Values = {}
    for output, entry in zip(exact.outputs(plain, exact=exactly), side.coordinates, strict=True):
        for stream, value in _token_values(output, entry):
            places = entry[stream]
            for row, column in (places >= 0).nonzero().tolist():
                found.setdefault((stream, int(places[row, column])), value[row, column].double())
        if output.get("loss") is not None:
            found["loss", -1] = output["loss"].reshape(1).double()
    return found


def _no_pick(outputs: list[Any]) -> Tensor:
    raise AssertionError("never asked for")


def _token_values(output: Any, entry: Coordinates) -> Iterator[tuple[str, Tensor]]:
    main = output["logits"] if output.get("logits") is not None else output["last_hidden_state"]
    if main.dim() == 2:
        main = main[:, None]  # a vector for each sample
    yield next(stream for stream in ("pooled", "decoder", "tokens") if stream in entry), main
    if "decoder" in entry and "tokens" in entry and output.get("encoder_last_hidden_state") is not None:
        yield "tokens", output["encoder_last_hidden_state"]


def gap(a: Values, b: Values) -> float:
    """The largest gap at shared tokens, relative to the largest value; infinite where NaN or nothing is shared."""
    worst = 0.0
    for stream in ("tokens", "decoder", "pooled", "loss"):
        shared = [key for key in a if key[0] == stream and key in b]
        if not shared:
            continue
        left, right = torch.stack([a[key] for key in shared]), torch.stack([b[key] for key in shared])
        if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
            return float("inf")
        worst = max(worst, float((left - right).abs().max() / left.abs().max().clamp(min=1e-30)))
    return worst if any(key in b for key in a) else float("inf")


def exact_gap(comparison: Comparison) -> float:
    """The gap of the two runs in float64."""
    return gap(values_of(comparison.a, exactly=True), values_of(comparison.b, exactly=True))


def native_gap(comparison: Comparison) -> float:
    """The gap of the two runs as they are; 0 where they agree bit for bit."""
    return gap(values_of(comparison.a, exactly=False), values_of(comparison.b, exactly=False))


# --- Rows of token ids ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One sample: its number, its token ids, and what its decoder is given."""

    sample: int
    tokens: tuple[int, ...]
    answer: tuple[int, ...] = ()


@dataclass
class Draw:
    """Random choices for one comparison."""

    architecture: Architecture
    numbers: random.Random

    @property
    def name(self) -> str:
        return self.architecture.name

    def row(self, sample: int, low: int = 3, high: int = 24) -> Row:
        tokens = tuple(self.numbers.randrange(3, VOCABULARY) for _ in range(self.numbers.randint(low, high)))
        length = self.numbers.randint(2, 7) if self.architecture.decoder else 2
        return Row(sample, tokens, tuple(answer(tokens, length)) if self.architecture.decoder else ())

    def rows(self, count: int, low: int = 3, high: int = 24) -> list[Row]:
        return [self.row(sample, low, high) for sample in range(count)]

    def side(self) -> PaddingSide:
        return self.numbers.choice(("right", "left")) if self.name in LEFT else "right"

    def dtype(self) -> str:
        return self.numbers.choice(tuple(DTYPES))

    def attention(self) -> str:
        return self.numbers.choice(self.architecture.attentions)

    def model(self, dtype: str, attention: str, **changes: Any) -> nn.Module:
        seed = self.numbers.randrange(1000)
        return self.architecture.build(seed, DTYPES[dtype], attention, **changes)


def batch(
    architecture: Architecture, rows: Sequence[Row], pad_to: int = 0, side: PaddingSide = "right", *, mask: bool = True,
    positions: bool = True,
) -> tuple[dict[str, Any], Coordinates]:  # fmt: skip
    """The inputs of one call on some rows, and where their tokens are.

    Without `mask` or `positions` they are left out of the inputs.
    """
    # Answers of one length for all: the decoder has no padding here.
    length = min((len(row.answer) for row in rows), default=0)
    answers = [list(row.answer[:length]) for row in rows]
    inputs = architecture.inputs(
        [row.tokens for row in rows], pad_to or None, side, answers if length else None
    )
    places = _places(rows, inputs["attention_mask"])
    coordinates = {"tokens": places}
    if architecture.decoder:
        columns = torch.arange(length)
        coordinates["decoder"] = torch.stack([row.sample * 1000 + columns for row in rows])
    if not mask:
        del inputs["attention_mask"]
    if not positions:
        inputs.pop("position_ids", None)
    return inputs, coordinates


def _places(rows: Sequence[Row], mask: Tensor) -> Tensor:
    samples = torch.tensor([row.sample for row in rows])[:, None]
    return torch.where(mask > 0, samples * 1000 + mask.cumsum(-1) - 1, -1)


def twin(
    model: nn.Module, architecture: Architecture, dtype: torch.dtype, attention: str, **changes: Any
) -> nn.Module:
    """Another model of the same weights, rounded to `dtype`, as a checkpoint loaded again."""
    other = architecture.build(0, dtype, attention, **changes)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    # Tables that are no part of a checkpoint are computed alike whatever the dtype, in `from_pretrained`.
    for name, buffer in model.named_buffers():
        path, _, last = name.rpartition(".")
        other.get_submodule(path)._buffers[last] = buffer.clone()
    return other


# --- The families --------------------------------------------------------------------------------

Family = Callable[[Draw], Comparison | None]


def padding(draw: Draw) -> Comparison:
    """A row alone, and the same padded."""
    dtype, attention, side, row = draw.dtype(), draw.attention(), draw.side(), draw.row(0)
    width = len(row.tokens) + draw.numbers.randint(1, 12)
    model = draw.model(dtype, attention)
    # Positions that count from 0 may as well be left out, and so may a mask of ones.
    a = batch(
        draw.architecture, [row], mask=draw.numbers.random() < 0.5, positions=draw.numbers.random() < 0.5
    )
    b = batch(draw.architecture, [row], width, side)
    detail = f"{dtype} {attention} {side} {len(row.tokens)} to {width}"
    return Comparison(draw.name, "padding", detail, *_sides(model, a, b))


def batching(draw: Draw) -> Comparison:
    """A row alone, and the same among rows of other lengths."""
    dtype, attention, side = draw.dtype(), draw.attention(), draw.side()
    rows = draw.rows(draw.numbers.randint(2, 8))
    if draw.architecture.decoder:  # of one length, or the shared decoder positions would be fewer
        rows = [Row(row.sample, row.tokens, tuple(answer(row.tokens, 5))) for row in rows]
    chosen = draw.numbers.choice(rows)
    model = draw.model(dtype, attention)
    a, b = batch(draw.architecture, [chosen]), batch(draw.architecture, rows, 0, side)
    detail = f"{dtype} {attention} {side} row {chosen.sample} of {[len(row.tokens) for row in rows]}"
    return Comparison(draw.name, "batch", detail, *_sides(model, a, b))


def one_length(draw: Draw) -> Comparison:
    """A row alone, and the same among rows of its own length, without a mask."""
    dtype, attention, length = draw.dtype(), draw.attention(), draw.numbers.randint(3, 24)
    rows = draw.rows(draw.numbers.choice((3, 8, 17)), length, length)
    rows = [Row(row.sample, row.tokens, row.answer and tuple(answer(row.tokens, 5))) for row in rows]
    chosen = draw.numbers.choice(rows)
    model = draw.model(dtype, attention)
    with_mask = draw.numbers.random() < 0.5
    a = batch(draw.architecture, [chosen], mask=with_mask, positions=False)
    b = batch(draw.architecture, rows, mask=with_mask, positions=False)
    detail = f"{dtype} {attention} row {chosen.sample} of {len(rows)} of length {length}, mask {with_mask}"
    return Comparison(draw.name, "one length", detail, *_sides(model, a, b))


def sides(draw: Draw) -> Comparison | None:
    """A batch padded right, and the same padded left, in another order."""
    if draw.name not in LEFT:
        return None
    dtype, attention, rows = draw.dtype(), draw.attention(), draw.rows(draw.numbers.randint(2, 5))
    other = draw.numbers.sample(rows, len(rows))
    model = draw.model(dtype, attention)
    a, b = batch(draw.architecture, rows, 0, "right"), batch(draw.architecture, other, 0, "left")
    detail = f"{dtype} {attention} {[len(row.tokens) for row in rows]} as {[row.sample for row in other]}"
    return Comparison(draw.name, "sides", detail, *_sides(model, a, b))


def attentions(draw: Draw) -> Comparison | None:
    """Eager attention, and sdpa with the same weights; B padded or not."""
    if len(draw.architecture.attentions) < 2:
        return None
    dtype, side, rows = draw.dtype(), draw.side(), draw.rows(draw.numbers.randint(1, 4))
    first, second = draw.numbers.sample(draw.architecture.attentions, 2)
    model = draw.model(dtype, first)
    other = twin(model, draw.architecture, DTYPES[dtype], second)
    width = max(len(row.tokens) for row in rows) + draw.numbers.choice((0, 0, 5))
    a = batch(draw.architecture, rows, 0, side)
    b = batch(draw.architecture, rows, width, side)
    detail = f"{dtype} {first} and {second}, {side} {[len(row.tokens) for row in rows]} to {width}"
    return Comparison(draw.name, "attention", detail, _side(model, a), _side(other, b))


def dtypes(draw: Draw) -> Comparison:
    """The same weights in float32, and rounded to a narrower dtype; B padded or not."""
    dtype, attention, side = draw.numbers.choice(("bf16", "fp16")), draw.attention(), draw.side()
    rows = draw.rows(draw.numbers.randint(1, 3))
    wide = draw.model("fp32", attention)
    narrow = twin(wide, draw.architecture, DTYPES[dtype], attention)
    width = max(len(row.tokens) for row in rows) + draw.numbers.choice((0, 0, 5))
    a, b = (
        _side(wide, batch(draw.architecture, rows, 0, side)),
        _side(narrow, batch(draw.architecture, rows, width, side)),
    )
    b.exact_model = wide
    if draw.numbers.random() < 0.5:
        a, b = b, a
    detail = f"{dtype} {attention} {side} {[len(row.tokens) for row in rows]} to {width}"
    return Comparison(draw.name, "dtype", detail, a, b)


def autocast(draw: Draw) -> Comparison | None:
    """A model in float32, and the same under autocast."""
    if draw.name in RECURRENT:
        return None
    attention, rows = draw.attention(), draw.rows(draw.numbers.randint(1, 3))
    model = draw.model("fp32", attention)
    a, b = _sides(model, batch(draw.architecture, rows), batch(draw.architecture, rows))
    b.call = _autocast
    return Comparison(draw.name, "autocast", f"{attention} {[len(row.tokens) for row in rows]}", a, b)


def _autocast(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return model(**inputs)


def longer(draw: Draw) -> Comparison | None:
    """A causal model on some tokens, and on the same and more."""
    if not draw.architecture.causal:
        return None
    dtype, attention, row = draw.dtype(), draw.attention(), draw.row(0, 8, 24)
    cut = draw.numbers.randint(2, len(row.tokens) - 1)
    model = draw.model(dtype, attention)
    a = batch(draw.architecture, [Row(0, row.tokens[:cut])])
    b = batch(draw.architecture, [row])
    return Comparison(
        draw.name, "longer", f"{dtype} {attention} {cut} and {len(row.tokens)}", *_sides(model, a, b)
    )


def losses(draw: Draw) -> Comparison | None:
    """With labels: a row alone, and the same padded, its padding masked by -100."""
    if not draw.architecture.causal and not draw.architecture.decoder:
        return None
    dtype, attention, side, row = draw.dtype(), draw.attention(), draw.side(), draw.row(0)
    width = len(row.tokens) + draw.numbers.randint(1, 12)
    model = draw.model(dtype, attention)
    a, b = batch(draw.architecture, [row]), batch(draw.architecture, [row], width, side)
    for inputs, _ in (a, b):
        if draw.architecture.decoder:
            inputs["labels"] = inputs["decoder_input_ids"].flip(-1)
        else:
            inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if side == "left" and not draw.architecture.decoder:  # nothing precedes the first token of a row alone
        labels = b[0]["labels"]
        labels[0, width - len(row.tokens)] = -100
    detail = f"{dtype} {attention} {side} {len(row.tokens)} to {width}"
    return Comparison(draw.name, "loss", detail, *_sides(model, a, b))


def details(draw: Draw) -> Comparison:
    """All hidden states, and attention weights too, are returned."""
    dtype, side, rows = draw.dtype(), draw.side(), draw.rows(draw.numbers.randint(1, 3))
    model = draw.model(dtype, "eager")
    width = max(len(row.tokens) for row in rows) + draw.numbers.randint(1, 6)
    a, b = batch(draw.architecture, rows, 0, side), batch(draw.architecture, rows, width, side)
    for inputs, _ in (a, b):
        inputs["output_hidden_states"] = True
        if draw.name not in RECURRENT:
            inputs["output_attentions"] = True
    detail = f"{dtype} eager {side} {[len(row.tokens) for row in rows]} to {width}"
    return Comparison(draw.name, "details", detail, *_sides(model, a, b))


def shifted(draw: Draw) -> Comparison | None:
    """Rotary positions that all begin later."""
    if draw.name not in ROTARY:
        return None
    dtype, attention, rows = draw.dtype(), draw.attention(), draw.rows(draw.numbers.randint(1, 3))
    by = draw.numbers.randint(1, 40)
    model = draw.model(dtype, attention)
    a, b = batch(draw.architecture, rows), batch(draw.architecture, rows)
    b[0]["position_ids"] = b[0]["position_ids"] + by
    return Comparison(draw.name, "shifted", f"{dtype} {attention} by {by}", *_sides(model, a, b))


def by_column(draw: Draw) -> Comparison | None:
    """Rotary positions that count columns, left padding too."""
    if draw.name not in ROTARY:
        return None
    dtype, attention, rows = draw.dtype(), draw.attention(), draw.rows(draw.numbers.randint(1, 3))
    width = max(len(row.tokens) for row in rows) + draw.numbers.randint(0, 6)
    chosen = draw.numbers.choice(rows)
    model = draw.model(dtype, attention)
    a = batch(draw.architecture, [chosen])
    b = batch(draw.architecture, rows, width, "left", positions=False)
    detail = f"{dtype} {attention} {len(chosen.tokens)} of {[len(row.tokens) for row in rows]} to {width}"
    return Comparison(draw.name, "by column", detail, *_sides(model, a, b))


def experts(draw: Draw) -> Comparison | None:
    """Experts one by one, all at once, or grouped."""
    if draw.name not in EXPERTS:
        return None
    dtype, rows = draw.dtype(), draw.rows(draw.numbers.randint(1, 3))
    first, second = draw.numbers.sample(("eager", "batched_mm", "grouped_mm"), 2)
    model = draw.model(dtype, "sdpa", _experts_implementation=first)
    other = twin(model, draw.architecture, DTYPES[dtype], "sdpa", _experts_implementation=second)
    a, b = batch(draw.architecture, rows), batch(draw.architecture, rows)
    return Comparison(draw.name, "experts", f"{dtype} {first} and {second}", _side(model, a), _side(other, b))


def cached(draw: Draw) -> Comparison | None:
    """One full forward, and prefill with decoding steps."""
    if not draw.architecture.causal:
        return None
    rows = draw.rows(draw.numbers.choice((1, 1, 2, 3)), 8, 20)
    steps = draw.numbers.randint(1, 4)
    return _in_steps(draw, "cached", rows, [1] * steps)


def chunks(draw: Draw) -> Comparison | None:
    """One full forward, and the prefill in pieces."""
    if not draw.architecture.causal or draw.name in RECURRENT:
        return None
    rows = draw.rows(draw.numbers.choice((1, 1, 2)), 12, 20)
    return _in_steps(
        draw, "chunks", rows, [draw.numbers.randint(2, 4) for _ in range(draw.numbers.randint(1, 2))]
    )


def _in_steps(draw: Draw, family: str, rows: list[Row], steps: list[int]) -> Comparison:
    """B ends with calls of so many columns each. Rows are padded on the left, so that they end together."""
    dtype, attention = draw.dtype(), draw.attention()
    model = draw.model(dtype, attention)
    if draw.name not in LEFT:
        shortest = min(len(row.tokens) for row in rows)
        rows = [Row(row.sample, row.tokens[:shortest]) for row in rows]
    a = batch(draw.architecture, rows, 0, "left")
    inputs, coordinates = batch(draw.architecture, rows, 0, "left")
    width = inputs["input_ids"].shape[1]
    edges = [0, width - sum(steps)]
    for step in steps:
        edges.append(edges[-1] + step)
    calls: list[dict[str, Any]] = []
    places: list[Coordinates] = []
    for start, stop in itertools.pairwise(edges):
        call = {name: value[:, start:stop] for name, value in inputs.items()}
        call["attention_mask"] = inputs["attention_mask"][:, :stop]
        if draw.name == "mamba" and start:
            del call["attention_mask"]  # as `generate` does; a mask wider than the step would be broadcast
        calls.append({**call, "use_cache": True})
        places.append({"tokens": coordinates["tokens"][:, start:stop]})
    detail = f"{dtype} {attention} {[len(row.tokens) for row in rows]} as {width - sum(steps)} + {steps}"
    return Comparison(draw.name, family, detail, _side(model, a), Side(model, calls, places))


def decoding(draw: Draw) -> Comparison | None:
    """An encoder-decoder at once, and its decoder step by step."""
    if not draw.architecture.decoder:
        return None
    dtype, attention = draw.dtype(), draw.attention()
    rows = [
        Row(row.sample, row.tokens, tuple(answer(row.tokens, 6)))
        for row in draw.rows(draw.numbers.randint(1, 3))
    ]
    model = draw.model(dtype, attention)
    inputs, coordinates = batch(draw.architecture, rows)
    with torch.no_grad():
        encoded = model.get_encoder()(inputs["input_ids"], attention_mask=inputs["attention_mask"])  # pyright: ignore[reportCallIssue]
    given = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}
    whole = {**given, "decoder_input_ids": inputs["decoder_input_ids"]}
    start = draw.numbers.randint(1, 5)
    calls: list[dict[str, Any]] = []
    places: list[Coordinates] = []
    for first, last in [(0, start), *((n, n + 1) for n in range(start, 6))]:
        calls.append(
            {**given, "decoder_input_ids": whole["decoder_input_ids"][:, first:last], "use_cache": True}
        )
        places.append({"tokens": coordinates["tokens"], "decoder": coordinates["decoder"][:, first:last]})
    a = Side(model, [whole], [coordinates], by_hand=True)
    b = Side(model, calls, places, by_hand=True)
    return Comparison(draw.name, "decoding", f"{dtype} {attention} {len(rows)} rows from {start}", a, b)


def static(draw: Draw) -> Comparison | None:
    """One full forward, and prefill with decoding steps in a cache of a fixed size."""
    if draw.name not in STATIC:
        return None
    rows = draw.rows(draw.numbers.choice((1, 2)), 8, 20)
    comparison = _in_steps(draw, "static", rows, [1] * draw.numbers.randint(1, 3))
    size = draw.numbers.randint(24, 40)
    comparison.b.calls[0]["past_key_values"] = tf.StaticCache(
        config=comparison.b.model.config,  # pyright: ignore[reportArgumentType]
        max_cache_len=size,
    )
    comparison.detail += f", of {size}"
    return comparison


def packed(draw: Draw) -> Comparison | None:
    """Some rows padded, and the same in one row, one after the other."""
    if draw.name not in PACKED:
        return None
    dtype, attention, rows = draw.dtype(), draw.attention(), draw.rows(draw.numbers.randint(2, 4), 3, 14)
    model = draw.model(dtype, attention)
    a = batch(draw.architecture, rows, 0, draw.side())
    order = draw.numbers.sample(rows, len(rows))
    inputs = {
        "input_ids": torch.tensor([[token for row in order for token in row.tokens]]),
        "position_ids": torch.tensor([[n for row in order for n in range(len(row.tokens))]]),
    }
    places = torch.tensor([[row.sample * 1000 + n for row in order for n in range(len(row.tokens))]])
    for made in (a[0], inputs):
        made["use_cache"] = False  # pyright: ignore[reportArgumentType]
    detail = f"{dtype} {attention} {[len(row.tokens) for row in rows]} as {[row.sample for row in order]}"
    return Comparison(
        draw.name, "packed", detail, _side(model, a), Side(model, [inputs], [{"tokens": places}])
    )


def embeddings(draw: Draw) -> Comparison | None:
    """Vectors in place of token ids: a row alone, and the same with noise for padding."""
    if draw.name in ("t5", "bart", "opt"):  # which want token ids beside them, or count them
        return None
    dtype, attention, side, row = draw.dtype(), draw.attention(), draw.side(), draw.row(0)
    width = len(row.tokens) + draw.numbers.randint(1, 12)
    model = draw.model(dtype, attention)
    a, b = batch(draw.architecture, [row]), batch(draw.architecture, [row], width, side)
    for inputs, _ in (a, b):
        ids = inputs.pop("input_ids")
        with torch.no_grad():
            vectors = model.get_input_embeddings()(ids)  # pyright: ignore[reportCallIssue]
        noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(7)).to(vectors.dtype)
        inputs["inputs_embeds"] = torch.where(inputs["attention_mask"][..., None] > 0, vectors, noise)
    detail = f"{dtype} {attention} {side} {len(row.tokens)} to {width}"
    return Comparison(draw.name, "embeddings", detail, *_sides(model, a, b))


def classified(draw: Draw) -> Comparison | None:
    """A classifier, which takes the last token that is no padding: a row alone, and the same in a batch."""
    if draw.name not in CLASSIFIERS:
        return None
    architecture = replace(draw.architecture, model_class=CLASSIFIERS[draw.name])
    dtype, attention, side = draw.dtype(), draw.attention(), draw.side()
    rows = draw.rows(draw.numbers.randint(2, 5))
    chosen = draw.numbers.choice(rows)
    model = architecture.build(draw.numbers.randrange(1000), DTYPES[dtype], attention)
    a, b = batch(architecture, [chosen]), batch(architecture, rows, 0, side)
    sides = _sides(model, (a[0], {"pooled": a[1]["tokens"][:, -1:]}), (b[0], _pooled(rows)))
    detail = f"{dtype} {attention} {side} row {chosen.sample} of {[len(row.tokens) for row in rows]}"
    sides[0].coordinates = [_pooled([chosen])]
    return Comparison(draw.name, "classified", detail, *sides)


def _pooled(rows: Sequence[Row]) -> Coordinates:
    return {"pooled": torch.tensor([[row.sample * 1000] for row in rows])}


def chunked_mlp(draw: Draw) -> Comparison | None:
    """Feed-forward layers on all tokens at once, and token by token."""
    if draw.name not in ("bert", "roberta", "electra", "distilbert"):
        return None
    dtype, attention, rows = draw.dtype(), draw.attention(), draw.rows(draw.numbers.randint(1, 3))
    model = draw.model(dtype, attention)
    other = twin(model, draw.architecture, DTYPES[dtype], attention, chunk_size_feed_forward=1)
    a, b = batch(draw.architecture, rows), batch(draw.architecture, rows)
    detail = f"{dtype} {attention} {[len(row.tokens) for row in rows]}"
    return Comparison(draw.name, "chunked mlp", detail, _side(model, a), _side(other, b))


def features(draw: Draw) -> Comparison | None:
    """A sound, or an image, alone or among others."""
    if draw.architecture.input_features is None:
        return None
    dtype, attention = draw.numbers.choice(("fp32", "bf16")), draw.attention()
    model = draw.model(dtype, attention)
    samples = draw.numbers.randint(2, 6)
    inputs = draw.architecture.inputs([[0]] * samples)
    inputs = {k: v.to(DTYPES[dtype]) if v.is_floating_point() else v for k, v in inputs.items()}
    chosen = draw.numbers.randrange(samples)
    alone = {name: value[chosen : chosen + 1] for name, value in inputs.items()}
    columns = {
        "vit": 17,
        "wav2vec2": 15,
        "whisper": inputs.get("decoder_input_ids", torch.zeros(1, 0)).shape[1],
    }[draw.name]
    places = torch.arange(samples)[:, None] * 1000 + torch.arange(columns)
    if draw.name == "wav2vec2":
        places[-1, 10:] = -1  # frames of the 27 columns that the last sample lacks
        if chosen == samples - 1:
            alone = {name: value[:, :70] for name, value in alone.items()}
    stream = "decoder" if draw.name == "whisper" else "tokens"
    a = {
        stream: places[
            chosen : chosen + 1, : 10 if draw.name == "wav2vec2" and chosen == samples - 1 else None
        ]
    }
    detail = f"{dtype} {attention} {chosen} of {samples}"
    return Comparison(
        draw.name, "features", detail, _side(model, (alone, a)), _side(model, (inputs, {stream: places}))
    )


def _side(model: nn.Module, made: tuple[dict[str, Any], Coordinates]) -> Side:
    return Side(model, [made[0]], [made[1]])


def _sides(model: nn.Module, *made: tuple[dict[str, Any], Coordinates]) -> list[Side]:
    return [_side(model, each) for each in made]


FAMILIES: Mapping[str, Family] = {
    "padding": padding,
    "batch": batching,
    "one length": one_length,
    "sides": sides,
    "attention": attentions,
    "dtype": dtypes,
    "autocast": autocast,
    "longer": longer,
    "loss": losses,
    "details": details,
    "shifted": shifted,
    "by column": by_column,
    "experts": experts,
    "cached": cached,
    "chunks": chunks,
    "decoding": decoding,
    "static": static,
    "packed": packed,
    "embeddings": embeddings,
    "classified": classified,
    "chunked mlp": chunked_mlp,
    "features": features,
}  # fmt: skip


# --- Drawing -------------------------------------------------------------------------------------


def draw(
    seed: int, families: Sequence[str] = tuple(FAMILIES), architectures: Sequence[str] = NAMES
) -> Iterator[Comparison]:
    """Comparisons without end; each turn goes once through the architectures, in a new order, with other families."""
    numbers = random.Random(f"sound {seed}")
    queues: dict[str, list[str]] = {name: [] for name in architectures}
    while True:
        for name in numbers.sample(list(architectures), len(architectures)):
            for _ in range(len(families)):
                queues[name] = queues[name] or numbers.sample(list(families), len(families))
                family = queues[name].pop()
                chances = random.Random(f"{seed} {name} {family} {numbers.random()}")
                comparison = _drawn(ARCHITECTURES[name], family, chances)
                if comparison is not None:
                    yield comparison
                    break


def _drawn(architecture: Architecture, family: str, numbers: random.Random) -> Comparison | None:
    if (family == "features") != (architecture.input_features is not None):
        return None
    return FAMILIES[family](Draw(architecture, numbers))
