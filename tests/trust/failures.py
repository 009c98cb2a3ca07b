"""Refusals at every call of the system's that touches files or asks for memory.

`python -m tests.trust.failures --count 100 --seed 0` refuses so many of each scenario's calls, drawn by the seed; without a
count every one, alone and with all that follow it. Whatever was changed for a while is as it was before, what is in a
folder is whole, a result is what it would have been, and what went wrong is said in one line. It builds `refusing.c`, for
which it needs a C compiler and Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.trust.interrupts import part, state
from tests.trust.saving import comparing, savings, unfinished, unrun
from torch import nn

import forkpoint as fp
from forkpoint import scene
from forkpoint.errors import ForkpointError, is_out_of_memory

FILES, MEMORY = 1, 2
SOURCE = Path(__file__).with_name("refusing.c")
CLEANING = frozenset(
    {"unlink", "unlinkat", "rmdir", "openat64", "lstat64", "fstat64", "opendir", "fdopendir"}
)
"""Calls by which what is unfinished is removed: where one of these is refused, it stays, and is called so."""


@dataclass
class Scenario:
    """Something that may be refused what it asks for.

    Attributes:
        kind: what is refused: FILES or MEMORY.
        act: what asks for it; it is given a folder.
        prepare: makes the folder hold what it held before.
        wrong: what is not as it should be afterwards, given the folder and what `act` returned; None where it raised.
        outcomes: how often it ended how.
    """

    name: str
    kind: int
    act: Callable[[Path], Any]
    prepare: Callable[[Path], Any] = lambda folder: None
    wrong: Callable[[Path, Any], list[str]] = lambda folder, returned: []
    outcomes: Counter[str] = field(default_factory=Counter)


class System:
    """What `refusing.c` offers, loaded into this process.

    Attributes:
        calls: how many calls there were the last time.
        name: of the first that was refused.
    """

    calls = 0
    name = ""

    def __init__(self) -> None:
        loaded = ctypes.CDLL(None)
        self._refuse, self._allow, self._refused = loaded.refuse, loaded.allow, loaded.refused
        self._refuse.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int]
        self._allow.restype, self._refused.restype = ctypes.c_long, ctypes.c_char_p

    def refusing(
        self, kind: int, at: int, onwards: bool, act: Callable[[], Any]
    ) -> tuple[Any, Exception | None]:
        """What a function returned or raised that was refused a call; -1 refuses none."""
        self._refuse(kind, at, onwards)
        try:
            return act(), None
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
            return None, error
        finally:
            self.calls, self.name = self._allow(), self._refused().decode()


def build(folder: Path) -> Path:
    """`refusing.c` as a library.

    Raises:
        OSError, subprocess.CalledProcessError: there is no compiler, or the system is another one.
    """
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    library = folder / "refusing.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def scenarios(room: Path) -> tuple[nn.Module, list[Scenario]]:
    """A model, and all that is done with it; `room` is for what is made once."""
    model, compare = comparing()
    result = compare()
    expected = told(result)
    saved = savings(result, room)

    def replay(_: Path) -> Any:
        return scene.replay(scene.load(room / "new"), "cpu").outputs

    replayed = replay(room)

    def same(_: Path, returned: fp.Result | None) -> list[str]:
        found = expected if returned is None else told(returned)
        return [f"another {key}: {found[key]}" for key in expected if found[key] != expected[key]]

    def same_replay(_: Path, returned: Any) -> list[str]:
        return [] if returned in (None, replayed) else ["another replay"]

    made = [
        Scenario("digests in a file", FILES, lambda _: compare(max_memory=1), wrong=same),
        Scenario("comparison", MEMORY, lambda _: compare(), wrong=same),
    ]
    for kind in (FILES, MEMORY):
        suffix = "" if kind == FILES else ", memory"
        for one in saved if kind == FILES else saved[1:]:  # JSON is no tensor
            wrong = one.wrong
            made.append(
                Scenario(
                    one.name + suffix,
                    kind,
                    one.act,
                    one.prepare,
                    lambda folder, _, wrong=wrong: wrong(folder),
                )
            )
        made.append(Scenario(f"replay{suffix}", kind, replay, wrong=same_replay))
    return model, made


def told(result: fp.Result) -> dict[str, Any]:
    found = result.to_dict()
    return {key: found[key] for key in ("verdict", "first", "ops", "origin")}


def is_clear(error: Exception) -> bool:
    """Whether an error is forkpoint's own in one line; or torch's or Python's that memory is short."""
    return is_out_of_memory(error) or (isinstance(error, ForkpointError) and "\n" not in str(error))


def tried(system: System, scenario: Scenario, model: nn.Module, at: int, onwards: bool) -> Iterator[str]:
    """Refuse one call; what is wrong then."""
    before = state(model)
    with tempfile.TemporaryDirectory(prefix="forkpoint-test-") as name:
        folder = Path(name)
        scenario.prepare(folder)
        returned, error = system.refusing(scenario.kind, at, onwards, lambda: scenario.act(folder))
        scenario.outcomes["went on" if error is None else type(error).__name__] += 1
        if error is not None and not is_clear(error):
            yield f"{type(error).__name__}: {error}"
        yield from scenario.wrong(folder, returned)
        if system.name not in CLEANING:
            # Once the new scene is there, the old one stays aside where it can't be removed.
            yield from (what for what in unfinished(folder) if error is not None or ".replaced-" not in what)
    after = state(model)
    yield from (
        f"changed: {key}: {str(value)[:80]} became {str(after[key])[:80]}"
        for key, value in before.items()
        if after[key] != value
    )


def disturbed(
    system: System, scenario: Scenario, model: nn.Module, count: int | None, seed: int, share: str = "1/1"
) -> Iterator[str]:
    """Refuse some calls of a scenario, or all; what was wrong."""
    undisturbed: list[str] = []
    for _ in range(2):  # the first time, modules are imported
        undisturbed = list(tried(system, scenario, model, -1, onwards=False))
    assert undisturbed == []
    calls, scenario.outcomes = system.calls, Counter()
    every = [(at, onwards) for at in range(calls) for onwards in (False, True)]
    if count is not None and count < len(every):
        every = random.Random(f"{seed} {scenario.name}").sample(every, count)
    every = part(every, share)
    for at, onwards in every:
        for what in tried(system, scenario, model, at, onwards):
            yield f"{scenario.name}: {system.name} {at}{' and on' if onwards else ''}: {what}"
    shown = ", ".join(f"{number:,} {outcome}" for outcome, number in scenario.outcomes.most_common())
    print(f"{scenario.name}: {calls:,} calls, {len(every):,} refusals: {shown}", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.trust.failures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--count", type=int, help="refusals a scenario; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="this scenario")
    parser.add_argument(
        "--share", default="1/1", metavar="K/N", help="the K-th of N parts, for processes side by side"
    )
    given = parser.parse_args(arguments)
    if "refusing" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory(prefix="forkpoint-test-") as folder:
            environment = os.environ | {"LD_PRELOAD": str(build(Path(folder)))}
            command = [sys.executable, "-m", "tests.trust.failures", *arguments]
            return subprocess.run(command, env=environment, check=False).returncode
    warnings.simplefilter("ignore")
    system, failed = System(), 0
    with tempfile.TemporaryDirectory(prefix="forkpoint-test-") as room, unrun():
        model, all_of_them = scenarios(Path(room))
        for scenario in all_of_them:
            if given.only in (None, scenario.name):
                for what in disturbed(system, scenario, model, given.count, given.seed, given.share):
                    failed += 1
                    print(what[:1000], flush=True)
    print(f"{failed} wrong")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
