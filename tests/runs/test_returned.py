"""What a model returned: what counts as a value, by which name, and which caches are handed on."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from forkpoint import CaptureError
from forkpoint.runs.returned import all_results, caches_in, closed_of, others_of, results_of


@dataclass
class Output:
    a: Any
    b: Any = None


@dataclass(slots=True)
class Slots:
    a: Any


class Pair(NamedTuple):
    x: Any
    y: Any


class StaticCache:
    def __init__(self) -> None:
        self.keys = torch.zeros(1)


ONE = torch.zeros(1)


def datetime64() -> Any:
    return np.array(["2020-01-01"], dtype="datetime64[D]")


def structured() -> Any:
    return np.zeros(2, dtype=[("n", np.float32)])


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (ONE, ["output"]),
        ((ONE, [ONE, None]), ["[0]", "[1][0]"]),
        ({"a": ONE, "b": {"c": ONE}, "d": "text"}, ["a", "b.c", "d"]),
        (Output(ONE, (ONE,)), ["a", "b[0]"]),
        (Slots(ONE), ["a"]),
        (Pair(ONE, 3), ["[0]", "[1]"]),
        ({"losses": [0.5, 0.25], "n": 3, "name": "text"}, ["losses", "n", "name"]),
        ([[1, 2], [3]], ["[0]", "[1]"]),
        (deque([ONE, [1, 2]]), ["[0]", "[1]"]),
        ({"a": ONE}.values(), ["[0]"]),
        (SimpleNamespace(a=ONE, b={"c": 1}), ["a", "b.c"]),
        ({1: ONE, "1": ONE}, ["1", "1'"]),
        ([{1, 2}, range(3), Decimal(1)], ["[0]", "[1]", "[2]"]),
        ([datetime64(), structured()], ["[0]", "[1].n"]),
        (None, []),
        ({}, []),
    ],
)
def test_every_value_that_is_returned_has_a_name(output: Any, names: list[str]):
    assert list(results_of(output)) == names


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (0.1, torch.float64, 0.1),
        (7, torch.int64, 7),
        (True, torch.bool, True),
        (1 + 2j, torch.complex128, 1 + 2j),
        (np.float32(0.5), torch.float32, 0.5),
        (np.bool_(False), torch.bool, False),
        (np.arange(3, dtype=np.int16), torch.int16, [0, 1, 2]),
        ([[1.0, 2.0], [3.0, 4.0]], torch.float64, [[1.0, 2.0], [3.0, 4.0]]),
        ((1, np.int64(2)), torch.int64, [1, 2]),
    ],
)
def test_numbers_become_tensors_of_their_own_precision(value: Any, dtype: torch.dtype, expected: Any):
    (found,) = results_of(value).values()
    assert found.dtype == dtype
    assert found.tolist() == expected


def test_texts_are_the_same_or_not():
    one, same, other = (results_of({"text": text})["text"] for text in ("Paris", "Paris", "London"))
    assert one.dtype == torch.int64
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert results_of(["Paris", "London"])["output"].tolist() == [int(one), int(other)]
    assert results_of(np.array(["Paris"]))["output"].tolist() == [int(one)]
    assert not torch.equal(results_of(10**30)["output"], results_of(10**30 + 1)["output"])


def test_a_numpy_array_is_copied_though_nothing_may_write_to_it():
    array = np.zeros(2)
    array.flags.writeable = False
    assert results_of(array)["output"].tolist() == [0, 0]


def test_objects_are_listed_by_their_class():
    output = {"logits": ONE, "config": object(), "parts": [StaticCache, ONE], "cache": StaticCache()}
    assert list(results_of(output)) == ["logits", "parts[1]"]
    assert others_of(output) == {"config": "object", "parts[0]": "type"}


def test_objects_that_hide_tensors_are_told_from_those_that_hold_none():
    output = {"logits": ONE, "given": iter([ONE]), "later": lambda: ONE.mul(2), "plain": object()}
    kept = ONE.mul(2)
    output["bound"] = lambda: kept
    assert closed_of(output) == {"given": "list_iterator", "bound": "function"}
    assert others_of(output) == {"later": "function", "plain": "object"}


def test_an_object_that_holds_itself_is_looked_into_once():
    itself = SimpleNamespace(scores=ONE)
    itself.parent = [itself]
    assert list(results_of(itself)) == ["scores"]


def test_caches_are_no_results():
    output = {"a": ONE, "past_key_values": (ONE,), "cache_params": ONE, "mems": [ONE], "other": StaticCache()}
    assert list(results_of(output)) == ["a"]
    assert list(results_of({"state": [ONE]})) == []
    assert list(results_of({"state": ONE})) == ["state"]


def test_packed_rows_are_their_values():
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.rand(2, 3, 1), torch.tensor([3, 2]), batch_first=True
    )
    assert list(results_of(packed)) == ["data"]
    assert list(results_of((packed, ONE))) == ["[0].data", "[1]"]


DENSE = torch.tensor([[0.0, 1.5], [2.0, 0.0]])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", ["to_sparse", "to_sparse_csr", "to_sparse_csc", "to_mkldnn"])
def test_sparse_tensors_are_compared_as_dense_ones(make: str):
    assert torch.equal(results_of(getattr(DENSE, make)())["output"], DENSE)


@pytest.mark.filterwarnings(
    "ignore:Sparse invariant checks are implicitly disabled"
)  # torch 2.11, asked to check
def test_a_sparse_tensor_too_large_for_that_is_its_parts():
    value = torch.sparse_coo_tensor([[3, 1, 3]], [1.0, 2.0, 4.0], (1 << 40,), check_invariants=True)
    found = results_of({"weights": value})
    assert {name: part.tolist() for name, part in found.items()} == {
        "weights.indices": [[1, 3]],
        "weights.values": [2.0, 5.0],
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_tensors_are_compared_by_their_values():
    value = torch.quantize_per_tensor(DENSE, 0.5, 0, torch.qint8)
    assert torch.equal(results_of((value,))["[0]"], DENSE)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_what_they_consist_of(layout: torch.layout):
    value = torch.nested.nested_tensor([DENSE, DENSE[:1] * 2], layout=layout)
    found = results_of(value)
    assert {name: part.tolist() for name, part in found.items()} == {
        "output[0]": [[0.0, 1.5], [2.0, 0.0]],
        "output[1]": [[0.0, 3.0]],
    }


@pytest.mark.parametrize("output", ["text", None, object(), ["a", "b"], {}])
def test_a_model_that_returns_no_number_can_not_be_compared(output: Any):
    with pytest.raises(CaptureError, match=f"returned {type(output).__name__}; expected at least one tensor"):
        all_results([output])


def test_a_number_is_enough():
    assert all_results(["text", 0.5])[1]["output"] == 0.5


# --- Caches ----------------------------------------------------------------------------------------


class Model:
    def forward(self, ids: Tensor, past_key_values: Any = None) -> None: ...


class Warns(Mapping[str, Any]):
    """An output that keeps an old name as an attribute, and warns of it."""

    def __init__(self, **held: Any) -> None:
        self.held = held

    def __getitem__(self, key: str) -> Any:
        return self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    @property
    def cache_params(self) -> None:
        warnings.warn("deprecated", FutureWarning, stacklevel=2)


@dataclass
class WarnsToo:
    a: Any
    past_key_values: Any = None

    @property
    def cache_params(self) -> Any:
        warnings.warn("deprecated", FutureWarning, stacklevel=2)
        return self.past_key_values


def test_no_attribute_is_asked_for_that_may_warn():
    cache = StaticCache()
    for output in (Warns(a=ONE, past_key_values=cache), WarnsToo(ONE, cache)):
        assert list(results_of(output)) == ["a"]
        assert caches_in(output, Model()) == {"past_key_values": cache}


def test_a_cache_under_two_names_is_handed_on_under_the_one_that_the_model_takes():
    cache, other = StaticCache(), StaticCache()
    assert caches_in({"cache_params": cache, "past_key_values": cache}, Model()) == {"past_key_values": cache}
    assert caches_in({"cache_params": cache, "past_key_values": cache}, object()) == {
        "past_key_values": cache
    }
    both = {"cache_params": cache, "past_key_values": other}
    assert caches_in(both, Model()) == both


def test_a_cache_that_is_an_attribute_is_handed_on_without_a_warning():
    class Plain:
        @property
        def past_key_values(self) -> int:
            warnings.warn("deprecated", FutureWarning, stacklevel=2)
            return 3

    assert caches_in(Plain(), Model()) == {"past_key_values": 3}
    assert caches_in(ONE, Model()) == {}


def test_a_cache_goes_by_the_name_that_the_model_takes_whatever_the_output_calls_it() -> None:
    """Transformers renamed it to `cache` in 5.24, and a model of a user's own goes on to take `past_key_values`."""
    cache = (torch.ones(1), torch.ones(1))
    assert caches_in({"logits": torch.ones(1), "cache": cache}, Model()) == {"past_key_values": cache}
    assert caches_in({"logits": torch.ones(1), "cache": cache}, object()) == {"cache": cache}
    assert "cache[0]" not in results_of({"logits": torch.ones(1), "cache": cache})
    bare = {"logits": torch.ones(1), "cache": torch.ones(1)}
    assert caches_in(bare, Model()) == {}
    assert "cache" in results_of(bare)
