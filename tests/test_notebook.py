"""`%%forkpoint` in a cell, and a notebook that is executed by nbconvert where that is installed."""

from __future__ import annotations

import time

import pytest
import torch
from tests.plain import Model, batch, ids
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.notebook import Bar, compare_cell

CELL = """
padded = batch(ids(), right=2)
model(**batch(ids()))
model(**padded)
"""


class Shell:
    """As much of IPython's shell as is asked for."""

    def __init__(self, **names: object) -> None:
        self.user_ns = dict(names)
        self.magics = {}

    def transform_cell(self, cell: str) -> str:
        return cell

    def register_magic_function(self, function, kind, name):
        self.magics[kind, name] = function


class Averaged(Model):
    def mix(self, hidden: Tensor, **inputs: object) -> Tensor:
        return hidden + hidden.mean(1, keepdim=True)


@pytest.fixture
def shell():
    found = Shell(model=Averaged(), batch=batch, ids=ids, fp=fp, torch=torch)
    fp.load_ipython_extension(found)
    return found


def test_two_calls_in_a_cell_are_compared(shell):
    result = shell.magics["cell", "forkpoint"]("found", CELL)
    assert result.verdict.kind is fp.VerdictKind.SEMANTIC
    assert shell.user_ns["found"] is result
    assert (result.a.name, result.b.name) == ("model(**batch(ids()))", "model(**padded)")
    assert result.b.padding == 4
    assert "padded" in shell.user_ns


def test_without_a_name_and_without_probes(shell):
    result = compare_cell(shell, "--no-probes", CELL)
    assert not result.verdict.probed
    assert "found" not in shell.user_ns


@pytest.mark.parametrize(
    "calls",
    [
        "model(ids())\nmodel(ids(), attention_mask=None)",
        "model.forward(ids())\nmodel.forward(input_ids=ids())",
        "torch.nn.functional.relu(x)\ntorch.nn.functional.relu(input=x)",
        "double(x)\ndouble(x)",
    ],
)
def test_positional_arguments_methods_and_functions(shell, calls):
    shell.user_ns |= {"x": torch.randn(1, 3, 4), "double": lambda x: 2 * x}
    assert compare_cell(shell, "", calls).identical


@pytest.mark.parametrize(
    ("line", "cell", "said"),
    [
        ("", "model(ids())", "does not end with two calls"),
        ("", "x = model(ids())\nmodel(ids())", "does not end with two calls"),
        ("a b", CELL, "%%forkpoint a b"),
        ("--no-such", CELL, "%%forkpoint --no-such"),
        ("", "line(torch.ones(1, 3, 2), 1)\nline(1, 2)", "positional arguments"),
    ],
)
def test_what_is_no_two_calls_is_said(shell, line, cell, said):
    shell.user_ns["line"] = nn.Linear(2, 2)
    with pytest.raises(fp.InputError, match=said):
        compare_cell(shell, line, cell)


def test_the_bar_shows_how_far_it_is_and_leaves_nothing():
    drawn = []
    bar = Bar(drawn.append)
    bar.begin("tracing <A>")
    assert bar.html() == '<div role="status"><progress></progress> tracing &lt;A&gt;</div>'
    bar.count(lambda: 7, 5)
    assert ' value="5" max="5"' in bar.html()
    while not drawn:
        time.sleep(0.01)
    bar.end()
    assert drawn[-1] == ""
    assert "progress" in drawn[0]


def test_a_notebook_that_nbconvert_executes_shows_the_report():
    nbformat = pytest.importorskip("nbformat")
    executing = pytest.importorskip("nbconvert.preprocessors")
    pytest.importorskip("ipykernel")
    cells = [
        "import torch\nfrom torch import nn\nlinear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)",
        "%load_ext forkpoint",
        "%%forkpoint result\nlinear(x)\nlinear(torch.cat([x, x]))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    executing.ExecutePreprocessor(timeout=300).preprocess(notebook)
    shown = [output for output in notebook.cells[2].outputs if output.output_type == "execute_result"]
    assert "<iframe" in shown[0].data["text/html"]
    assert shown[0].data["text/plain"].startswith("<Result: ")
