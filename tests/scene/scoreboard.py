"""Every scene replays to the recorded bits on the machine that wrote it.

    python -m tests.scene.scoreboard [--faults 100] [--seed 1] [--no-corpus]

compares all cases of the corpus and as many planted faults, saves the scene of each pair that parts ways,
loads it again and replays it; the corpus's own operators, registered here, are trusted. Exit status 1 if one of
them does not give the recorded bits.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tests.corpus import CASES
from tests.corpus.case import Case
from tests.faults import draw

import forkpoint as fp
from forkpoint import scene
from forkpoint.errors import SceneError

SAME, NO_OP, NONE = "the recorded bits", "no single op to save", "nothing parts ways"


def outcome(compare: Callable[[], Any]) -> tuple[str, str]:
    """What became of the scene of a comparison, and of what verdict."""
    result = compare()
    kind = str(result.verdict.kind.value)
    if result.first is None and result.origin is None:
        return NONE, kind
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "scene")
        try:
            result.save_scene(directory)
        except SceneError as error:
            return f"{NO_OP}: {error}", kind
        found = scene.replay(scene.load(directory, namespaces=["corpus"]))
    if found.reproduces:
        return SAME, kind
    checks = {"A": found.recorded_a, "B": found.recorded_b}
    wrong = [f"{run}: {c.differing} of {c.compared} {c.reason}" for run, c in checks.items() if not c.equal]
    place = result.origin or result.first
    assert place is not None
    return f"OTHER BITS at {place.op} ({', '.join(wrong)})", kind


def corpus() -> Iterator[tuple[str, Callable[[], Any]]]:
    for case in CASES.values():
        if not case.pending:
            yield case.id, lambda case=case: _compare(case)


def _compare(case: Case) -> Any:
    a, b, how, patches = case.build()
    with patches:
        return fp.compare(a, b, **how)


def faults(count: int, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    for fault, _ in zip(draw(seed), range(count), strict=False):
        yield f"{fault.kind}: {fault.title}", fault.comparison.compare


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-corpus", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    wrong = 0
    for title, cases in (
        ("corpus", () if given.no_corpus else corpus()),
        ("planted faults", faults(given.faults, given.seed)),
    ):
        counts: Counter[str] = Counter()
        for name, compare in cases:
            try:
                found, kind = outcome(compare)
            except Exception:  # noqa: BLE001 - one that raises is one more that is wrong
                found, kind = f"RAISED {traceback.format_exc(limit=-2)}", "?"
            counts[found.split(" at ")[0].split(": ")[0]] += 1
            if found not in (SAME, NONE):
                wrong += not found.startswith(NO_OP)
                print(f"{name} ({kind}): {found}", flush=True)
        if counts:
            print(
                f"{title}: " + ", ".join(f"{count} {found}" for found, count in counts.most_common()),
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
