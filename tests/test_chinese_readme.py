"""The Chinese README says what the English one does: the same parts, code, commands and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+(?= )", FENCE.sub("", text), re.MULTILINE)


def blocks(text: str) -> list[str]:
    """Blocks of code; a report is in the language of its page."""
    return [block for block in FENCE.findall(text) if not block.startswith("```text")]


def code(text: str) -> list[str]:
    return sorted(re.findall(r"`[^`\n]+`", FENCE.sub("", text)))


def links(text: str) -> list[str]:
    return sorted(link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("README"))


def rows(text: str) -> int:
    return len(re.findall(r"^\|", text, re.MULTILINE))


@pytest.mark.parametrize("part", [headings, blocks, code, links, rows])
def test_both_have_the_same(part: object) -> None:
    english, chinese = map(part, TEXTS)  # type: ignore[arg-type]
    assert chinese == english


def test_it_is_chinese() -> None:
    prose = re.sub(r"`[^`]*`|\([^)]*\)|<!--.*?-->", "", FENCE.sub("", TEXTS[1]))
    assert not re.findall(r"(?:[a-z]+ ){4,}", prose)
