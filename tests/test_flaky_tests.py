"""No flaky tests: sound padding and batching pass `fp.testing`, whatever the seed, where fixed tolerances fail some.

    python -m tests.test_flaky_tests --seeds 16 --count 188 --workers 16

prints how many of 3,008 tests failed, and how many would have with tolerances that people use. That each test is sound
is shown by float64 passes that know nothing of forkpoint.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sound import NAMES, SOUND, Comparison, draw, gap, values_of

import forkpoint as fp

FAMILIES = ("padding", "batch")
CLOSE = {"fp32": (1.3e-6, 1e-5), "bf16": (1.6e-2, 1e-5), "fp16": (1e-3, 1e-5)}
"""(rtol, atol) of `torch.testing.assert_close`, by dtype."""
TOLERANCES: dict[str, dict[str, tuple[float, float]]] = {
    "torch.testing.assert_close": CLOSE,
    "atol and rtol 1e-5, 1e-3 in half precision": {"fp32": (1e-5, 1e-5), "bf16": (1e-3, 1e-3), "fp16": (1e-3, 1e-3)},
    "atol and rtol 1e-4, 1e-2 in half precision": {"fp32": (1e-4, 1e-4), "bf16": (1e-2, 1e-2), "fp16": (1e-2, 1e-2)},
    "atol and rtol 1e-3, 5e-2 in half precision": {"fp32": (1e-3, 1e-3), "bf16": (5e-2, 5e-2), "fp16": (5e-2, 5e-2)},
}  # fmt: skip
"""Fixed tolerances that tests are written with: (rtol, atol) by dtype."""


@dataclass
class Score:
    """What became of many sound tests."""

    tests: int = 0
    rounding: int = 0
    """How many compared runs of other bits."""
    failed: list[str] = field(default_factory=list)
    """What `fp.testing` failed, each with its message."""
    beyond: Counter[str] = field(default_factory=Counter)
    """How many each fixed tolerance would have failed."""
    seconds: float = 0.0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.tests + other.tests, self.rounding + other.rounding, self.failed + other.failed,
            self.beyond + other.beyond, self.seconds + other.seconds,
        )  # fmt: skip


def sound_tests(seed: int, count: int) -> Iterator[tuple[Comparison, Any, Any]]:
    """Comparisons that are equal in exact arithmetic, each with what its runs return.

    Raises:
        AssertionError: one is not. That is a bug of the test, or of transformers.
    """
    drawn = draw(seed, FAMILIES, NAMES)
    for _ in range(count):
        comparison = next(drawn)
        exact = gap(*(values_of(side, exactly=True) for side in (comparison.a, comparison.b)))
        assert exact < SOUND, f"not sound, by {exact:.2g}: {comparison.title}"
        a, b = (values_of(side, exactly=False) for side in (comparison.a, comparison.b))
        yield comparison, a, b


def score(seed: int, count: int) -> Score:
    """What `fp.testing.assert_same` and each tolerance say of so many tests."""
    found = Score()
    for comparison, a, b in sound_tests(seed, count):
        dtype = comparison.detail.split()[0]
        for name, by_dtype in TOLERANCES.items():
            found.beyond[name] += not within(a, b, *by_dtype[dtype])
        began = time.perf_counter()
        try:
            result = fp.testing.assert_same(comparison.a.run("A"), comparison.b.run("B"))
            found.rounding += not result.identical
        except Exception as error:  # noqa: BLE001 - any error is one more test that failed
            found.failed.append(f"{comparison.title}, seed {seed}\n{type(error).__name__}: {error}")
        found.tests += 1
        found.seconds += time.perf_counter() - began
    return found


def within(a: Any, b: Any, rtol: float, atol: float) -> bool:
    """Whether every shared token's values are as close as a test with a fixed tolerance asks."""
    return all(torch.allclose(b[key], a[key], rtol=rtol, atol=atol) for key in a if key in b)


def test_sound_tests_pass() -> None:
    found = score(0, 24)
    assert found.failed == []
    assert found.rounding > 4  # else nothing was tested
    assert found.beyond["torch.testing.assert_close"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_tolerance_says_is_what_torch_says(family: str) -> None:
    """The figures of the tolerances are those that `torch.testing` itself would give."""
    comparison = next(c for c in draw(3, [family], ["llama"]))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
        comparison.detail.split()[0]
    ]
    a, b = (values_of(side, exactly=False) for side in (comparison.a, comparison.b))
    for factor in (0.0, 1e-6, 1e-4, 1e-1):
        moved = {key: value * (1 + factor) for key, value in b.items()}
        said = True
        for key in moved.keys() & a.keys():
            try:
                torch.testing.assert_close(moved[key].to(dtype), a[key].to(dtype))
            except AssertionError:
                said = False
        rounded = {key: value.to(dtype).double() for key, value in moved.items()}
        assert within(a, rounded, *CLOSE[comparison.detail.split()[0]]) == said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=50, help="tests of each seed")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    began = time.perf_counter()
    total = Score()
    seeds = range(given.first, given.first + given.seeds)
    with ProcessPoolExecutor(
        given.workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        for seed, found in zip(seeds, pool.map(partial(score, count=given.count), seeds), strict=True):
            total += found
            print(
                f"seed {seed}: {found.tests} tests, {found.rounding} of other bits, {len(found.failed)} failed",
                flush=True,
            )
    for message in total.failed:
        print("\n" + message)
    print(f"\n{total.tests} sound tests in {given.seeds} seeds, {total.rounding} of them of other bits:")
    print(f"  {len(total.failed):5} failed fp.testing.assert_same")
    for name in TOLERANCES:
        print(f"  {total.beyond[name]:5} ({total.beyond[name] / total.tests:.1%}) fail {name}")
    print(f"{time.perf_counter() - began:.0f} s, {total.seconds / total.tests:.2f} s a comparison")
    if given.json is not None:
        machine = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        figures = {**vars(total), "beyond": dict(total.beyond)}
        given.json.write_text(json.dumps(figures | machine, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(bool(total.failed))


if __name__ == "__main__":
    main()
