"""No false alarms: a comparison that differs only by rounding is never called anything else.

    python -m tests.test_false_alarms --count 200

prints a scoreboard of as many comparisons, of which all differ in bits and none in float64.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from tests.sound import FAMILIES, NAMES, SOUND, Comparison, draw, exact_gap, native_gap

PASSABLE = ("rounding", "undetermined")
MOST_UNDETERMINED = 0.02


@dataclass
class Score:
    """What forkpoint says about a comparison."""

    comparison: Comparison
    kind: str
    mechanism: str | None
    summary: str
    evidence: str
    native: float
    exact: float
    seconds: float

    @property
    def wrong(self) -> bool:
        return self.kind not in PASSABLE

    def __str__(self) -> str:
        return (
            f"{self.kind} ({self.mechanism}), {self.comparison.title}\n"
            f"    gap {self.native:.2g}, in float64 {self.exact:.2g}: {self.summary}\n{self.evidence}"
        )


def ask(comparison: Comparison, native: float, exact: float) -> Score:
    began = time.perf_counter()
    try:
        verdict = comparison.compare().verdict
    except Exception:  # noqa: BLE001 - any error of the tool is one more wrong answer
        return Score(comparison, "error", None, traceback.format_exc(limit=-2), "", native, exact, 0.0)
    seconds = time.perf_counter() - began
    evidence = "\n".join(f"      {p.name}: {p.outcome} {p.figure}: {p.text}" for p in verdict.evidence)
    return Score(
        comparison, str(verdict.kind), verdict.mechanism, verdict.summary, evidence, native, exact, seconds
    )


def scores(
    seed: int, count: int, families: Sequence[str] = tuple(FAMILIES), architectures: Sequence[str] = NAMES
) -> Iterator[Score]:
    """Scores of so many comparisons whose bits differ, and whose float64 values don't.

    Raises:
        AssertionError: a comparison is not sound. That is a bug of the test, or of transformers.
    """
    found = 0
    for comparison in draw(seed, families, architectures):
        if found == count:
            return
        native, exact = native_gap(comparison), exact_gap(comparison)
        assert exact < SOUND, f"not sound, by {exact:.2g}: {comparison.title}"
        if 0 < native < float("inf"):
            found += 1
            yield ask(comparison, native, exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_called_rounding(family: str) -> None:
    found = list(scores(0, 2, [family]))
    assert [str(s) for s in found if s.kind != "rounding"] == []


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "mixtral"])
def test_runs_of_the_same_bits_are_identical(name: str) -> None:
    """Padding that changes not one bit."""
    same = (c for c in draw(1, ["padding", "batch"], [name]) if native_gap(c) == 0)
    assert next(same).compare().verdict.kind == "identical"


def test_rows_of_which_one_run_has_more() -> None:
    """Two rows of a decoder's first step against one: what is made as often as there are rows is compared by its row."""
    comparison = next(draw(8, ["decoding"], ["bart"]))
    assert "2 rows from 1" in comparison.detail
    result = comparison.compare()
    assert result.verdict.kind in ("identical", "rounding")
    assert {found.op for found in result.not_compared} == {
        "model.decoder.embed_positions/embedding",
        "model.decoder.embed_positions/output",
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_hundreds_of_sound_comparisons(seed: int) -> None:
    found = list(scores(seed, 60))
    assert [str(s) for s in found if s.wrong] == []
    undetermined = [str(s) for s in found if s.kind == "undetermined"]
    assert len(undetermined) <= MOST_UNDETERMINED * len(found), undetermined


def main() -> None:
    parser = argparse.ArgumentParser(description="How many sound comparisons forkpoint calls rounding.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--architecture", choices=NAMES, action="append")
    arguments = parser.parse_args()
    found: list[Score] = []
    for score in scores(
        arguments.seed,
        arguments.count,
        arguments.family or tuple(FAMILIES),
        arguments.architecture or NAMES,
    ):
        found.append(score)
        if score.kind != "rounding":
            print(score, flush=True)
    print(f"\n{len(found)} sound comparisons, {sum(s.seconds for s in found):.0f} s")
    print("  by verdict:", table(f"{s.kind} ({s.mechanism})" for s in found))
    for title, of in (
        ("family", lambda s: s.comparison.family),
        ("architecture", lambda s: s.comparison.architecture),
    ):
        print(f"  by {title}:")
        for name in sorted({of(s) for s in found}):
            print(f"    {name:12}", table(s.kind for s in found if of(s) == name))


def table(names: Iterator[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


if __name__ == "__main__":
    main()
