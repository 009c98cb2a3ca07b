"""The page of HTML: what stands in it, and that nothing of others is ever markup or script."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from tests.report import samples

from forkpoint.report.build import document
from forkpoint.report.document import plain_text
from forkpoint.report.page import SCRIPTS, drawing, framed, parts, to_html
from forkpoint.report.summary import summary
from forkpoint.report.words import LANGUAGES, Words
from forkpoint.result import ArgumentComparison, Divergence, InputRow, LayerDrift, NotCompared, Result

CASES = ["rounding", "identical", "semantic", "inputs", "unprobed", "int8", "decode"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--\u202e\x1b[31m&lt;\ud800"


class Page(HTMLParser):
    """Tags with their attributes, the keys of the sections, texts outside of scripts, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.keys: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.keys.append(dict(attrs)["id"] or "")
        if tag in ("script", "style"):
            self.inside = tag
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data
        else:
            self.texts.append(data)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[1])


def hostile() -> Result:
    """A result whose every text of others tries to become a script."""
    result = samples.semantic()
    assert result.first is not None
    first = replace(
        result.first, module=HOSTILE, op=f"{HOSTILE}/{HOSTILE}", function=HOSTILE, code=HOSTILE, variable=HOSTILE,
        token=HOSTILE, sample=HOSTILE, source=f"{HOSTILE}:7",
    )  # fmt: skip
    ops = tuple(
        replace(row, op=f"{HOSTILE}/{HOSTILE}", module=HOSTILE, code=HOSTILE, function=HOSTILE, variable=HOSTILE, reason=HOSTILE, source=f"{HOSTILE}:{n}")
        for n, row in enumerate(result.ops)
    )  # fmt: skip
    drift = tuple(
        replace(layer, module=HOSTILE, per_token=((HOSTILE, 0, 0.5), (HOSTILE, 1, 0.0)))
        for layer in result.drift
    )
    return replace(
        result, a=replace(result.a, name=HOSTILE, notes=(HOSTILE,)), first=first, origin=first, ops=ops, drift=drift,
        notes=(HOSTILE,), versions={HOSTILE: HOSTILE}, not_compared=(NotCompared(HOSTILE, HOSTILE, HOSTILE, True),),
        configuration=tuple(ArgumentComparison(HOSTILE, HOSTILE, HOSTILE) for _ in range(20)),
        verdict=replace(result.verdict, summary=HOSTILE, advice=HOSTILE),
    )  # fmt: skip


