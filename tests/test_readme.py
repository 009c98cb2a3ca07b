"""The Python of the README and of some pages runs as it stands there, on a small model in place of the demo."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.pytest_plugin.projects import PLUGIN, make
from tests.questions.words import word_tokenizer
from tests.report import samples

import forkpoint as fp

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/invariant.md", "docs/json-schema.md")


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def names() -> dict[str, Any]:
    """What the examples take as given."""
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    ids = torch.tensor([[5, 6, 7]])
    return {
        "fp": fp, "torch": torch, "model": model, "tokenizer": word_tokenizer(), "reference": model,
        "my_port": copy.deepcopy(model), "ids": ids, "mask": torch.ones_like(ids), "positions": torch.tensor([[0, 1, 2, 0]]),
        "padded": torch.tensor([[5, 6, 7, 0]]), "padded_mask": torch.tensor([[1, 1, 1, 0]]),
        "inputs": {"input_ids": ids},
    }  # fmt: skip


def _here(block: str) -> str:
    """What the example needs that is not here: a GPU, thousands of rows, two runs that differ in no bit."""
    here = {'device="cuda"': 'device="cpu"', "4096": "96", 'allow="identical"': 'allow="rounding"'}
    for theirs, ours in here.items():
        block = block.replace(theirs, ours)
    return block


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = names()
    samples.semantic().to_json("result.json")
    monkeypatch.setattr(fp, "load", lambda name, **_: (given["model"], given["tokenizer"]))
    found = blocks(page)
    assert found
    for block in found:
        if "\ndef test_" not in block:
            exec(compile(_here(block), page, "exec"), given)


def test_the_readme_gets_to_a_failing_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(pytester, monkeypatch, "")
    (example,) = (block for block in blocks("README.md") if "\ndef test_" in block)
    loading = "model, tokenizer = fp.load"
    assert loading in example
    small = (
        "from tests.architectures import ARCHITECTURES\nfrom tests.questions.words import word_tokenizer\n"
    )
    made = 'model, tokenizer = ARCHITECTURES["llama"].build(), word_tokenizer()'
    text = re.sub(rf"{re.escape(loading)}\(.*\)", small + made, example)
    (pytester.path / "test_my_model.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    found = pytester.runpytest_subprocess(*PLUGIN, "test_my_model.py", "--forkpoint-report=pages")
    found.assert_outcomes(passed=1, failed=1)
    found.stdout.re_match_lines([r".*DifferenceError: <Result: semantic"])
    assert len(list(pytester.path.glob("pages/*.html"))) == 2
