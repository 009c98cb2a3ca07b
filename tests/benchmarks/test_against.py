"""The benchmark that holds other versions against this one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

import against
from results import Json


def _version(seconds: list[float], cpu: list[float], kind: str = "cpu") -> Callable[[], Json]:
    figures = iter(zip(seconds, cpu, strict=True))

    def once() -> Json:
        wall, work = next(figures)
        return {"seconds": wall, "cpu": work, "kind": kind}

    return once


def test_ratios_are_of_one_repetition_each_and_of_the_processors_time():
    report = against.compare(
        {
            against.HERE: _version([9, 9, 9], [1, 2, 4]),
            "before": _version([1, 1, 1], [2, 3, 4]),
        },
        3,
    )
    assert report["before"]["ratio"] == 1.5
    assert report["before"]["seconds"] == 3
    assert report["before"]["wall_seconds"] == 1
    assert report["before"]["repetitions"] == 3


@pytest.mark.parametrize(("kind", "clock"), [("cuda", False), ("cpu", True)])
def test_ratios_go_by_the_clock_on_a_gpu_or_where_that_is_asked_for(kind: str, clock: bool):
    versions = {
        against.HERE: _version([1, 1], [7, 7], kind),
        "before": _version([2, 2], [7, 7], kind),
    }
    assert against.compare(versions, 2, clock=clock)["before"]["ratio"] == 2


def test_a_version_that_fails_is_named_and_the_others_go_on():
    def fails() -> Json:
        raise RuntimeError("its process ended")

    report = against.compare({against.HERE: _version([1], [1]), "before": fails}, 1)
    assert report["before"] == {"failed": "RuntimeError: its process ended"}
    assert report[against.HERE]["ratio"] == 1


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit, match="holds no src/forkpoint"):
        against.Version(tmp_path, argparse.Namespace())
