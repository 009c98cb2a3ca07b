"""Ctrl-C at some positions of a comparison, drawn anew each day of the year; `interrupts` takes as many as one likes."""

from __future__ import annotations

import gc
import signal
import warnings
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trust.interrupts import comparison, drawn, left_by, other_result, positions_of, visited
from tests.trust.saving import Everything
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _push_mode

from forkpoint.native.choice import python_alone
from forkpoint.scene.format import folder
from forkpoint.support import files, restoring
from forkpoint.support.restoring import on_stack, restored, undone


@pytest.fixture(autouse=True)
def _python_s_own_handler() -> Generator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("in_c", [True, False], ids=["C", "Python"])
def test_an_interrupt_leaves_nothing(in_c: bool):
    if in_c:
        _interrupt_some()
    else:
        with python_alone():
            _interrupt_some()


def _interrupt_some(count: int = 12) -> None:
    model, compare = comparison()
    compare()
    expected = compare()
    counts = visited(compare)
    assert len(counts) > 1000
    assert list(left_by(drawn(counts, count, seed=1), model, compare)) == []
    assert compare() == expected
    wrong = partial(other_result, expected)
    assert list(left_by(drawn(counts, count // 2, seed=2), model, compare, MemoryError, wrong)) == []


@pytest.mark.parametrize("error", [None, OSError], ids=["interrupt", "OSError"])
def test_an_interrupt_leaves_what_is_saved_whole(error, tmp_path):
    saving = Everything(tmp_path)
    saving.act()
    counts = visited(saving.act)
    assert len(counts) > 1000
    assert list(left_by(drawn(counts, 6, seed=3), saving.model, saving.act, error, saving.wrong)) == []


def test_an_interrupt_leaves_a_file_whole_and_none_open(tmp_path):
    """At every position of writing one."""
    path, model = tmp_path / "result.json", nn.Identity()

    def write() -> bool:
        path.write_bytes(b"old")
        files.write_bytes(path, b"new")
        return True

    def wrong(_: Any) -> list[str]:
        whole = [] if path.read_bytes() in (b"old", b"new") else ["not whole"]
        return [*whole, *(["still open"] if _open_files() > before else []), *map(str, others())]

    def others() -> list[Path]:
        return [found for found in tmp_path.iterdir() if found != path]

    write()
    before = _open_files()
    every = [(place, times) for place, count in visited(write).items() for times in {1, count}]
    assert sum(place[0].co_filename == files.__file__ for place, _ in every) > 20
    assert list(left_by(every, model, write, None, wrong)) == []


def _open_files() -> int:
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.is_dir() else 0


def test_what_an_interrupt_leaves_is_found():
    """Otherwise the tests above would say nothing."""
    model = nn.BatchNorm1d(2)

    def careless() -> bool:
        on_stack(model)  # any call of forkpoint's own
        model.running_mean.add_(1)
        raise ValueError("x")

    found = list(left_by([((careless.__code__, 0), 1)], model, careless, MemoryError, lambda _: ["half"]))
    assert [what for _, what in found] == ["ValueError: x", "values"]


def test_what_python_changes_for_a_while_is_put_back():
    collects, filters = gc.isenabled(), warnings.filters

    class Mode(TorchFunctionMode):
        pass

    @restored
    def interrupted() -> None:
        gc.disable()
        gc.freeze()
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        warnings.filters = list(warnings.filters)  # type: ignore[misc]
        _push_mode(Mode())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gc.isenabled() == collects
    assert gc.get_freeze_count() < restoring.FROZEN_AT_START
    assert _get_current_function_mode_stack() == []
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert warnings.filters is filters


def test_modes_that_were_there_stay():
    class Mode(TorchFunctionMode):
        pass

    mine = Mode()

    @restored
    def takes_off() -> None:
        with on_stack(Mode()):
            torch.overrides._pop_mode()
            torch.overrides._pop_mode()

    with mine:
        takes_off()
        assert _get_current_function_mode_stack() == [mine]


def test_what_an_interrupt_comes_upon_is_undone_once_and_not_later():
    done: list[str] = []

    @restored
    def interrupted() -> None:
        block = undone(lambda: done.append("undone"))
        block.__enter__()
        left.append(block)
        raise KeyboardInterrupt

    left: list[undone] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["undone"]
    left[0].__exit__(None, None, None)
    assert done == ["undone"]


def test_an_interrupt_while_all_is_put_back_waits_until_it_is():
    done: list[str] = []

    def pressed() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("went on")

    @restored
    def ends() -> None:
        undone(lambda: done.append("the rest")).__enter__()
        undone(pressed).__enter__()

    with pytest.raises(KeyboardInterrupt):
        ends()
    assert done == ["went on", "the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_putting_one_thing_back_keeps_nothing_else_from_it():
    done: list[str] = []

    def fails() -> None:
        raise ValueError("deliberate")

    @restored
    def ends() -> None:
        undone(lambda: done.append("the rest")).__enter__()
        undone(fails).__enter__()

    ends()
    assert done == ["the rest"]
    with pytest.raises(ValueError, match="deliberate"), undone(fails):
        pass
    assert restoring._left.undos == []


def test_positions_are_those_where_python_looks_for_signals():
    def function(x: list[int]) -> None:
        x.append(1)
        y = x
        del y

    assert len(positions_of(function.__code__)) == 2
    assert nn.Module.__call__.__code__.co_name == "_wrapped_call_impl"


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_right_after_a_scene_is_moved_loses_none(tmp_path, monkeypatch, number):
    """The old one is aside then, or the new one there already."""
    for name, text in (("scene", "old"), ("new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text(text)
    rename, moves = Path.rename, []

    def moved(path: Path, target: Path) -> Path:
        rename(path, target)
        moves.append(target)
        if len(moves) == number:
            raise KeyboardInterrupt
        return target

    monkeypatch.setattr(Path, "rename", moved)
    with pytest.raises(KeyboardInterrupt):
        folder._put_in_place(tmp_path / "new", tmp_path / "scene")
    assert (tmp_path / "scene" / "data").read_text() == ("old" if number == 1 else "new")
    assert not list(tmp_path.glob(".scene*"))


def test_an_error_while_interrupts_are_deferred_leaves_them_heard(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    leave = restoring._Deferred.__exit__

    def failing(*_: object) -> None:
        monkeypatch.setattr(restoring._Deferred, "__exit__", leave)
        raise MemoryError

    @restoring.restored
    def act() -> None:
        monkeypatch.setattr(restoring._Deferred, "__exit__", failing)
        torch._C._set_grad_enabled(not torch.is_grad_enabled())  # something to put back

    with pytest.raises(MemoryError):
        act()
    assert signal.getsignal(signal.SIGINT) == before


def test_interrupts_are_deferred_only_where_something_is_left_to_put_back(monkeypatch):
    deferred: list[object] = []
    enter = restoring._Deferred.__enter__

    def noted(one: restoring._Deferred) -> None:
        deferred.append(one)
        enter(one)

    monkeypatch.setattr(restoring._Deferred, "__enter__", noted)
    grad = torch.is_grad_enabled()

    @restoring.restored
    def act(change: bool) -> None:
        if change:
            torch._C._set_grad_enabled(not grad)

    act(False)
    assert not deferred
    act(True)
    assert len(deferred) == 1
    assert torch.is_grad_enabled() is grad
