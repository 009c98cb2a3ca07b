"""Shelves: what is kept comes back bit for bit, within the limit, and nothing is left behind."""

from __future__ import annotations

import errno
import gc
import io
import os
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.capture.digest.tensors import tensors_and_dims
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

import forkpoint as fp
from forkpoint import comparison
from forkpoint.support import memory
from forkpoint.support.memory import Memory, Shelved, load, load_array


def same_bits(a: Tensor, b: Tensor) -> bool:
    plain = [t.resolve_neg().resolve_conj().contiguous() for t in (a, b)]
    bits = [t.as_strided((t.numel(),), (1,)).view(torch.uint8) for t in plain]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


# --- what comes back ---------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(given=st.lists(tensors_and_dims(most=120), max_size=8), limit=st.none() | st.integers(1, 2000))
def test_tensors_come_back_bit_for_bit(given, limit):
    room = Memory(limit)
    shelf = room.shelf()
    kept = [shelf.keep(x) for x, _ in given]
    assert limit is None or room.most_in_memory <= limit / 2
    assert all(isinstance(k, Tensor) for k in kept) or room.written
    for (x, _), k in reversed(list(zip(given, kept, strict=True))):
        assert same_bits(load(k), x)
        assert k.dtype == x.dtype


@pytest.mark.parametrize(
    "array",
    [np.arange(6), np.arange(24.0).reshape(2, 3, 4).T, np.broadcast_to(np.arange(3), (2, 3)), np.zeros((0, 3), int)],
)  # fmt: skip
@pytest.mark.parametrize("limit", [None, 1])
def test_arrays_come_back(array, limit):
    back = load_array(Memory(limit).shelf().keep_array(array))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_strides_come_back_where_the_elements_fill_a_stretch():
    shelf = Memory(1).shelf()
    x = torch.randn(2, 3, 4).transpose(0, 2)
    kept = shelf.keep(x)
    assert load(kept).stride() == x.stride()
    assert load(shelf.keep(x[:, ::2])).is_contiguous()


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.ones(3)),
        torch.empty(3, device="meta"),
    ],
    ids=["sparse", "subclass", "meta"],
)
def test_what_a_file_can_not_hold_stays_as_it_is(value):
    assert Memory(1).shelf().keep(value) is value


# --- the limit ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_objects")
def test_shelves_share_a_limit_and_give_back_what_they_had():
    room = Memory(200)
    first, second = room.shelf(), room.shelf()
    value = torch.zeros(10)
    assert [isinstance(s.keep(value), Shelved) for s in (first, second, second)] == [False, False, True]
    assert (room.in_memory, room.written) == (80, 40)
    first.close()
    first.close()
    assert room.in_memory == 40
    assert isinstance(first, memory.Shelf)
    del second
    gc.collect()
    assert (room.in_memory, room.most_in_memory) == (0, 80)


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_objects")
def test_no_file_has_a_name_or_outlives_its_shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf = Memory(1).shelf()
    kept = shelf.keep(torch.arange(9))
    if os.name == "posix":
        assert os.listdir(tmp_path) == []
    file = shelf._contents.file
    assert file is not None
    del shelf
    gc.collect()
    assert torch.equal(load(kept), torch.arange(9))  # what lies on it holds the shelf
    del kept
    gc.collect()
    assert file.closed
    assert os.listdir(tmp_path) == []


