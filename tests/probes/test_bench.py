"""The positions, length, cache, pooling, packing and swap probes: each shows its cause, and nothing where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor, nn

from forkpoint import Run
from forkpoint.explain.session import Session
from forkpoint.probes.bench import Bench, benches
from forkpoint.probes.cache import reads_cache
from forkpoint.probes.coupling import PADDING, ROWS, coupling
from forkpoint.probes.length import changes_with_length
from forkpoint.probes.origin import Origin, origin
from forkpoint.probes.packing import reads_packed
from forkpoint.probes.pooling import other_token, pools_columns, pools_padding
from forkpoint.probes.positions import other_positions, positions_at
from forkpoint.probes.precision import precision
from forkpoint.probes.swap import Swap

LEFT = batch(ids()), batch(ids(), left=2)
RIGHT = batch(ids()), batch(ids(), right=2)
MATES = batch(ids(5)[4:]), batch(ids(5))


def asked(a: Run, b: Run) -> tuple[Session, Origin, Bench, Bench]:
    """Both runs, their origin, and the benches there."""
    both = session(a, b)
    found = origin(both, precision(both))
    assert found is not None
    bench_b, bench_a = benches(both, found)
    return both, found, bench_a, bench_b


class Looked(Model):
    """Adds a learned position for each column."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.place = nn.Embedding(16, 13)

    def mix(self, hidden: Tensor, position_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        places = torch.arange(hidden.shape[1])[None] if position_ids is None else position_ids
        return (hidden + self.place(places)) * self.factor


# --- positions -----------------------------------------------------------------------------------


def test_positions_that_columns_shift_are_shown() -> None:
    both, found, a, b = asked(*pair(Looked(), *LEFT))
    shown = other_positions(both, found.root, a, b)
    assert shown is not None
    assert (shown.name, shown.outcome) == ("positions", "differ")
    assert "0 in run A, 2 in run B" in shown.text


def test_equal_positions_and_another_factor_are_none() -> None:
    model = Looked()
    other = twin(model)
    other.factor = 1.5
    for inputs in (RIGHT, (LEFT[0], LEFT[0])):
        both, found, a, b = asked(*pair(model, *inputs, other))
        assert other_positions(both, found.root, a, b) is None


class Written(Looked):
    """Its run B writes one of the positions before it looks them up."""

    armed = False

    def mix(self, hidden: Tensor, position_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        places = torch.arange(hidden.shape[1])[None].repeat(len(hidden), 1)
        if self.armed:
            places[:, 1] = 7
        return hidden + self.place(places)


def test_positions_written_in_place_are_read_as_the_lookup_reads_them() -> None:
    model = Written()
    other = twin(model)
    other.armed = True
    both, found, a, b = asked(*pair(model, *RIGHT, other))
    shown = other_positions(both, found.root, a, b)
    assert shown is not None
    assert "1 in run A, 7 in run B" in shown.text


class Sliced(Model):
    """Takes the rows of a table by a slice: no number says which."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        table = torch.linspace(0.1, 5, 16)[:, None] * torch.linspace(0.2, 1, 13)
        return hidden + table.sin()[: hidden.shape[1]]


def test_rows_of_a_table_that_are_another_token_s() -> None:
    both, found, a, b = asked(*pair(Sliced(), *LEFT))
    shown = other_positions(both, found.root, a, b)
    assert shown is not None
    assert "takes in run B the row of a table that run A takes for token 2" in shown.text


class Chosen(Model):
    """Looks up a table by what tokens hold, as experts are; run B's is another table."""

    turned = False

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        table = torch.arange(13)
        chosen = (table.flip(0) if self.turned else table)[hidden.argmax(-1)]
        return hidden + chosen[..., None]


def test_rows_chosen_by_content_are_no_positions() -> None:
    model = Chosen()
    other = twin(model)
    other.turned = True
    both, found, a, b = asked(*pair(model, *RIGHT, other))
    assert other_positions(both, found.root, a, b) is None


class Counted(Model):
    """Numbers counted from the mask, as it is or upside down."""

    def mix(self, hidden: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        return hidden + (attention_mask.cumsum(-1) * 3)[..., None] * 0.1


def test_numbers_made_of_another_mask_are_no_positions() -> None:
    def toggled(model: Model, given: Any) -> Any:
        return model(given["input_ids"], attention_mask=1 - given["attention_mask"])

    model = Counted()
    both, found, a, b = asked(Run(model, RIGHT[1]), Run(model, RIGHT[1], call=toggled))
    assert other_positions(both, found.root, a, b) is not None
    assert positions_at(both, found) is None
    lacking = {**LEFT[1], "attention_mask": torch.ones_like(LEFT[1]["attention_mask"])}
    both, found, a, b = asked(Run(model, LEFT[0]), Run(model, lacking, layout=Run(model, LEFT[1]).layout))
    assert positions_at(both, found) is not None


# --- length --------------------------------------------------------------------------------------


class Stretched(Model):
    """Angles whose base grows with the number of columns beyond four; `base` is run B's own."""

    base = 100.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        base = self.base * max(1.0, hidden.shape[1] / 4)
        angles = torch.arange(hidden.shape[1])[:, None] * base ** (-torch.arange(13) / 13)
        return hidden * angles.cos()


def test_a_table_that_changes_with_a_longer_row() -> None:
    both, found, a, b = asked(*pair(Stretched(), *RIGHT))
    shown = changes_with_length(both, found.root, a, b, real=True)
    assert shown is not None
    assert (shown.name, shown.outcome) == ("length", "changes")
    assert "rows of 6 columns in place of 4" in shown.text


def test_another_base_is_no_matter_of_length() -> None:
    model = Stretched()
    other = twin(model)
    other.base = 300.0
    both, found, a, b = asked(*pair(model, LEFT[0], LEFT[0], other))
    assert changes_with_length(both, found.root, a, b, real=True) is None
    both, found, a, b = asked(*pair(model, *RIGHT, other))  # longer rows alone do not make it run B's
    assert changes_with_length(both, found.root, a, b, real=True) is None


# --- coupling, pooling ---------------------------------------------------------------------------


class Mean(Model):
    """Takes a mean away over some dimensions."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden - hidden.mean(self.dims, keepdim=True)


class Shift(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden + hidden.roll(1, 1)


@pytest.mark.parametrize(
    ("model", "inputs", "what", "ordered"),
    [
        (Mean(1), RIGHT, (PADDING,), False),
        (Mean(0), MATES, (ROWS,), False),
        (Mean(0, 1), RIGHT, (ROWS, PADDING), False),
        (Shift(), LEFT, (PADDING,), True),
    ],
)
def test_what_couples_and_whether_places_matter(model: Model, inputs: Any, what: Any, ordered: bool) -> None:
    both, found, _, _ = asked(*pair(model, *inputs))
    coupled = coupling(both, found)
    assert coupled.what == what
    assert coupled.ordered() is ordered
    assert not coupled.by_extremes()
    assert coupled.result.figure == coupled.by > 0


def test_the_largest_value_alone_couples() -> None:
    class Largest(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden / hidden.abs().amax()

    both, found, _, _ = asked(*pair(Largest(), *MATES))
    assert coupling(both, found).by_extremes()


class Column(Model):
    """One column's vector."""

    column = -1

    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        return {"pooled": self.layers[1](self.embed(input_ids)[:, self.column])}


class Pooled(Model):
    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        return {"pooled": self.layers[1](self.embed(input_ids).mean(1))}


def test_another_token_is_taken() -> None:
    both, _, a, b = asked(*pair(Column(), *RIGHT))
    shown = other_token(both, a, b)
    assert shown is not None
    assert shown.text == "of sample 0 run A takes token 3, run B padding"
    model = Column()
    other = twin(model)
    other.column = 1
    both, _, a, b = asked(*pair(model, *RIGHT, other))
    shown = other_token(both, a, b)
    assert shown is not None
    assert shown.text == "of sample 0 run A takes token 3, run B token 1"


def test_padding_in_a_mean_is_pooled_and_statistics_are_not() -> None:
    both, found, a, b = asked(*pair(Pooled(), *RIGHT))
    assert pools_padding(both, found, coupling(both, found), a, b)
    assert other_token(both, a, b) is None
    for model in (Mean(1), Shift()):
        both, found, a, b = asked(*pair(model, *RIGHT))
        assert not pools_padding(both, found, coupling(both, found), a, b)


class Weighed(Model):
    """What becomes of weights over all columns of a row, from the embeddings and the mask."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> dict[str, Any]:
        hidden = self.embed(input_ids)
        return {"made": self.how(hidden, hidden.sum(-1, keepdim=True).softmax(1), attention_mask[..., None])}


@pytest.mark.parametrize(
    ("how", "pooled"),
    [
        (lambda hidden, weights, mask: (hidden * weights).sum(1), True),
        (lambda hidden, weights, mask: (weights.mT @ hidden)[:, 0], True),
        (lambda hidden, weights, mask: weights, False),
        (lambda hidden, weights, mask: hidden * weights, False),
        (lambda hidden, weights, mask: (weights * mask).sum(1), False),
        (lambda hidden, weights, mask: ((hidden + weights) * mask).sum(1), False),
        (lambda hidden, weights, mask: hidden + (hidden * weights).sum(1, keepdim=True), False),
    ],
    ids=["summed", "product", "alone", "gate", "of the mask", "added", "back to tokens"],
)
def test_weights_are_a_pooling_if_tokens_are_summed_by_them(how: Any, pooled: bool) -> None:
    both, found, a, b = asked(*pair(Weighed(how), *RIGHT))
    assert found.root.a.op.function == "softmax"
    assert pools_padding(both, found, coupling(both, found), a, b) is pooled


def test_a_column_that_all_tokens_get_is_no_pooling() -> None:
    class Added(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + hidden[:, -1:]

    both, _, a, b = asked(*pair(Added(), *RIGHT))
    assert other_token(both, a, b) is None


def test_columns_that_pooled_tokens_are_divided_by_are_counted() -> None:
    class Sum(Model):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> dict[str, Any]:
            mask = attention_mask[..., None]
            return {"pooled": (self.embed(input_ids) * mask).sum(1) / input_ids.shape[1]}

    class Count(Sum):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> dict[str, Any]:
            return {"count": (1.0 - attention_mask).sum(1, keepdim=True)}

    both, found, a, b = asked(*pair(Sum(), *RIGHT))
    shown = pools_columns(both, found.root, a, b)
    assert shown is not None
    assert (shown.name, shown.outcome) == ("pooling", "counts padding")
    both, found, a, b = asked(*pair(Count(), *RIGHT))
    assert pools_columns(both, found.root, a, b) is None
    assert other_positions(both, found.root, a, b) is None


# --- packing, cache, swap ------------------------------------------------------------------------


def test_a_packed_neighbour_is_read_or_not() -> None:
    tokens = ids(2)
    packed = {"input_ids": tokens.reshape(1, -1), "position_ids": torch.arange(4).repeat(2)[None]}
    both, found, _, _ = asked(*pair(Mean(1), {"input_ids": tokens}, packed))
    shown = reads_packed(both, found)
    assert shown is not None
    assert (shown.name, shown.outcome) == ("packing", "coupled")
    model = Looked()
    other = twin(model)
    other.factor = 1.5
    both, found, _, _ = asked(*pair(model, {"input_ids": tokens}, packed, other))
    assert reads_packed(both, found) is None


class Running(Model):
    """Attention to all tokens so far, `late` more of what a cache holds."""

    late, factor = 0.0, 1.0

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **inputs: Any) -> dict[str, Any]:
        hidden = self.embed(input_ids) * self.factor
        past = 0 if past_key_values is None else past_key_values[0].shape[1]
        kept = torch.cat([past_key_values[0] * (1 + self.late), hidden], 1) if past else hidden
        causal = torch.ones(hidden.shape[1], kept.shape[1]).tril(past).bool()
        mixed = torch.nn.functional.scaled_dot_product_attention(hidden, kept, kept, attn_mask=causal)
        return {"logits": self.head(mixed), "past_key_values": (kept,)}


def test_what_an_earlier_call_left_is_read_or_not() -> None:
    tokens = ids(1, 6)
    steps = [{"input_ids": tokens[:, :4]}, {"input_ids": tokens[:, 4:]}]
    model = Running()
    late, scaled = twin(model), twin(model)
    late.late, scaled.factor = 0.5, 1.5
    _, _, a, b = asked(*pair(model, {"input_ids": tokens}, steps, late))
    shown = reads_cache(a, b)
    assert shown is not None
    assert (shown.name, shown.outcome) == ("cache", "reads")
    _, _, a, b = asked(*pair(model, {"input_ids": tokens}, steps, scaled))
    assert reads_cache(a, b) is None


def test_two_models_are_told_by_one_s_inputs() -> None:
    model = Looked()
    other = twin(model)
    both, found, _, _ = asked(*pair(model, *LEFT, other))
    assert Swap(both, (found.root,)).same(found.root)
    other.factor = 1.5
    both, found, _, _ = asked(*pair(model, *RIGHT, other))
    assert Swap(both, (found.root,)).same(found.root) is False
