"""vLLM itself, in the environment that `make engines` makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.engines.board import ROOT, loaded, tiny_qwen3
from typer.testing import CliRunner

import forkpoint as fp
from forkpoint.cli.app import app
from forkpoint.engines.launch import run_vllm

PYTHON = ROOT / ".venv-engines" / "bin" / "python"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: make engines"),
]


def test_a_tiny_qwen3_is_rounding_and_every_op_has_its_place(tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path / "model")
    prompts = [[5, 6, 7, 8, 9, 20, 30, 11, 40], [10, 11, 12]]
    engine = {"dtype": "float32", "max_num_batched_tokens": 8, "max_num_seqs": 4}
    run_vllm(str(PYTHON), str(path), prompts, tmp_path / "recorded", max_tokens=2, engine=engine)
    found = fp.compare_engine(loaded(path), tmp_path / "recorded", prompts=prompts)
    assert found.verdict == "rounding", str(found)
    assert {check.outcome for check in found.question} == {"same"}, found.question
    assert {one.status for one in found.listed} == {"compared", "within"}
    assert found.engine == "vllm" and found.cost is not None and found.cost.tokens == 14


def test_an_engine_that_fails_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(fp.ModelError, match="vLLM ended with an error: "):
        run_vllm(str(PYTHON), str(tmp_path / "nowhere"), [[1]], tmp_path / "recorded")


def test_the_command(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        app, ["engines", "demo", "--python", str(PYTHON), "-p", "The capital of France is", "--json", str(tmp_path / "out.json")]
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["verdict"] == "rounding"
