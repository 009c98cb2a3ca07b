"""The report fits every width, in colour, plain, piped and in narrow encodings, and shows text as it is."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.report import samples

from forkpoint.errors import InputError
from forkpoint.report import render, to_text
from forkpoint.report.document import Grid, line
from forkpoint.report.grid import Page, rows
from forkpoint.result import Result

CASES = ["identical", "rounding", "semantic", "inputs", "unprobed", "int8", "decode"]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def written(
    result: Result, encoding: str = "utf-8", lang: str = "en", ops: bool = False, **options: object
) -> str:
    """What render writes to a file of that encoding."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    render(result, Console(file=file, _environ={}, **options), lang=lang, ops=ops)  # type: ignore[arg-type]
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 47, 60, 80, 100, 200])
@pytest.mark.parametrize("case", CASES)
def test_every_line_fits_and_ends_without_spaces(case: str, width: int, lang: str) -> None:
    text = written(getattr(samples, case)(), lang=lang, ops=case == "rounding", width=width)
    lines = text.split("\n")
    assert max(map(cell_len, lines)) <= width
    assert [part for part in lines if part != part.rstrip()] == []
    assert "\u00a0" not in text


@pytest.mark.parametrize("case", CASES)
def test_colour_changes_no_word(case: str) -> None:
    result = getattr(samples, case)()
    coloured = written(result, force_terminal=True, color_system="truecolor", width=100)
    assert ESCAPE.search(coloured)
    assert ESCAPE.sub("", coloured).rstrip("\n") == to_text(result)


def test_piped_text_has_no_escapes() -> None:
    assert "\x1b" not in written(samples.semantic(), width=80)


def test_without_colour_the_verdict_is_still_told_by_a_word() -> None:
    text = written(samples.semantic(), force_terminal=True, no_color=True, width=80)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)
    assert "Semantic difference" in ESCAPE.sub("", text)


@pytest.mark.parametrize(
    ("encoding", "lang"), [("ascii", "en"), ("latin-1", "en"), ("cp1252", "en"), ("gbk", "zh")]
)
def test_a_narrow_encoding_gets_characters_that_it_has(encoding: str, lang: str) -> None:
    text = written(samples.semantic(), encoding, lang, ops=True, width=80)
    assert "\\u" not in text
    assert "\\x" not in text
    assert max(map(cell_len, text.split("\n"))) <= 80


def test_what_a_narrow_encoding_lacks_is_escaped() -> None:
    first = replace(samples.SDPA_DIVERGENCE, token="好")
    text = written(replace(samples.rounding(), first=first), "ascii", width=80)
    assert 'token 8 "\\u597d", sample 0' in text
    assert "* Rounding - the runs" in text


HOSTILE = "[red]x[/red] :smile: [/] \x1b[2J\x07"


def test_text_is_shown_as_it_is() -> None:
    """No markup, emoji codes, links or control characters from tokens, sources and names take effect."""
    first = replace(
        samples.SDPA_DIVERGENCE,
        code=HOSTILE,
        token=HOSTILE,
        module=HOSTILE,
        variable=HOSTILE,
        note=HOSTILE,
        sample=HOSTILE,
    )
    row = replace(samples.MASK, module=HOSTILE, variable=HOSTILE, code=HOSTILE, reason=HOSTILE)
    base = samples.rounding()
    result = replace(
        base, a=replace(base.a, name=HOSTILE), first=first, ops=(row,), first_integer=row, notes=(HOSTILE,)
    )
    for width in (60, 100, 300):
        text = ESCAPE.sub("", written(result, force_terminal=True, width=width, ops=True))
        assert "\x1b" not in text
        assert "\x07" not in text
    assert text.count("[red]x[/red] :smile: [/] \\x1b[2J\\x07") >= 9


def test_a_newline_in_a_sentence_does_not_break_the_layout() -> None:
    result = replace(samples.rounding(), notes=("one\ntwo",))
    assert "one\\ntwo" in to_text(result)


def test_an_empty_name_leaves_no_spaces() -> None:
    base = samples.rounding()
    lines = to_text(replace(base, a=replace(base.a, name=""), notes=("",))).split("\n")
    assert "  A" in lines
    assert [part for part in lines if part != part.rstrip()] == []


def test_wide_tokens_keep_the_columns() -> None:
    layers = tuple(replace(layer, module="模块" + layer.module) for layer in samples.drift()[1:4])
    lines = to_text(replace(samples.rounding(), drift=layers)).split("\n")
    rows = [part for part in lines if "模块" in part]
    assert len({cell_len(part[: part.index("token")]) for part in rows}) == 1


def test_a_few_long_cells_do_not_tear_the_others() -> None:
    row = samples.MASK
    long = replace(row, function="a_function_alone_is_torn", source="x.py:1")
    ops = (*(replace(row, source=f"modeling_llama.py:{n}") for n in range(100, 120)), long)
    text = written(replace(samples.rounding(), ops=ops), ops=True, width=88).partition("Every op")[2]
    assert text.count("modeling_llama.py:1") == 20
    assert "a_function_alone_is_torn" not in text


def test_columns_stand_closer_where_no_cell_is_cut_then() -> None:
    grid = Grid((tuple(line(word) for word in ("identical", "reduction", "1.5e-05")),), flows=True)
    [wide] = rows(grid, Page(29), 29)
    [close] = rows(grid, Page(28), 28)
    cut = [text.plain for text in rows(grid, Page(26), 26)]
    assert wide.plain.rstrip() == "identical  reduction  1.5e-05"
    assert close.plain.rstrip() == "identical reduction 1.5e-05"
    assert len(cut) > 1


def test_columns_that_have_no_room_stand_aligned_below() -> None:
    text = written(samples.rounding(), ops=True, width=60).partition("Every op")[2]
    places = [part.index("modeling_llama.py") for part in text.split("\n") if "modeling_llama.py:243" in part]
    assert len(set(places)) == 1
    assert "\n  linear " in text


def test_a_headline_that_is_too_long_is_indented_below() -> None:
    assert "● Rounding — the runs differ only by\n  floating-point rounding\n" in to_text(
        samples.rounding(), width=40
    )


def test_below_48_cells_a_label_stands_above_its_value() -> None:
    assert "  compared\n    15 tokens" in to_text(samples.rounding(), width=47)
    assert "  compared      15 tokens" in to_text(samples.rounding(), width=48)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_value_stands_beside_its_run(lang: str) -> None:
    for result in (samples.rounding(), samples.semantic(), samples.inputs(), samples.undetermined()):
        for width in range(36, 90):
            lines = to_text(result, details=False, lang=lang, width=width).split("\n")
            assert [line for line in lines if line.endswith(("   A", "   B"))] == []


def test_the_report_depends_on_the_result_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    result = samples.rounding()
    before = to_text(result)
    for name, value in (
        ("COLUMNS", "33"),
        ("TERM", "dumb"),
        ("NO_COLOR", "1"),
        ("FORCE_COLOR", "1"),
        ("LANG", "C"),
    ):
        monkeypatch.setenv(name, value)
    assert to_text(result) == before == to_text(samples.rounding())


def test_printing_a_result_is_the_report() -> None:
    """The short one; all of it is what `to_text` returns."""
    result = samples.rounding()
    assert str(result) == to_text(result, details=False, width=80)
    assert result.to_text() == to_text(result, width=80)
    assert "Evidence\n" in result.to_text()
    assert "Evidence\n" not in str(result)


def test_an_unknown_language_writes_nothing() -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(InputError, match="language 'de'"):
        render(samples.rounding(), console, lang="de")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
