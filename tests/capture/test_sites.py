"""Where in the source an op is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
import torch
from tests.capture.tracing import Traced
from torch import nn
from transformers.models.llama import modeling_llama

from forkpoint import Run
from forkpoint.capture.sites import NOWHERE, variable_at
from forkpoint.explain.session import trace_run

X = torch.randn(1, 3, 4)


def sites(function, module: nn.Module | None = None, name: str = ""):
    traced = Traced(function, {"x": X}, model=module)
    return [op.site for op, _ in traced.events if op.function == name]


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_an_op_is_named_by_the_line_that_calls_it():
    at = 0

    def program(x):
        nonlocal at
        at = here() + 1
        scores = x.softmax(-1)
        return scores + 1

    (site,) = sites(program, name="softmax")
    assert site.short == f"test_sites.py:{at}"
    assert site.code == "scores = x.softmax(-1)"
    assert site.variable == "scores"


def test_calls_on_one_line_are_told_apart_by_their_columns():
    found = sites(lambda x: x.exp() + x.sin().exp(), name="exp")
    assert found[0].line == found[1].line
    assert found[0].column != found[1].column
    assert found[0].chain != found[1].chain


def test_who_calls_forkpoint_is_no_part_of_a_place():
    def keys():
        return [op.key for op in trace_run(run).trace.ops]

    run = Run(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {"input": X})
    first = keys()
    assert first == keys()  # from another line
    assert any("container.py" in str(key) for key in first)
    assert not any("test_sites.py" in str(key) for key in first)


def test_the_frames_of_torch_are_part_of_the_place():
    layer = nn.Linear(4, 2)
    found = sites(lambda x: layer(x) + layer(x), name="linear")
    assert all(site.short.startswith("test_sites.py:") for site in found)
    assert all("torch/nn/modules/linear.py" in site.chain for site in found)
    assert found[0].chain != found[1].chain


def test_a_loop_is_one_place():
    def program(x):
        for _ in range(3):
            x = x * 2
        return x

    traced = Traced(program, {"x": X})
    assert len({op.site.chain for op, _ in traced.events if op.function == "mul"}) == 1
    assert [event.nth for op, event in traced.events if op.function == "mul"] == [0, 1, 2]


def test_code_that_exec_made_has_no_text():
    space: dict = {}
    exec("def program(x):\n    made = x * 2\n    return made", space)
    (site,) = sites(space["program"], name="mul")
    assert site.short == "<string>:2"
    assert site.code == ""
    assert site.variable is None


def test_the_variable_of_a_statement_over_several_lines(tmp_path):
    file = tmp_path / "source.py"
    file.write_text("a, b = (\n    f(1),\n    g(2),\n)\nself.x[0] += 1\nb: int = 2\nif c:\n    d = e\n")
    found = [variable_at(str(file), line) for line in range(1, 9)]
    assert found == ["a, b"] * 4 + ["self.x[0]", "b", None, "d"]


def test_a_file_that_can_not_be_read_has_no_variables(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def (")
    assert variable_at(str(broken), 1) is None
    assert variable_at(str(tmp_path / "absent.py"), 1) is None
    assert variable_at(str(broken), 1, 1) is None
    assert variable_at(str(tmp_path / "absent.py"), 1, 1) is None


def test_a_file_that_is_another_by_now_is_looked_at_as_a_whole(tmp_path):
    file = tmp_path / "source.py"
    file.write_text("a = (\n    1,\n    2)\nb = 3\n")
    assert [variable_at(str(file), line, 2) for line in range(1, 5)] == ["a", "a", "a", "b"]
    assert variable_at(str(file), 4, 100) == "b"


def functions_in(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if not inner.co_name.startswith("<"):
                yield inner
            yield from functions_in(inner)


@pytest.mark.parametrize("module", [nn.modules.rnn, modeling_llama])
def test_a_function_tells_of_its_variables_what_its_file_tells(module):
    """The rest of the file is left out, with decorators, nested functions and what hangs over a line."""
    file = inspect.getsourcefile(module)
    assert file is not None
    compared = 0
    for code in functions_in(compile(Path(file).read_text(encoding="utf-8"), file, "exec")):
        for line in {line for _, _, line in code.co_lines() if line}:
            expected = variable_at(file, line)
            assert variable_at(file, line, code.co_firstlineno) == expected
            compared += expected is not None
    assert compared > 100


def test_no_frame_at_all_is_a_place_too():
    assert NOWHERE.site.short == "?:0"
