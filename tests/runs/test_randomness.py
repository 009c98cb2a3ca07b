"""The state of random generators, taken and put back."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator

import numpy as np
import pytest
import torch

from forkpoint.runs import randomness
from forkpoint.runs.randomness import RandomState, memory_of_numpy

DRAWS: dict[str, Callable[[], object]] = {
    "torch": lambda: float(torch.rand(1)),
    "python": random.random,
    "numpy": np.random.rand,
    "numpy, one of a pair": np.random.randn,
}


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None]:
    before = RandomState.take()
    yield
    before.restore()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
def test_a_random_state_can_be_told_from_another_and_put_back(draw: Callable[[], object]):
    for _ in range(3):  # a normal number comes of a pair, whose other one is kept
        before = RandomState.take()
        first = draw()
        assert RandomState.take() != before
        before.restore()
        assert RandomState.take() == before
        assert draw() == first
    assert before != "another thing"


def test_a_normal_number_that_was_kept_is_put_back_though_no_bit_was_drawn_since():
    np.random.seed(3)  # noqa: NPY002
    np.random.randn()  # noqa: NPY002
    one_kept = np.random.get_state(legacy=False)  # noqa: NPY002
    np.random.randn()  # noqa: NPY002
    none_kept = RandomState.take()
    np.random.set_state(one_kept)  # noqa: NPY002
    assert RandomState.take() != none_kept
    none_kept.restore()
    assert np.random.get_state(legacy=False)["has_gauss"] == 0  # noqa: NPY002


def test_the_state_of_numpy_is_read_anew_where_its_memory_is_not_known(monkeypatch: pytest.MonkeyPatch):
    assert memory_of_numpy() is not None
    monkeypatch.setattr(randomness, "memory_of_numpy", lambda: None)
    before = RandomState.take()
    first = np.random.rand()  # noqa: NPY002
    assert RandomState.take() != before
    before.restore()
    assert np.random.rand() == first  # noqa: NPY002


def test_another_generator_behind_numpys_functions_has_a_state_as_well():
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        assert memory_of_numpy() is None
        state = RandomState.take()
        first = np.random.rand()  # noqa: NPY002
        state.restore()
        assert np.random.rand() == first  # noqa: NPY002
    finally:
        np.random.set_bit_generator(before)


def test_a_numpy_that_names_its_generator_otherwise_is_asked_for_its_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(np.random, "get_bit_generator")
    assert memory_of_numpy() is None
    before = RandomState.take()
    first = np.random.rand()  # noqa: NPY002
    before.restore()
    assert np.random.rand() == first  # noqa: NPY002
