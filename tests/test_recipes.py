"""What stands in the recipes runs as it stands there."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer

import forkpoint as fp
from forkpoint.questions import factors

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = {
    title: blocks
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    if (blocks := re.findall(r"^```python\n(.*?)^```", body, re.DOTALL | re.MULTILINE))
}


def test_there_are_recipes():
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs(title, monkeypatch, capsys):
    monkeypatch.setattr(factors, "IMPLEMENTATIONS", ("eager",))
    monkeypatch.setattr(factors, "WIDTHS", ("float64",))
    monkeypatch.setattr(factors, "quantized", lambda model, kind: 1 / 0)  # which takes seconds
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    given = {
        "fp": fp, "torch": torch, "model": model, "reference": copy.deepcopy(model), "tokenizer": word_tokenizer(),
    }  # fmt: skip
    for block in RECIPES[title]:
        exec(compile(block, title, "exec"), given)
    printed = capsys.readouterr().out
    assert "print(" not in "".join(RECIPES[title]) or printed
