"""Routing of experts in bfloat16: what rounding flips is rounding, what padding moves is not.

    python -m tests.test_decided_experts

prints the board of twenty comparisons of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from tests.deciding import Decided, flipped_by_rounding, flips, gap_with_one_routing, moved, moved_by_padding

EACH = 20
EXACT = 1e-12
"""Gap that float64 may leave where both runs have one routing (5e-15 seen)."""


def check_flipped(pair: Decided) -> None:
    assert flips(pair)
    assert gap_with_one_routing(pair) < EXACT
    verdict = pair.compare().verdict
    assert verdict.kind == "rounding", pair.title
    decisions = [probe for probe in verdict.evidence if probe.name == "decisions"]
    assert [probe.outcome for probe in decisions] == ["vanishes"]
    assert decisions[0].figure < EXACT


def check_moved(pair: Decided) -> None:
    assert moved(pair)
    result = pair.compare()
    assert result.verdict.kind == "semantic", pair.title
    assert result.origin is not None
    assert result.origin.module.startswith("experts.")


def board(pairs: Iterator[Decided], count: int = EACH) -> list[Decided]:
    return list(islice(pairs, count))


@pytest.mark.parametrize("pair", board(flipped_by_rounding(), 2), ids=str)
def test_routing_that_rounding_flips(pair: Decided) -> None:
    check_flipped(pair)


@pytest.mark.parametrize("pair", board(moved_by_padding(), 2), ids=str)
def test_routing_that_padding_moves(pair: Decided) -> None:
    check_moved(pair)


@pytest.mark.slow
def test_the_board() -> None:
    for pair in board(flipped_by_rounding()):
        check_flipped(pair)
    for pair in board(moved_by_padding()):
        check_moved(pair)


def main() -> None:
    for name, pairs in (
        ("flipped by rounding", flipped_by_rounding()),
        ("moved by padding", moved_by_padding()),
    ):
        right, wanted = 0, "rounding" if name.startswith("flipped") else "semantic"
        for pair in board(pairs):
            verdict = pair.compare().verdict
            right += verdict.kind == wanted
            print(
                f"{'right' if verdict.kind == wanted else 'WRONG'}  {pair.title}: {verdict.kind} ({verdict.mechanism})"
            )
        print(f"{name}: {right} of {EACH} right")


if __name__ == "__main__":
    main()
