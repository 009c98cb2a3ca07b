from __future__ import annotations

import pytest
import torch

from measure import affordable, copy_speed, floor, in_turn, peak_of, ratio, seconds_of, spread

CPU = torch.device("cpu")


def test_a_ratio_is_the_median_of_the_ratios_within_repetitions() -> None:
    """Not the ratio of medians (here 4 / 2): a busy moment hits both in a repetition."""
    plain = {0: 1.0, 1: 2.0, 2: 10.0}
    assert ratio({0: 3.0, 1: 4.0, 2: 40.0}, plain) == {
        "ratio": 3.0,
        "ratio_least": 2.0,
        "ratio_most": 4.0,
        "repetitions": 3,
    }
    assert ratio({0: 3.0, 2: 40.0}, plain)["ratio"] == 3.5
    assert ratio({2: 40.0}, plain) == {"ratio": 4, "ratio_least": 4, "ratio_most": 4, "repetitions": 1}


def test_everything_takes_its_turn() -> None:
    order: list[str] = []

    def way(name: str):
        def call() -> float:
            order.append(name)
            return float(len(order))

        return call

    taken, failures = in_turn({name: way(name) for name in "abc"}, {"a": 4, "b": 4, "c": 2})
    assert not failures
    assert {name: list(values) for name, values in taken.items()} == {
        "a": [0, 1, 2, 3],
        "b": [0, 1, 2, 3],
        "c": [0, 2],
    }
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert sorted(order[3:5]) == ["a", "b"]
    assert order[3:5] != order[:2], "nobody always comes first"
    assert in_turn({}, {}) == ({}, {})


def test_what_fails_gets_no_further_turn() -> None:
    turns = iter(range(9))

    def fails() -> float:
        if next(turns) == 1:
            raise MemoryError("no more")
        return 1.0

    taken, failures = in_turn({"good": lambda: 2.0, "bad": fails}, {"good": 4, "bad": 4})
    assert failures == {"bad": "MemoryError: no more"}
    assert len(taken["good"]) == 4
    assert next(turns) == 2


@pytest.mark.parametrize(("count", "most"), [(1, 7), (2, 7), (3, 7), (5, 7), (7, 7)])
def test_fewer_repetitions_are_spread(count: int, most: int) -> None:
    found = spread(count, most)
    gaps = [b - a for a, b in zip(found, [*found[1:], most], strict=True)]
    assert len(found) == count
    assert found[0] == 0
    assert max(gaps) - min(gaps) <= 1


def test_patience() -> None:
    assert affordable(0.1, 7, 20) == 7
    assert affordable(5, 7, 20) == 4
    assert affordable(50, 7, 20) == 1
    assert affordable(50, 7, 20, least=3) == 3
    assert affordable(50, 2, 20, least=3) == 2
    assert affordable(0, 7, 20) == 7


def test_the_physical_floor() -> None:
    assert floor(n_bytes=3_000, bytes_per_second=1_000, plain=6) == 1.5


def test_what_is_returned_counts_as_memory() -> None:
    size = 1 << 26
    peak = peak_of(lambda: torch.ones(size // 4), CPU)
    if peak is None:
        pytest.skip("the high-water mark can't be reset here")
    assert size * 0.9 < peak < size * 2
    assert peak_of(lambda: None, CPU) < size / 4  # type: ignore[operator]


def test_clocks_run_forward() -> None:
    assert seconds_of(lambda: torch.ones(10), CPU) > 0
    assert copy_speed(CPU, 1 << 20) > 0
