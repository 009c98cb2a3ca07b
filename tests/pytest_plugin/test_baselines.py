"""Baselines: written on request, small and readable, and the first op that is otherwise is named."""

from __future__ import annotations

import re

import pytest
import torch
from tests.plain import Model, batch, ids
from tests.pytest_plugin.projects import PLUGIN, XDIST, make
from torch import nn

import forkpoint as fp
from forkpoint.testing.baseline import Baseline, difference, record

pytest_plugins = ["pytester"]
MODEL = """
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x).relu()
"""
TESTS = """
    import pytest
    import torch
    from model import Model

    import forkpoint as fp

    @pytest.mark.parametrize("rows", [1, 2])
    def test_same(forkpoint_baseline, rows):
        run = fp.Run(Model(), {"x": torch.arange(12.0 * rows).reshape(rows, 3, 4)})
        forkpoint_baseline.check(run)
        forkpoint_baseline.check(run, "again")
"""


@pytest.fixture
def project(pytester, monkeypatch):
    make(pytester, monkeypatch, TESTS)
    pytester.makepyfile(model=MODEL)
    return pytester


def baselines(project):
    return sorted(path.name for path in project.path.glob("forkpoint-baselines/test_model/*"))


@pytest.mark.parametrize("extra", [(), XDIST], ids=["alone", "xdist"])
def test_one_that_is_missing_fails_and_one_that_was_written_passes(project, extra):
    """With workers, too, it is written by those; what each of them reads is what one alone would."""
    if not extra:
        found = project.runpytest_inprocess(*PLUGIN)
        found.assert_outcomes(failed=2)
        assert "`pytest --forkpoint-update` writes it" in str(found.stdout)
    assert baselines(project) == []
    project.runpytest_inprocess(*PLUGIN, *extra, "--forkpoint-update").assert_outcomes(passed=2)
    assert baselines(project) == [
        "test_same[1].again.txt", "test_same[1].txt", "test_same[2].again.txt", "test_same[2].txt",
    ]  # fmt: skip
    project.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=2)


def test_the_first_op_with_other_bits_is_named(project):
    project.runpytest_inprocess(*PLUGIN, "--forkpoint-update").assert_outcomes(passed=2)
    path = project.path / "model.py"
    path.write_text(path.read_text().replace("self.linear(x)", "self.linear(x + 0.001)"))
    found = project.runpytest_subprocess(
        *PLUGIN, "--forkpoint-report=out", "--forkpoint-sarif=it.sarif", "-k", "1"
    )
    found.assert_outcomes(failed=1, deselected=1)
    said = str(found.stdout)
    assert "the first op that is another: (model)/add (model.py:11), float32 [1, 3, 4]" in said
    assert "where linear/linear was" in said
    assert "(model)/add" in (project.path / "out" / "index.html").read_text()
    assert "baseline" in (project.path / "it.sarif").read_text()


def test_their_folder_is_a_choice(project):
    project.runpytest_inprocess(*PLUGIN, "--forkpoint-update", "--forkpoint-baselines=known").assert_outcomes(
        passed=2
    )
    assert len(list(project.path.glob("known/test_model/*.txt"))) == 4
    (project.path / "pytest.ini").write_text("[pytest]\nforkpoint_baselines = known\n")
    project.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=2)


def test_one_that_is_none_is_said_to_be_none(project):
    project.runpytest_inprocess(*PLUGIN, "--forkpoint-update")
    (project.path / "forkpoint-baselines/test_model/test_same[1].txt").write_text("once upon a time\n")
    found = project.runpytest_inprocess(*PLUGIN)
    found.assert_outcomes(passed=1, failed=1)
    assert "does not begin as a baseline of version 1" in str(found.stdout)


# ---------------------------------------------------------------------- the records


def run(model: nn.Module, columns: int = 4) -> fp.Run:
    return fp.Run(model, batch(ids(columns=columns)))


def test_a_baseline_is_read_as_it_was_written():
    found = record(run(Model()))
    back = Baseline.from_text(found.to_text())
    assert back == found
    assert difference(back, record(run(Model()))) is None
    assert re.match(r"# forkpoint baseline 1: .*\n# made with torch ", found.to_text())
    assert all(len(line) < 120 for line in found.to_text().splitlines())


def test_other_weights_other_inputs_and_other_ops_are_told_apart():
    model = Model()
    then = record(run(model))
    weight = next(iter(model.parameters()))
    with torch.no_grad():
        weight += 1e-3
    found = difference(then, record(run(model)))
    assert found is not None
    assert found.text.startswith(
        f"the first op that gives other bits: {found.op} ({found.source}), float32 [2, 4, 13] "
    )
    assert found.op == "embed/embedding"
    found = difference(then, record(run(model, 3)))
    assert found is not None
    assert found.text.startswith("an input that is another: (model)/input:input_ids, int64 [2, 3] ")


def test_nothing_more_and_nothing_less():
    then = record(run(Model()))
    count = len(then.values)
    shorter, elsewhere = Baseline(then.values[:-1], then.setup), Baseline(then.values[:-1], "another machine")
    gone, more, moved = (difference(*pair) for pair in ((then, shorter), (shorter, then), (elsewhere, then)))
    assert gone is not None and more is not None and moved is not None
    assert gone.text == (
        f"the run ends before {then.values[-1].op}\n{count - 1} of {count} values are as they were; there are {count - 1} now"
    )
    assert more.text.startswith(f"the run goes on with {then.values[-1].op}")
    assert "it was made elsewhere" in moved.text
    assert difference(Baseline(then.values, "another machine"), then) is None


def test_a_run_that_does_not_repeat_itself_can_have_none():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return x + Counting.calls

    with pytest.raises(fp.InputError, match="does not repeat itself"):
        record(fp.Run(Counting(), {"x": torch.zeros(1, 3, 2)}))


def test_recording_leaves_the_model_as_it_was():
    model = Model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record(run(model))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
