"""The folder of a sweep: what is kept, what is asked again, who may write, and the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.sweeps import asking, ray
from tests.sweeps.asking import cell

from forkpoint.errors import InputError
from forkpoint.sweeps.cells import described
from forkpoint.sweeps.folder import opened
from forkpoint.sweeps.sweeping import ask_cells

ROOT = Path(__file__).parents[2]


def prompts_asked(sweep):
    return {row.prompt: row.reason for row in sweep.rows}


def test_what_was_answered_is_not_asked_again(tmp_path):
    folder = tmp_path / "out"
    first = ask_cells([cell("a"), cell("b", do="refuse")], folder, asking.run)
    assert (first.cells, first.kept, first.status) == (2, 0, 3)
    assert prompts_asked(first) == {"a": "", "b": "no such thing"}
    again = ask_cells([cell("a"), cell("b", do="refuse"), cell("c")], folder, asking.answer_at_once)
    assert (again.cells, again.kept, again.status) == (3, 1, 0)  # what had no answer is asked again
    assert again.rows[0] == first.rows[0]
    assert again.rows[0].seconds == 0.5
    assert ask_cells([cell("a")], folder, None).kept == 1  # nobody is asked, if all is there
    assert len(list((folder / "cells").iterdir())) == 3


@pytest.mark.parametrize(
    "changed", [{"versions": {"torch": "3"}}, {"files": {"m": [["", 1, 2]]}}, {"question": "batch"}]
)
def test_another_description_is_another_question(tmp_path, changed):
    ask_cells([cell("a")], tmp_path / "out", asking.run)
    assert ask_cells([replace(cell("a"), **changed)], tmp_path / "out", asking.answer_at_once).kept == 0


def test_a_cell_is_known_by_versions_and_files(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("one")
    given = {"model": str(model), "prompt": ["hello"]}
    one = described("padding", given, {"torch": "2"})
    assert described("padding", dict(given), {"torch": "2"}).key == one.key
    assert described("padding", given, {"torch": "3"}).key != one.key
    os.utime(model / "weights", ns=(1, 1))
    two = described("padding", given, {"torch": "2"})
    assert two.key != one.key
    assert two.files == {"model": [["weights", 3, 1]]}


def test_what_is_half_there_or_not_ours_is_asked_again(tmp_path):
    folder = tmp_path / "out"
    ask_cells([cell("a"), cell("b")], folder, asking.run)
    one, two = (folder / "cells" / f"{cell(name).key}.json" for name in "ab")
    one.write_text(one.read_text()[:100])
    two.write_text(two.read_text().replace('"rounding"', '"thinking"'))
    assert ask_cells([cell("a"), cell("b")], folder, asking.run).kept == 0


def test_one_sweep_at_a_time(tmp_path):
    with opened(tmp_path / "out"), pytest.raises(InputError, match="out, to which another sweep is writing"):
        ask_cells([cell("a")], tmp_path / "out", asking.run)
    assert ask_cells([cell("a")], tmp_path / "out", asking.run).status == 0


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(InputError, match="where there is something else; expected a folder that is new"):
        ask_cells([cell("a")], tmp_path, asking.run)
    with pytest.raises(InputError, match="letters can't be written"):
        ask_cells([cell("a")], tmp_path / "letters", asking.run)
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]


@pytest.mark.parametrize(
    ("given", "said"), [({"workers": 0}, "0 workers"), ({"timeout": 0}, "a timeout of 0 s")]
)
def test_numbers_that_can_not_be_used(tmp_path, given, said):
    with pytest.raises(InputError, match=said):
        ask_cells([cell("a")], tmp_path / "out", asking.run, **given)
    assert not (tmp_path / "out").exists()


def test_the_table_is_parquet_with_types(tmp_path):
    sweep = ask_cells([cell("a", dtype="float32"), cell("b", do="refuse")], tmp_path / "out", asking.run)
    table = pq.read_table(tmp_path / "out" / "sweep.parquet")
    rows = table.to_pylist()
    assert [row["prompt"] for row in rows] == ["a", "b"]
    assert json.loads(rows[0]["options"]) == {"dtype": "float32"}
    assert (rows[0]["verdict"], rows[0]["mechanism"], rows[0]["torch"]) == (
        "rounding",
        "reduction_order",
        "2",
    )
    assert rows[0]["max_abs"] == float("inf") and rows[0]["first"] == "lm_head/linear"
    assert (rows[1]["verdict"], rows[1]["status"], rows[1]["reason"]) == (None, None, "no such thing")
    types = {field.name: str(field.type) for field in table.schema}
    assert {types[name] for name in ("max_abs", "loss_gap", "seconds")} == {"double"}
    assert {types[name] for name in ("status", "top1_flips")} == {"int64"}
    assert (types["by_design"], types["verdict"], types["origin"]) == ("bool", "string", "string")
    assert len(sweep.rows) == len(rows)
    result = tmp_path / "out" / "results" / f"{sweep.rows[0].cell}.json"
    assert json.loads(result.read_text()) == asking.DOCUMENT


def test_actors_are_asked_with_the_same_code(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray)
    found = ask_cells([cell("a"), cell("b", do="die")], tmp_path / "out", asking.run, ray=True, workers=9)
    assert [row.status for row in found.rows] == [0, None]


def test_a_script_whose_own_part_is_not_guarded_is_told(tmp_path):
    """What starts afresh reads the script, too, and would start the next."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom tests.sweeps.asking import cell, run\n"
        "from forkpoint.sweeps.sweeping import ask_cells\nask_cells([cell('a')], Path('out'), run)\n"
    )
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ended = subprocess.run(
        [sys.executable, str(script)], check=False, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert "a process that ends as it starts" in ended.stderr.splitlines()[-1]
    assert "__main__" in ended.stderr.splitlines()[-1]


def gone(process):
    """Whether a process has ended; one that nobody has waited for yet is a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        signal.sigtimedwait([], 0.05)
    raise AssertionError("it did not come")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_killed_loses_what_was_being_asked_alone(tmp_path, how):
    folder, told = tmp_path / "out", tmp_path / "told"
    command = [sys.executable, "-m", "tests.sweeps.asking", str(folder), str(told)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: told.exists() and told.read_text())
    killed.send_signal(how)
    assert killed.wait() != 0
    wait_for(lambda: gone(int(told.read_text())))  # its worker ends with it
    assert [path.name for path in (folder / "cells").iterdir()] == [f"{cell('one').key}.json"]
    cells = [cell("one"), cell("two", do="hang", told=str(told)), cell("three")]
    again = ask_cells(cells, folder, asking.answer_at_once)
    assert (again.cells, again.kept, again.status) == (3, 1, 0)
    assert [row.prompt for row in again.rows] == ["one", "two", "three"]
