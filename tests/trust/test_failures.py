"""A full disk, a broken one or a full memory, at some of the calls; `failures` takes as many as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tests.trust.failures import FILES, MEMORY, Scenario, build, disturbed, is_clear, main
from tests.trust.interrupts import state
from torch import nn

import forkpoint as fp
from forkpoint.errors import ShelfError, is_out_of_memory


def built(folder: Path) -> Path:
    try:
        return build(folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler, or not Linux")


def test_what_is_refused_leaves_nothing(tmp_path):
    """In a process of its own, which the library is loaded into before anything else."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the sanitiser has to be loaded first, and refuses no memory")
    environment = os.environ | {"LD_PRELOAD": str(built(tmp_path))}
    command = [sys.executable, "-m", "tests.trust.failures", "--count", "3", "--seed", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    *lines, last = done.stdout.splitlines()
    assert (done.returncode, last) == (0, "0 wrong"), done.stdout + done.stderr
    assert len(lines) == 9
    assert all(" calls, 3 refusals: " in line for line in lines)


class Allowing:
    """Stands for the system where nothing is refused; the first of three calls is said to be."""

    calls = 3
    name = "write"

    def refusing(self, _: int, at: int, __: bool, act: Callable[[], Any]) -> tuple[Any, Exception | None]:
        self.at = at
        try:
            return act(), None
        except Exception as error:  # noqa: BLE001 - as the real one
            return None, error


@pytest.mark.parametrize("does", ["raises", "leaves", "changes", "half"])
def test_what_is_wrong_is_found(does):
    system, model = Allowing(), nn.BatchNorm1d(2)

    def act(folder: Path) -> None:
        if system.at < 0:
            return
        if does == "raises":
            raise KeyError("x")
        if does == "leaves":
            (folder / ".forkpoint-1-a.unfinished").touch()
        if does == "changes":
            model.running_mean.add_(1)  # type: ignore[union-attr]

    wrong = (lambda folder, _: ["not whole"] if system.at >= 0 else []) if does == "half" else (lambda *_: [])
    found = list(disturbed(system, Scenario("one", FILES, act, wrong=wrong), model, None, 0))  # type: ignore[arg-type]
    assert len(found) == 6


def test_which_errors_are_clear():
    assert is_clear(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_clear(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_clear(fp.InputError("a"))
    assert not any(map(is_clear, (RuntimeError("a"), OSError("a"), KeyError("a"))))
    assert is_out_of_memory(ShelfError("full"))
    assert FILES != MEMORY


class Counting(nn.Module):
    """Some ops, one of which says that memory is short; a token's result depends on how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        for op in (self.first, torch.relu, self.norm, torch.exp, _less_their_mean, self.last):
            RAN.append(op)
            if len(RAN) == FAILS[0]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            x = op(x)
        return x


def _less_their_mean(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(1, keepdim=True)


RAN: list[object] = []
FAILS = [0]
"""The how manyeth op fails; those of all runs are counted, and attributes of a model are put back after each."""


def test_an_op_without_memory_at_every_place():
    """Of a comparison, its second pass and its probes."""
    torch.manual_seed(0)
    model, x = Counting(), torch.randn(2, 3, 4)
    longer = torch.cat([x, torch.zeros(2, 2, 4)], 1)
    runs = [
        fp.Run(model, {"x": value}, layout=fp.Layout.from_mask((torch.arange(n) < 3).long().expand(2, n)))
        for value, n in ((x, 3), (longer, 5))
    ]

    def act() -> dict[str, Any]:
        RAN.clear()
        torch.manual_seed(0)
        result = fp.compare(*runs)
        result.value("last", "output")
        return result.to_dict()

    act()
    expected, count = act(), len(RAN)
    assert expected["verdict"]["kind"] == "semantic"
    assert count >= 100
    for FAILS[0] in range(1, count + 1):
        before = state(model)
        with pytest.raises(torch.OutOfMemoryError):
            act()
        assert state(model) == before, FAILS
    FAILS[0] = 0
    assert act() == expected


def test_memory_that_is_short_is_said_in_one_line(capsys, monkeypatch):
    from forkpoint import cli

    app = typer.Typer()

    @app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def short() -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"
        )

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main(["padding", "demo", "-p", "Hello"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("forkpoint: not enough memory: [enforce fail")
    assert said.count("\n") == 1


def test_refusals_are_only_counted_where_the_library_is_loaded(monkeypatch, capsys):
    """Otherwise the process begins anew, with it."""
    ran: list[list[str]] = []
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr("tests.trust.failures.build", lambda folder: folder / "refusing.so")
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: (ran.append(command), subprocess.CompletedProcess(command, 0))[1],
    )
    assert main(["--count", "1"]) == 0
    assert ran == [[sys.executable, "-m", "tests.trust.failures", "--count", "1"]]