class Full(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class InSips(io.BytesIO):
    """Writes and reads less than it is asked to, as a raw file may."""

    def write(self, data: Any) -> int:
        return super().write(data[:7])

    def readinto(self, data: Any) -> int:
        return super().readinto(data[:5])


def test_a_full_folder_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(fp.CaptureError) as caught:
        Memory(1).shelf().keep(torch.zeros(1000))
    assert str(caught.value) == (
        f"4,000 bytes can't be written to {tempfile.gettempdir()}: No space left on device; expected a temporary "
        "folder with room for what max_memory keeps out of memory (set TMPDIR to another one, or allow more memory)"
    )


def test_a_file_may_take_and_give_less_than_all_at_once(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: InSips())
    shelf = Memory(1).shelf()
    values = [torch.arange(n) for n in (10, 3, 100)]
    for value, kept in [(value, shelf.keep(value)) for value in values]:
        assert torch.equal(load(kept), value)


# --- whole comparisons -------------------------------------------------------------------------------------


class Attending(Model):
    """Attention weights, a table of positions, and state that goes on: every kind of digest."""

    def mix(self, hidden: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        columns = torch.arange(hidden.shape[1])
        hidden = hidden + (columns[:, None] * 0.5).sin()
        causal = columns[:, None] >= columns
        mask = causal if attention_mask is None else causal & attention_mask[:, None].bool()
        scores = (hidden @ hidden.mT).masked_fill(~mask, -1e9)
        return hidden + scores.softmax(-1) @ hidden.cumsum(1)


def steps(tokens: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": tokens[:, i : i + 1]} for i in range(tokens.shape[1])]


def scaled(model: Model) -> Model:
    other = twin(model)
    with torch.no_grad():
        other.head.weight *= 1 + 2**-20
    return other


PAIRS: dict[str, Any] = {
    "padded on the left": lambda: pair(Attending(), batch(ids()), batch(ids(), left=3)),
    "padded on the right": lambda: pair(Attending(), batch(ids()), batch(ids(), right=3)),
    "mates": lambda: pair(Attending(), batch(ids()[:1]), batch(ids())),
    "other weights": lambda: pair(Model(), batch(ids()), batch(ids(), left=1), scaled(Model())),
    "token by token": lambda: pair(Model(), {"input_ids": ids()}, steps(ids())),
    "identical": lambda: pair(Attending(), batch(ids()), batch(ids())),
}


@pytest.fixture
def rooms(monkeypatch) -> list[Memory]:
    """Every `Memory` that a comparison makes."""
    made: list[Memory] = []

    class Noted(Memory):
        def __init__(self, limit: int | None = None) -> None:
            super().__init__(limit)
            made.append(self)

    monkeypatch.setattr(comparison, "Memory", Noted)
    return made


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("limit", [1, "1kB", "64KiB"])
def test_a_limit_changes_nothing_in_the_result(rooms, name, limit):
    free = fp.compare(*PAIRS[name]()).to_dict()
    tight = fp.compare(*PAIRS[name](), max_memory=limit).to_dict()
    assert (free.pop("call"), tight.pop("call")) == (
        "fp.compare(a, b)",
        f"fp.compare(a, b, max_memory={limit!r})",
    )
    assert tight == free
    unlimited, limited = rooms
    assert unlimited.written == 0
    assert limited.limit is not None
    assert limited.most_in_memory <= limited.limit / 2
    assert limited.written or limit == "64KiB"


def test_digests_are_let_go_of_when_they_are_joined(rooms):
    fp.compare(*PAIRS["identical"](), max_memory="1MB")
    assert rooms[0].most_in_memory > rooms[0].in_memory == 0


@pytest.mark.usefixtures("few_objects")
def test_a_run_that_fails_leaves_no_file(rooms, tmp_path, monkeypatch):
    class Fails(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            calls.append(hidden.shape[1])
            if calls.count(5) > 1:  # the first time nobody watches
                raise ZeroDivisionError
            return hidden

    calls: list[int] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(fp.CaptureError, match="ZeroDivisionError"):
        fp.compare(*pair(Fails(), batch(ids()), batch(ids(), left=1)), max_memory=1)
    gc.collect()
    assert calls == [4, 5, 4, 5, 5]  # the last with its modules watched alone
    assert rooms[0].written
    assert rooms[0].in_memory == 0
    assert os.listdir(tmp_path) == []


def test_a_bad_size_is_refused_before_anything_runs():
    with pytest.raises(fp.InputError, match="max_memory 'plenty'; expected a size such as 500MB"):
        fp.compare(*PAIRS["identical"](), max_memory="plenty")
