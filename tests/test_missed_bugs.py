"""No missed bugs: a planted semantic fault is called semantic, by its name, and its place is found.

    python -m tests.test_missed_bugs --count 200

prints a scoreboard of as many faults.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pytest
from tests.faults import ANATOMY, KINDS, Fault, draw, exact_gap


@dataclass
class Score:
    """What forkpoint says about a comparison with a fault in it."""

    fault: Fault
    kind: str
    mechanism: str | None
    origin: str
    summary: str
    evidence: str
    complaints: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        effect = exact_gap(self.fault.comparison)
        return (
            f"wrong {' and '.join(self.complaints) or 'in nothing'}: {self.kind} ({self.mechanism}), origin {self.origin}\n"
            f"    {self.fault.title}; by {effect:.2g} in float64\n    {self.summary}\n{self.evidence}"
        )


def ask(fault: Fault) -> Score:
    began = time.perf_counter()
    try:
        result = fault.comparison.compare()
    except Exception:  # noqa: BLE001 - any error of the tool is one more wrong answer
        return Score(fault, "error", None, "nowhere", traceback.format_exc(limit=-2), "", ("kind",), 0.0)
    seconds = time.perf_counter() - began
    verdict, origin = result.verdict, result.origin
    complaints: list[str] = []
    if verdict.kind != "semantic":
        complaints.append("kind")
    else:
        if verdict.by_design and not any(
            p.name == "coupling" and p.outcome == "coupled" for p in verdict.evidence
        ):
            complaints.append("coupling")
        if verdict.mechanism not in fault.mechanisms:
            complaints.append("mechanism")
        if not fault.origin_right(origin):
            complaints.append("origin")
    place = "nowhere" if origin is None else f"{origin.op} ({origin.source})"
    evidence = "\n".join(f"      {p.name}: {p.outcome} {p.figure}: {p.text}" for p in verdict.evidence)
    return Score(
        fault,
        str(verdict.kind),
        verdict.mechanism,
        place,
        verdict.summary,
        evidence,
        tuple(complaints),
        seconds,
    )


def scores(
    seed: int, count: int, kinds: Sequence[str] = tuple(KINDS), architectures: Sequence[str] = tuple(ANATOMY)
) -> Iterator[Score]:
    for _, fault in zip(range(count), draw(seed, kinds, architectures), strict=False):
        yield ask(fault)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_faults_are_called_by_their_name(kind: str) -> None:
    check(scores(0, 7, [kind]))


@pytest.mark.slow
def test_an_origin_behind_many_steps_of_integers_is_found() -> None:
    """A causal mask off by one, which six and more steps of columns lead to, each of them another in a padded row."""
    fault = next(islice(draw(13, ["mask"], ["qwen2_moe"]), 9, None))
    assert (fault.variant, fault.comparison.architecture) == ("mask causal", "qwen2_moe")
    check(iter([ask(fault)]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_planted_faults(kind: str) -> None:
    check(scores(1, 50, [kind]))


def check(found: Iterator[Score]) -> None:
    wrong = [str(score) for score in found if score.complaints]
    if wrong:  # pytest would compare the long texts for minutes
        pytest.fail("\n\n".join(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How many planted semantic faults forkpoint calls by their name."
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--architecture", choices=ANATOMY, action="append")
    arguments = parser.parse_args()
    found: list[Score] = []
    for score in scores(
        arguments.seed,
        arguments.count,
        arguments.kind or tuple(KINDS),
        arguments.architecture or tuple(ANATOMY),
    ):
        found.append(score)
        if score.complaints:
            print(score, flush=True)
    right = sum(not s.complaints for s in found)
    print(f"\n{right} of {len(found)} faults right, {sum(s.seconds for s in found):.0f} s")
    print("  by verdict:", table(f"{s.kind} ({s.mechanism})" for s in found))
    print("  wrong:", table(" and ".join(s.complaints) for s in found if s.complaints))
    for title, of in (
        ("variant", lambda s: s.fault.variant),
        ("architecture", lambda s: s.fault.comparison.architecture),
    ):
        print(f"  by {title}:")
        for name in sorted({of(s) for s in found}):
            mine = [s for s in found if of(s) == name]
            wrong = table(" and ".join(s.complaints) for s in mine if s.complaints)
            print(
                f"    {name:18} {sum(not s.complaints for s in mine)} of {len(mine)}{', wrong: ' if wrong else ''}{wrong}"
            )


def table(names: Iterator[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


if __name__ == "__main__":
    main()
