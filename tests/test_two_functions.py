"""Two functions of one form: whatever a run looks like, one changed number is called two functions, and its op is found.

    python -m tests.test_two_functions --count 200

prints a scoreboard of as many pairs of models.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pytest
from tests.twofunctions import FORMS, TwoFunctions, draw, exact_gap

import forkpoint as fp


@dataclass
class Score:
    """What forkpoint says about a pair."""

    pair: TwoFunctions
    said: str
    complaints: tuple[str, ...]
    text: str
    seconds: float

    def __str__(self) -> str:
        effect = exact_gap(self.pair, changed=True)
        return f"wrong {' and '.join(self.complaints)}: {self.said}\n    {self.pair.title}; by {effect:.2g} in float64\n{self.text}"


def ask(pair: TwoFunctions) -> Score:
    began = time.perf_counter()
    try:
        result = fp.compare(*pair.runs())
    except Exception:  # noqa: BLE001 - any error of the tool is one more wrong answer
        return Score(pair, "error", ("kind",), traceback.format_exc(limit=-2), 0.0)
    seconds = time.perf_counter() - began
    verdict, origin = result.verdict, result.origin
    complaints: list[str] = []
    if verdict.kind != "semantic":
        complaints.append("kind")
    elif (verdict.mechanism, verdict.by_design) != (None, None):
        complaints.append("mechanism")
    elif not pair.origin_right(origin):
        complaints.append("origin")
    place = "nowhere" if origin is None else f"{origin.op} ({origin.code})"
    said = f"{verdict.kind} ({verdict.mechanism}, by design {verdict.by_design}), origin {place}"
    evidence = "\n".join(f"      {p.name}: {p.outcome} {p.figure}: {p.text}" for p in verdict.evidence)
    return Score(pair, said, tuple(complaints), f"    {verdict.summary}\n{evidence}", seconds)


def scores(seed: int, count: int) -> Iterator[Score]:
    return map(ask, islice(draw(seed), count))


def check(found: Iterator[Score]) -> None:
    wrong = [str(score) for score in found if score.complaints]
    if wrong:
        pytest.fail("\n\n".join(wrong))


@pytest.mark.parametrize("form", FORMS)
def test_one_number_is_two_functions(form: str) -> None:
    of_the_form = (pair for pair in draw(0) if pair.form == form)
    check(map(ask, islice(of_the_form, 2)))


@pytest.mark.slow
def test_two_hundred_pairs() -> None:
    check(scores(1, 200))


def main() -> None:
    parser = argparse.ArgumentParser(description="How many pairs of one form forkpoint calls two functions.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found: list[Score] = []
    for score in scores(arguments.seed, arguments.count):
        found.append(score)
        if score.complaints:
            print(score, flush=True)
    right = sum(not score.complaints for score in found)
    print(f"\n{right} of {len(found)} pairs right, {sum(score.seconds for score in found):.0f} s")
    for title, of in (("form", lambda s: s.pair.form), ("number", lambda s: s.pair.number)):
        wrong = Counter(of(s) for s in found if s.complaints)
        counts = Counter(map(of, found))
        print(
            f"  by {title}:",
            ", ".join(f"{name} {n - wrong[name]} of {n}" for name, n in sorted(counts.items())),
        )


if __name__ == "__main__":
    main()