def skeleton(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Each tag with the names of its attributes."""
    return [(tag, tuple(sorted(attributes))) for tag, attributes in Page(text).tags]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("case", CASES)
def test_every_section_of_the_report_is_there(case: str, lang: str) -> None:
    result: Result = getattr(samples, case)()
    page = Page(to_html(result, lang=lang))
    report = document(result, lang=lang)
    assert {section.key for section in report.sections} - {"header", "notes"} <= set(page.keys)
    assert page.keys == [key for key in parts.ORDER if key in page.keys]
    assert page.keys[:3] == ["verdict", "impact", "first"]
    text = "".join(page.texts)
    for section in report.sections:
        if section.key not in ("header", "drift", "notes"):
            assert plain_text(section.title).strip() in text.replace("\u00a0", " ")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_page_has_what_only_it_has_room_for(lang: str) -> None:
    result = replace(hostile(), drift=samples.semantic().drift)
    assert Page(to_html(result, lang=lang)).keys[3:] == [
        "map", "drift", "ops", "context", "evidence", "runs", "configuration", "integers", "counts", "missing",
        "notes", "environment", "reproduce",
    ]  # fmt: skip


def test_nothing_of_others_is_markup() -> None:
    """With hostile texts the page has the same tags as with harmless ones."""
    bad = hostile()
    text = to_html(bad)
    good = Result.from_dict(json.loads(json.dumps(bad.to_dict()).replace(json.dumps(HOSTILE)[1:-1], "x")))
    assert skeleton(text) == skeleton(to_html(good))
    assert [tag for tag, _ in skeleton(text)].count("script") == 1 + len(SCRIPTS)
    assert "<script>alert" not in text
    text.encode()  # no surrogate is left


def test_nothing_within_the_data_ends_its_script() -> None:
    page = Page(to_html(hostile()))
    assert "<" not in page.scripts[1]
    assert any(
        "</script><script>" in text for text in page.data["ops"]["texts"]
    )  # read back it is what it was


def test_a_page_asks_nothing_of_a_network() -> None:
    page = Page(to_html(samples.rounding()))
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "data"}
    assert "link" not in {tag for tag, _ in page.tags}
    assert "url(" not in page.scripts[0]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_the_policy_names_the_scripts_as_they_stand() -> None:
    """A browser takes the digest of what lies between the tags."""
    import base64
    import hashlib

    text = to_html(samples.rounding())
    bodies = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(bodies) == len(SCRIPTS)
    for body in bodies:
        assert base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() in text[:4000]


def test_a_large_run_stays_small() -> None:
    """32 layers, 4,093 tokens, 5,000 ops."""
    result = samples.rounding()
    layers = tuple(
        LayerDrift(f"model.layers.{n}", 1.0, 0.01, tuple((0, t, 1.2345678e-5 * (t + n)) for t in range(4093)))
        for n in range(33)
    )
    ops = tuple(
        replace(result.ops[n % len(result.ops)], module=f"model.layers.{n % 32}.self_attn.{n}")
        for n in range(5000)
    )
    text = to_html(replace(result, drift=layers, ops=ops))
    assert len(text.encode()) < 6_000_000
    assert len(Page(text).data["ops"]["rows"]) == 5000


def test_a_huge_run_is_cut_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_CELLS", 60)
    monkeypatch.setattr(drawing, "MAX_OPS", 50)
    monkeypatch.setattr(parts, "MAX_OPS", 50)
    result = samples.rounding()
    layer = LayerDrift("model.layers.0", 9.0, 0.9, tuple((0, t, float(t)) for t in range(100)))
    page = Page(to_html(replace(result, drift=(layer,))))
    assert page.data["map"]["columns"][:2] == ["0–1", "2–3"]
    assert page.data["map"]["cells"][0][:3] == [1, 3, 5]
    kept = page.data["ops"]["rows"]
    statuses = [page.data["ops"]["texts"][row[8]] for row in kept]
    differing = sum(row.status not in ("equal", "view") for row in result.ops)
    assert len(kept) == 50 and sum(status not in ("equal", "view") for status in statuses) == min(
        50, differing
    )
    text = "".join(page.texts)
    assert "A column stands for 2 neighbouring tokens" in text
    assert f"The table has 50 of {len(result.ops)} ops" in text


# ---------------------------------------------------------------------- what the scripts draw


def divergence(**changes: object) -> Divergence:
    first = samples.rounding().first
    assert first is not None
    return replace(first, **changes)  # type: ignore[arg-type]


def test_cells_of_the_map() -> None:
    inf, nan = float("inf"), float("nan")
    layers = (
        LayerDrift("h.0", 0.0, 0.0, ((0, 0, 0.0), (0, 1, 0.0), (1, 0, 0.0))),
        LayerDrift("h.1", 2.0, 0.5, ((0, 0, 0.0), (0, 1, 2.0))),
        LayerDrift("logits", inf, inf, ((0, 0, nan), (0, 1, inf), (1, 0, 1.0), (None, None, 0.0))),
    )
    result = replace(
        samples.rounding(), drift=layers, first=divergence(module="h.1.attn", sample=0, position=1),
        a=replace(samples.rounding().a, samples=2), ops=(),
    )  # fmt: skip
    found = drawing.data(result, Words())["map"]
    assert found["columns"] == ["0:0", "0:1", "1:0", "–"]
    assert found["cells"] == [[0, 0, 0, None], [0, 2, None, None], ["nan", "inf", 1, 0]]
    assert [row["factor"] for row in found["rows"]] == [None, 0.25, None]
    assert found["mark"] == (1, 1)
    assert found["prefix"] == "h."


def test_a_line_of_the_summary_names_the_origin() -> None:
    """Of a semantic difference the first op that differs may only round."""
    semantic, rounding = samples.semantic(), samples.rounding()
    assert semantic.origin is not None and semantic.first is not None and rounding.first is not None
    text = plain_text(summary([("one", semantic), ("two", rounding)], 0, Words()).blocks[0])
    assert semantic.origin.op != semantic.first.op
    assert semantic.origin.op in text and semantic.first.op not in text.splitlines()[1]
    assert rounding.first.op in text


@pytest.mark.parametrize(("gap", "said"), [(0.0, True), (2.0, False)])
def test_a_mark_where_the_layer_returns_the_same_is_explained(gap: float, said: bool) -> None:
    """The cell is not green, as an op within it differs: tests/report/test_browser.py looks at its colour."""
    layer = LayerDrift("h.1", gap, gap, ((0, 0, 0.0), (0, 1, gap)))
    result = replace(
        samples.rounding(), drift=(layer,), first=divergence(module="h.1.attn", sample=0, position=1)
    )
    assert (Words()("page.map.within") in to_html(result)) == said


def test_nothing_is_marked_outside_of_the_layers() -> None:
    result = samples.rounding()
    assert drawing.mark(replace(result, first=divergence(module="model.embed"))) is None
    assert drawing.mark(replace(result, first=divergence(position=10_000))) is None
    assert drawing.mark(replace(result, first=None)) is None
    assert drawing.mark(result) is not None
    assert "cross" not in "".join(Page(to_html(replace(result, first=None))).texts)


def test_the_ops_are_those_of_the_result() -> None:
    result = samples.rounding()
    ops = Page(to_html(result)).data["ops"]
    texts = ops["texts"]
    assert len(ops["rows"]) == len(result.ops)
    for row, op in zip(ops["rows"], result.ops, strict=True):
        assert (texts[row[1]], texts[row[4]], texts[row[5]], texts[row[8]]) == (
            op.module,
            op.source,
            op.code,
            op.status,
        )
    assert result.first is not None
    assert result.ops[ops["first"]].op == result.first.op
    assert dict(ops["counts"]) == {
        s: sum(o.status == s for o in result.ops) for s in {o.status for o in result.ops}
    }


def test_what_goes_in_is_shown_token_by_token() -> None:
    result = samples.rounding()
    assert result.first is not None
    texts = ["Hello", " <b>", "\u202e"]
    tokens = tuple((result.first.sample, n, text) for n, text in enumerate(texts))
    padding = ((None, None, None),) * 7
    a, b = (InputRow(0, 0, len(columns), columns) for columns in (tokens, (*padding, *tokens)))
    result = replace(
        result, a=replace(result.a, rows=(a,)), b=replace(result.b, rows=(replace(b, width=5000), *(20 * (replace(a, row=1),)))),
        first=replace(result.first, position=1), drift=(LayerDrift("h", 1.0, 1.0, ((result.first.sample, 1, 1.0),)),),
    )  # fmt: skip
    page = Page(to_html(result))
    section = parts.sections(result, Words(), interactive=True)[page.keys.index("tokens")]
    first, second, *_ = [plain_text(block) for block in section.blocks]
    assert first == 'A: "Hello" " <b>" "\\u202e" '
    assert second == 'B, row 0: 7 columns of padding "Hello" " <b>" "\\u202e" and 4,990 more'
    assert plain_text(section.blocks[-1]) == "and 5 more rows"
    assert page.data["map"]["hover"] == ['token 1 " <b>"']
    bad = [span.text for block in section.blocks[:2] for span in block.body[0] if span.role == "bad"]  # type: ignore[union-attr]
    assert bad == ['" <b>"'] * 2
    assert "tokens" not in Page(to_html(samples.rounding())).keys


# ---------------------------------------------------------------------- files and notebooks


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_file_is_the_page(tmp_path: Any, lang: str) -> None:
    samples.rounding().to_html(tmp_path / "report.html", lang=lang)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text == to_html(samples.rounding(), lang=lang)
    assert text.lstrip().startswith("<!doctype html>")


def test_several_prompts_stand_above_the_worst() -> None:
    answers = [("one <b>", samples.rounding()), ("two", samples.semantic())]
    page = Page(to_html(answers[1][1], above=(summary(answers, 1, Words()),)))
    assert page.keys[:2] == ["summary", "verdict"]
    assert any("one <b>" in text for text in page.texts)


def test_a_notebook_shows_a_frame_without_scripts() -> None:
    frame = Page(samples.semantic()._repr_html_())
    ((tag, attributes),) = frame.tags
    assert (tag, attributes["sandbox"]) == ("iframe", "")
    inner = Page(attributes["srcdoc"] or "")
    assert "script" not in {name for name, _ in inner.tags}
    assert {"verdict", "impact", "first", "drift", "evidence"} <= set(inner.keys)
    assert not {"map", "ops"} & set(inner.keys)
    assert len(framed(samples.semantic())) < 200_000
    assert [tag for tag, _ in Page(framed(hostile())).tags] == ["iframe"]


def test_what_a_page_is_made_of_is_packaged() -> None:
    folder = files("forkpoint.report.page")
    for name in (*SCRIPTS, "page.css", "page.html.jinja", "plotly-LICENSE.txt"):
        assert folder.joinpath(name).is_file()
    assert "MIT" in folder.joinpath("plotly-LICENSE.txt").read_text(encoding="utf-8")
