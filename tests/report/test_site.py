"""The site's navigation has every page of docs/, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer

import forkpoint as fp

ROOT = Path(__file__).parents[2]
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
MADE = {"api.md", "gallery/index.md", "mechanisms/index.md", "verdicts/index.md"}


def test_every_page_has_its_place() -> None:
    named = re.findall(r": (\S+\.md)$", SITE, re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(named) == sorted(pages | MADE)


@pytest.mark.parametrize("page", ["tour.md", "agents.md"])
def test_the_examples_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = ARCHITECTURES["llama"].build(attention="sdpa"), word_tokenizer()
    monkeypatch.setattr(fp, "load", lambda name: (model, tokenizer))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {"fp": fp, "model": model, "tokenizer": tokenizer})
