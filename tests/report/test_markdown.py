"""The report in Markdown, and as an issue that gives nobody away."""

from __future__ import annotations

from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from tests.report import samples
from tests.report.test_page import HOSTILE, hostile

from forkpoint.report.build import document
from forkpoint.report.document import line, strong
from forkpoint.report.markdown import ISSUE, to_issue, to_markdown
from forkpoint.report.public import public, without_paths
from forkpoint.report.words import LANGUAGES, Words
from forkpoint.result import ArgumentComparison, InputRow, Result

SECRET = "opensesame"
CASES = ["rounding", "identical", "semantic", "inputs", "unprobed", "int8", "decode"]


def read(text: str) -> list[tuple[str, str]]:
    """Each piece with its kind, as a reader of Markdown sees it; HTML would be among them."""
    found: list[tuple[str, str]] = []
    for token in MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(text):
        found.append((token.type, "" if token.children else token.content))
        found += [(child.type, child.content) for child in token.children or ()]
    return found


def texts(text: str) -> str:
    return "".join(content for kind, content in read(text) if kind in ("text", "code_inline", "text_special"))


def headings(text: str) -> int:
    return sum(kind == "heading_open" for kind, _ in read(text))


def kinds(text: str) -> list[str]:
    """What is more than text."""
    return [kind for kind, _ in read(text) if kind not in ("text", "text_special")]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("case", CASES)
def test_every_section_is_there(case: str, lang: str) -> None:
    result: Result = getattr(samples, case)()
    text = to_markdown(result, lang=lang)
    sections = document(result, lang=lang).sections
    assert headings(text) == sum(bool(section.title) for section in sections)
    assert Words(lang).phrase(result.a.name) in texts(text)
    assert "html_block" not in kinds(text) and "html_inline" not in kinds(text)


def test_every_word_is_read_back() -> None:
    """What Markdown makes of it is what the report says."""
    result = replace(
        samples.semantic(), notes=("1. a_b *c* _d_ [e](f) <g> ~~h~~ `i` #1 @j $k$ http://l.m | n & &lt; \\",)
    )
    found = texts(to_markdown(result))
    assert "a_b *c* _d_ [e](f) <g> ~~h~~ `i` #1 @j $k$ http://l.m | n & &lt; \\" in found


def test_what_github_would_link_is_broken_up() -> None:
    text = to_markdown(replace(samples.semantic(), notes=("see @someone and #12 at http://a.b",)))
    assert not any(part in text for part in ("@someone", "#12", "http://a.b"))


def test_texts_of_others_are_texts() -> None:
    good = Result.from_dict(_harmless(hostile().to_dict()))
    assert kinds(to_markdown(hostile())) == kinds(to_markdown(good))
    assert kinds(to_issue(hostile(), private=True)) == kinds(to_issue(good, private=True))


def _harmless(data: object) -> object:
    if isinstance(data, dict):
        return {key.replace(HOSTILE, "x"): _harmless(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_harmless(value) for value in data]
    return data.replace(HOSTILE, "x") if isinstance(data, str) else data


def test_a_table_has_as_many_cells_in_each_row() -> None:
    for case in CASES:
        for block in to_markdown(getattr(samples, case)()).split("\n\n"):
            rows = [row.replace("\\|", "").count("|") for row in block.split("\n") if row.startswith("| ")]
            assert len(set(rows)) <= 1


# ---------------------------------------------------------------------- an issue


def secretive() -> Result:
    """A semantic result with a secret wherever its owner's words may stand."""
    result = samples.semantic()
    path = f"/home/me/{SECRET}/model.gguf"

    def hidden(found):
        largest = None if found.largest is None else replace(found.largest, token=SECRET, sample=SECRET)
        return replace(
            found,
            token=SECRET,
            sample=SECRET,
            code=f'x = f("{SECRET}", y)  # {SECRET}',
            note=f"see {path}",
            largest=largest,
        )

    assert result.first is not None and result.origin is not None and result.impact is not None
    found = replace(
        result.verdict, summary=f"it said: can't read '{path}'", advice=f"Look into ~/{SECRET}/x or .\\{SECRET}\\y first",
    )  # fmt: skip
    return replace(
        result, first=hidden(result.first), origin=hidden(result.origin), origins=(hidden(result.origin),), verdict=found,
        a=replace(result.a, name=f"org/{SECRET}", notes=(SECRET,), rows=(InputRow(0, 0, 1, ((SECRET, 0, SECRET),)),)), b=replace(result.b, name=path),
        impact=replace(result.impact, flips=tuple(replace(tie, sample=SECRET) for tie in result.impact.flips)),
        configuration=(ArgumentComparison("_name_or_path", f"'org/{SECRET}'", f"'{path}'"),), notes=(f"saved in {path}", SECRET),
        drift=tuple(replace(layer, per_token=((SECRET, 0, 0.5),)) for layer in result.drift),
    )  # fmt: skip


@pytest.mark.parametrize("lang", LANGUAGES)
def test_an_issue_gives_nobody_away(lang: str) -> None:
    shown = to_issue(secretive(), lang=lang)
    assert SECRET not in shown
    assert SECRET not in str(public(secretive()).to_dict())
    assert SECRET in to_issue(secretive(), lang=lang, private=True)


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("case", CASES)
def test_an_issue_has_what_somebody_else_needs(case: str, lang: str) -> None:
    result: Result = getattr(samples, case)()
    text = to_issue(result, lang=lang)
    said = texts(text)
    place = result.origin or result.first
    if place is not None and not result.identical:
        assert place.op in said
        assert place.source in said
        assert "forkpoint script scene -o repro.py" in said
    for name, version in result.versions.items():
        assert f"{name} {version}" in said
    expected = [
        section
        for section in document(public(result), lang=lang).sections
        if section.key in ISSUE and section.title
    ]
    assert headings(text) == 1 + len(expected) + (result.first is not None)


def test_names_of_code_stay_as_they_are() -> None:
    result = samples.semantic()
    bare = public(result)
    assert [(op.op, op.module, op.source, op.status) for op in bare.ops] == [
        (op.op, op.module, op.source, op.status) for op in result.ops
    ]
    assert bare.versions == result.versions
    assert bare.verdict.evidence == result.verdict.evidence


def test_samples_whose_names_are_tuples_are_numbered() -> None:
    result = samples.semantic()
    assert result.first is not None
    named = replace(result, first=replace(result.first, sample=("me", 7)))
    bare = public(named)
    assert bare.first is not None
    assert bare.first.sample == 0
    assert named.first is not None
    assert named.first.sample == ("me", 7)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("C:\\Users\\me\\x.txt is gone", "… is gone"),
        ("'relative/path' or \"a\\b\"", "'…' or \"…\""),
        ("https://host/x?y=z failed", "… failed"),
        ("at (model)/eq, a.b/linear, 3 / 4 and 1/2, aten::add", "at (model)/eq, a.b/linear, 3 / 4 and 1/2, aten::add"),
        ("./x, ../y and ~/z", "…, … and …"),
    ],
)  # fmt: skip
def test_paths(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_a_span_keeps_its_spaces() -> None:
    from forkpoint.report.markdown import _line

    assert _line(line("a ", strong(" b "), "c")) == "a  **b** c"
    assert _line(line(strong("  "))) == " "
