"""Text from tokens and sources is safe to print, and lines end where they may."""

from __future__ import annotations

import ast
import itertools

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from forkpoint.report.safe import code_line, printable, quoted
from forkpoint.report.wrap import breaks


@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    assert printable(text).replace("\u00a0", "").isprintable()
    assert quoted(text).isprintable()
    assert code_line(text).replace("\u00a0", "").isprintable()


@given(st.text(max_size=40))
def test_a_quoted_token_reads_back(text: str) -> None:
    assert ast.literal_eval(quoted(text)) == text


def test_tokens_that_deceive() -> None:
    assert quoted("\u202egnp.exe") == '"\\u202egnp.exe"'
    assert quoted("\x1b[31mred") == '"\\x1b[31mred"'
    assert quoted("\u200b") == '"\\u200b"'
    assert quoted("\u00a0") == '"\\xa0"'
    assert quoted("\u0301") == '"\\u0301"'
    assert quoted("好的") == '"好的"'
    assert quoted("[bold]") == '"[bold]"'
    assert quoted("x" * 50) == '"' + "x" * 40 + '"…'


@given(st.text(), st.integers(2, 30))
def test_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    ends = [0, *breaks(text, width), len(text)]
    assert ends == sorted(ends)
    lines = [text[start:end] for start, end in itertools.pairwise(ends)]
    assert "".join(lines) == text
    assert all(cell_len(part.rstrip(" ")) <= width for part in lines)


def lines(text: str, width: int) -> list[str]:
    ends = [0, *breaks(text, width), len(text)]
    return [text[start:end].rstrip() for start, end in itertools.pairwise(ends)]


def test_english_ends_at_spaces() -> None:
    assert lines("the runs part ways here", 10) == ["the runs", "part ways", "here"]


def test_chinese_ends_between_characters_but_not_before_a_comma() -> None:
    assert lines("两次运行，只有舍入", 8) == ["两次运", "行，只有", "舍入"]
    assert lines("（两次）运行", 7) == ["（两", "次）运", "行"]


def test_chinese_beside_latin_letters_keeps_their_words() -> None:
    assert lines("在 float64 中差距依然存在", 11) == ["在 float64", "中差距依然", "存在"]


def test_a_path_ends_behind_a_dot_or_a_slash() -> None:
    assert lines("model.layers.0.self_attn/softmax", 16) == ["model.layers.0.", "self_attn/", "softmax"]


def test_a_shape_stays_whole() -> None:
    assert lines("query [1,\u00a09,\u00a015]", 12) == ["query", "[1,\u00a09,\u00a015]"]
