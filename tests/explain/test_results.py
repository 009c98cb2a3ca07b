"""What both runs returned, compared: which values meet, which don't, and what that leaves open."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

import forkpoint as fp
from forkpoint.explain.results import ResultComparison, compare_results


class Returns(Model):
    """Returns whatever a function makes of its hidden states and inputs."""

    def __init__(self, make: Callable[[Tensor, dict[str, Any]], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        return self.make(super().forward(input_ids)["logits"], {"input_ids": input_ids, **inputs})


def compared(model: Model, a: Any, b: Any, other: Model | None = None, **how: Any) -> ResultComparison:
    return compare_results(session(*pair(model, a, b, other, **how)))


def mates() -> dict[str, Tensor]:
    """The rows of `ids()` and two more."""
    return batch(torch.cat([ids(), ids(seed=7)]))


# ---------------------------------------------------------------------- what stands in the way


def test_what_one_run_alone_returns_stands_in_the_way():
    both = Returns(lambda x, given: {"x": x, **({"more": x.sum()} if "extra" in given else {})})
    found = compared(both, batch(ids()), {**batch(ids()), "extra": torch.ones(1)})
    assert not found.differs
    assert not found.identical
    assert found.missing == "more: only run B returns it"


def test_a_value_of_batch_mates_alone_is_nothing_to_compare():
    found = compared(Returns(lambda x, _: {f"row{i}": r for i, r in enumerate(x)}), batch(ids()), mates())
    assert found.identical
    assert found.left_out == (("row2", "only run B returns it"), ("row3", "only run B returns it"))


def test_a_value_of_batch_mates_too_stands_in_the_way():
    for make in (lambda x, _: (x, x.exp().sum()), lambda x, _: (x, float(x.exp().sum()))):
        found = compared(Returns(make), batch(ids()), mates())
        assert found.missing == "[1]: it is of tokens that one run alone has, too"


def test_what_only_looks_like_rows_is_found_by_its_size():
    table = torch.arange(12.0).reshape(4, 3)

    def rows(x: Tensor, _: Any) -> Any:
        return x, torch.empty(len(x), 3).copy_(table[: len(x)])

    assert compared(Returns(rows), batch(ids()), mates()).identical


def test_no_value_at_all_stands_in_nobodys_way():
    assert compared(Returns(lambda x, _: (x, x[:, :0])), batch(ids()), batch(ids())).identical


def unlabelled(x: Tensor, _: Any) -> Any:
    """A vector of each call, of which nothing says whose it is."""
    return x, torch.tensor([*x.sum((0, 1)).tolist(), 1.0])


def after_another(
    make: Callable[..., Any], last: dict[str, Tensor], other: Callable[..., Any] | None = None
) -> ResultComparison:
    """A row at once, and after a call with another row, by layouts that say so."""
    before = {**batch(ids(1, seed=3)), "first": torch.ones(1)}
    position = torch.arange(4)[None]
    one, two = (fp.Coordinates(torch.full((1, 4), sample), position) for sample in (0, 1))
    a = fp.Run(Returns(make), last, layout=fp.Layout([one], {0: "last"}))
    b = fp.Run(Returns(other or make), [before, last], layout=fp.Layout([two, one], {0: "last", 1: "before"}))
    return compare_results(session(a, b))


def test_a_value_of_nobody_is_not_held_against_one_of_a_call_with_other_samples():
    found = after_another(unlabelled, batch(ids(1)))
    assert found.identical
    assert [gap.name for gap in found.gaps if gap.name.startswith("[1]")] == ["[1] (call 0 and 1)"]
    other = after_another(unlabelled, batch(ids(1)), lambda x, given: unlabelled(x + 1, given))
    assert other.differs


def test_a_value_of_nobody_that_calls_with_other_samples_alone_return_is_left_out():
    def of_first(x: Tensor, given: dict[str, Any]) -> Any:
        return {"x": x, **({"more": unlabelled(x, given)[1]} if "first" in given else {})}

    def of_all(x: Tensor, given: dict[str, Any]) -> Any:
        return {"x": x, "more": unlabelled(x, given)[1]}

    found = after_another(of_all, batch(ids(1)), of_first)
    assert (found.differs, found.identical) == (False, False)
    assert found.missing == (
        "more: nothing tells whose it is, and no two calls that hold the same samples return it"
    )


# ---------------------------------------------------------------------- numbers and texts


@pytest.mark.parametrize(
    "make",
    [
        lambda x, _: x.sum(-1).tolist(),
        lambda x, _: x.detach().numpy(),
        lambda x, _: [float(r.sum()) for r in x],
        lambda x, _: {"n": 3, "texts": [str(r.argmax()) for r in x]},
    ],
)
def test_numbers_of_rows_meet_those_of_the_same_rows(make: Callable[..., Any]):
    model = Returns(make)
    found = compared(model, batch(ids()), mates())
    assert not found.differs
    assert found.gaps[-1].coordinates >= 2
    other = twin(model)
    with torch.no_grad():
        other.head.weight[0] += 3
        other.head.weight[1] -= 3
    assert compared(model, batch(ids()), mates(), other).differs


def test_integers_are_counted_and_make_no_distance():
    model = Returns(lambda x, given: (x, given["input_ids"] * 1000))
    found = compared(model, {"input_ids": ids()}, {"input_ids": ids() + 0})
    assert (found.discrete_compared, found.discrete_differing) == (8, 0)
    other = Returns(lambda x, given: (x, given["input_ids"] * 1000 + 5))
    found = compared(model, {"input_ids": ids()}, {"input_ids": ids() + 0}, other)
    assert (found.discrete_compared, found.discrete_differing) == (8, 8)
    assert (found.max_abs, found.distance) == (0, 8)


# ---------------------------------------------------------------------- numbers of several calls


def halves(make: Callable[..., Any], rows: int = 2) -> tuple[fp.Run, fp.Run]:
    """One call on four rows against two calls."""
    tokens, model = ids(4, 5), Returns(make)
    whole = fp.Layout.from_mask(torch.ones(4, 5)).calls[0]["main"]
    parts = slice(0, rows), slice(rows, 4)
    layout = fp.Layout([fp.Coordinates(whole.sample[part], whole.position[part]) for part in parts])
    return fp.Run(model, batch(tokens)), fp.Run(model, [batch(tokens[part]) for part in parts], layout=layout)


def test_numbers_of_other_calls_are_averaged_or_added_up():
    for how, make in (
        ("mean", lambda x, _: (x, x.exp().mean())),
        ("sum", lambda x, _: (x, x.exp().sum())),
        ("sum", lambda x, _: (x, x.shape[0])),
        ("mean", lambda x, _: (x, x.shape[1])),
    ):
        (found,) = [g for g in compare_results(session(*halves(make))).gaps if g.result == "[1]"]
        assert (found.over_calls, found.gap.max_rel < 1e-6) == (how, True)


def test_numbers_that_neither_add_up_nor_average_differ():
    found = compare_results(session(*halves(lambda x, _: (x, x.exp().mean()), rows=1)))
    (loss,) = [g for g in found.gaps if g.result == "[1]"]
    assert loss.gap.max_rel > 1e-3
    assert not found.missing


# ---------------------------------------------------------------------- nothing is printed


@dataclass
class Output:
    logits: Tensor
    past_key_values: Any = None

    @property
    def cache_params(self) -> Any:
        warnings.warn("`cache_params` is deprecated", FutureWarning, stacklevel=2)
        sys.stderr.write("deprecated\n")
        return self.past_key_values


class Remembers(Model):
    """Adds up what it was called with; an old name of its cache still works, and complains."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **inputs: Any) -> Output:
        assert not inputs, f"also given {list(inputs)}"
        logits = super().forward(input_ids)["logits"]
        total = logits.sum(1, keepdim=True) + (past_key_values[0] if past_key_values is not None else 0)
        return Output(logits + 0 * total, [total])


