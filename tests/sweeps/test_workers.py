"""Workers: each cell has one answer or a reason, a worker stays with its model, and one that dies takes nothing with it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from contextlib import closing

import pytest
from tests.sweeps import asking, ray
from tests.sweeps.asking import cell

from forkpoint.errors import InputError
from forkpoint.sweeps.cells import CellOutcome
from forkpoint.sweeps.processes import Processes
from forkpoint.sweeps.rays import Actors
from forkpoint.sweeps.workers import answers


@pytest.fixture(params=["processes", "ray's API", "ray"])
def pool(request, tmp_path, monkeypatch):
    if request.param == "processes":
        yield Processes(asking.run, 2, tmp_path / "log")
        return
    if request.param == "ray's API":
        monkeypatch.setitem(sys.modules, "ray", ray)
        yield Actors(asking.run)
        return
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    yield Actors(asking.run)
    sys.modules["ray"].shutdown()


def found(cells, pool, workers=2, timeout=None):
    with closing(answers(cells, pool, workers, timeout)) as coming:
        return {cell.given["prompt"][0]: answer for cell, answer in coming}


def test_every_cell_has_an_answer_and_a_worker_that_dies_is_replaced(pool):
    cells = [cell("a"), cell("b", do="die"), cell("c"), cell("d", do="exit"), cell("e")]
    answered = found(cells, pool)
    assert {name for name, answer in answered.items() if answer.status == 0} == {"a", "c", "e"}
    assert answered["a"].document == asking.DOCUMENT
    assert answered["b"].reason.startswith("its process died: ") and answered["b"].status is None
    assert answered["d"].reason.startswith("its process died: ")


def test_a_cell_that_takes_too_long_is_given_up(pool, tmp_path):
    seconds = (
        30 if getattr(sys.modules.get("ray"), "__file__", "").endswith("ray/__init__.py") else 2
    )  # Ray starts slowly
    cells = [cell("hangs", do="hang", told=str(tmp_path / "told")), cell("a", model="other")]
    answered = found(cells, pool, 1, timeout=seconds)
    assert answered["hangs"] == CellOutcome(
        None, None, answered["hangs"].seconds, f"no answer within {seconds} s"
    )
    assert answered["a"].status == 0


def test_what_a_process_died_of_is_said(tmp_path):
    answered = found(
        [cell("a", do="die"), cell("b", do="exit")], Processes(asking.run, 1, tmp_path / "log"), 1
    )
    assert answered["a"].reason == "its process died: SIGKILL"
    assert answered["b"].reason == "its process died: exit status 3"


def test_what_workers_print_goes_to_the_log(tmp_path, capfd):
    assert found([cell("a", do="print")], Processes(asking.run, 1, tmp_path / "log"), 1)["a"].status == 0
    assert (tmp_path / "log").read_text() == "a line of a worker\n"
    assert capfd.readouterr() == ("", "")


def test_workers_divide_the_processors(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (one,) = found([cell("a")], Processes(asking.names, 1000, tmp_path / "log"), 1).values()
    assert one.document["threads"] == "1"
    assert one.document["process"] != os.getpid()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (one,) = found([cell("a")], Processes(asking.names, 1000, tmp_path / "log"), 1).values()
    assert one.document["threads"] == "3"


def test_a_sweep_that_is_left_leaves_no_process(tmp_path):
    told = tmp_path / "told"
    coming = answers(
        [cell("a"), cell("b", do="hang", told=str(told))], Processes(asking.names, 1, tmp_path / "log"), 1
    )
    _, answer = next(coming)
    coming.close()
    with pytest.raises(ProcessLookupError):
        os.kill(answer.document["process"], 0)


class Board:
    """Workers that answer at once, in the order in which they were asked; `loads` are the models that each had to load."""

    def __init__(self):
        self.loads = []

    def start(self):
        self.loads.append([])
        return Worker(self.loads[-1])

    def wait(self, workers, seconds):
        assert seconds is None
        return workers[:1]


class Worker:
    def __init__(self, loads):
        self.loads = loads

    def ask(self, cell):
        if self.loads[-1:] != [cell.given["model"]]:
            self.loads.append(cell.given["model"])

    def answer(self):
        return CellOutcome(0)

    def death(self):
        raise AssertionError

    def end(self):
        self.loads.append("end")


def test_a_worker_stays_with_its_model():
    board = Board()
    cells = [cell(f"w{n}", model) for n in range(6) for model in ("x", "y", "z")]
    assert Counter(one.key for one, _ in answers(cells, board, 2)) == Counter(one.key for one in cells)
    first, second = sorted(board.loads)
    assert (first[0], second[0]) == ("x", "y")  # each begins with another model
    assert first[-1] == second[-1] == "end"
    assert len(first) + len(second) - 2 <= 4  # x and y once, and z by whoever is free


def test_workers_share_the_one_model_that_there_is():
    board = Board()
    list(answers([cell(f"w{n}") for n in range(6)], board, 3))
    assert board.loads == [["m", "end"]] * 3


def test_no_more_workers_than_cells():
    board = Board()
    list(answers([cell("a")], board, 8))
    assert len(board.loads) == 1


def test_a_gpu_is_asked_for_and_ray_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray)
    found([cell("a")], Actors(asking.run, 1), 1)
    assert ray.resources[-1] == {"num_cpus": 1, "num_gpus": 1}
    assert (Actors(asking.run, 1).most, Actors(asking.run).most) == (1, 2)
    monkeypatch.setattr(ray, "cluster", {"CPU": 2.0})
    with pytest.raises(InputError, match="Ray without a GPU; expected a cluster that has one"):
        Actors(asking.run, 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="Ray, which is not installed; expected Ray"):
        Actors(asking.run)