def test_a_comparison_prints_nothing_of_its_own_accord(capfd: pytest.CaptureFixture[str]):
    tokens, model = ids(1, 6), Remembers()
    steps = [{"input_ids": tokens[:, :4]}, {"input_ids": tokens[:, 4:5]}, {"input_ids": tokens[:, 5:]}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fp.compare(fp.Run(model, {"input_ids": tokens}), fp.Run(model, steps))
    assert result.verdict.kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------- what no token has a part in


class Constant(Model):
    """Returns its hidden states with a number beside, before or written into them."""

    def forward(self, input_ids: Tensor, where: str = "", number: float = 1.0, **inputs: Any) -> Any:
        x = super().forward(input_ids)["logits"]
        if where == "written":
            z = torch.zeros_like(x)
            z[..., 1:] = x[..., 1:]
            z[..., :1] = number
            return z
        dim = 1 if where == "before" else 2
        return torch.cat([torch.full_like(x[:, :1] if dim == 1 else x[..., :1], number), x], dim)


@pytest.mark.parametrize("where", ["beside", "before", "written"])
def test_a_part_that_no_token_has_a_part_in_is_compared_too(where: str):
    model = Constant()
    calls = [{**batch(ids()), "where": where, "number": number} for number in (1.0, 1.5)]
    assert compared(model, calls[0], calls[0]).identical
    found = compared(model, *calls)
    assert found.differs
    assert found.max_abs == 0.5
    assert not fp.compare(*pair(model, *calls)).identical


@pytest.mark.parametrize("columns", [13, 14])
def test_as_many_features_of_one_token_as_columns_are_no_tokens(columns):
    """A pooled vector `[rows, features]` has the shape of the padded call's token ids by chance."""

    class Pooled(Model):
        def forward(self, input_ids, **inputs):
            hidden = self.layers[0](self.embed(input_ids)).tanh()
            return {"logits": self.head(hidden), "pooled": self.layers[1](hidden[:, 0]).tanh()}

    tokens = ids(rows=1, columns=9)
    result = fp.compare(*pair(Pooled(), batch(tokens), batch(tokens, right=columns - 9)))
    assert result.verdict.kind.value in ("identical", "rounding")
    assert not [one for one in result.not_compared if one.op.startswith("result")]
