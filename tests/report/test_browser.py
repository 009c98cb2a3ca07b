"""The page in a real browser: `make browser` installs what it needs, and without it these tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report import samples
from tests.report.test_page import HOSTILE, hostile

from forkpoint.report.page import to_html
from forkpoint.report.summary import summary
from forkpoint.report.words import LANGUAGES, Words
from forkpoint.result import LayerDrift, Result

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
PLACE = """([row, column]) => {
  const plot = document.getElementById("map-plot");
  plot.scrollIntoView({ block: "center" });
  const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
  return [box.left + xaxis._offset + xaxis.d2p(column), box.top + yaxis._offset + yaxis.d2p(row)];
}"""
"""Where a cell of the map is on the screen."""
DRAWN = "document.querySelectorAll('#map-plot .main-svg').length && document.querySelectorAll('#drift-plot .main-svg').length"


def until(page: Any, truth: str) -> None:
    """Wait for an expression; playwright's own way evaluates a string within the page, which its policy forbids."""
    for _ in range(400):
        if page.evaluate(truth):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never true: {truth}")


def place(page: Any, row: int, column: int) -> list[float]:
    """Where a cell of the map is, once the page has come to rest: a click scrolls it."""
    before = None
    for _ in range(400):
        now = page.evaluate(PLACE, [row, column])
        if now == before:
            return now
        before = now
        page.wait_for_timeout(60)
    pytest.fail("the page never came to rest")


def click(page: Any, row: int, column: int, layer: str) -> None:
    """Click on a cell, as somebody who sees that the pointer is on it: Plotly clicks what it hovers over."""
    at = place(page, row, column)
    page.mouse.move(5, 5)
    page.mouse.move(*at)
    until(page, f"document.getElementById('map-hover').textContent.split('\\n')[0] === {layer!r}")
    page.mouse.click(*at)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a result; whatever it says, asks for or opens besides is an error."""
    seen: list[str] = []
    pages: list[Any] = []

    def open_page(
        result: Result, *, lang: str = "en", width: int = 1200, text: str = "", **options: Any
    ) -> Any:
        file = tmp_path / f"{len(pages)}.html"
        if text:
            file.write_text(text, encoding="utf-8")
        else:
            result.to_html(file, lang=lang)
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        pages.append(page)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda asked: seen.append(asked.url) if asked.url.startswith("http") else None)
        page.goto(file.as_uri())
        if result.drift and not text:
            until(page, DRAWN)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert seen == []


def rows(page: Any) -> list[list[str]]:
    """The texts of the table's rows."""
    return page.evaluate(
        "[...document.querySelectorAll('#ops-table tbody tr:not(.more)')].map(r => [...r.cells].map(c => c.textContent))"
    )


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize(
    "case", ["rounding", "identical", "semantic", "inputs", "unprobed", "int8", "decode"]
)
def test_a_page_opens_in_silence_and_fits_a_phone(show: Any, case: str, lang: str) -> None:
    page = show(getattr(samples, case)(), lang=lang, width=390)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate(OVERFLOW) == 0


@pytest.mark.parametrize("case", ["backward", "semantic", "int8"])
def test_a_phone_shows_rows_of_facts_without_moving_them_sideways(show: Any, case: str) -> None:
    page = show(getattr(samples, case)(), width=390)
    wide = "[...document.querySelectorAll('.flows')].map(t => t.scrollWidth - t.parentElement.clientWidth)"
    found = page.evaluate(wide)
    assert found
    assert max(found) <= 0
    assert len(rows(page)) == 15  # of 50, which would be five screens


def test_a_table_of_prompts_fits_a_phone_with_its_heads(show: Any) -> None:
    words = Words("en")
    several = summary([("one prompt", samples.rounding()), ("two", samples.semantic())], 1, words)
    page = show(samples.semantic(), text=to_html(samples.semantic(), above=[several]), width=390)
    table = page.locator(".flows").first
    assert table.evaluate("t => t.scrollWidth - t.parentElement.clientWidth") <= 0
    said = table.evaluate(
        "t => [...t.rows[1].cells].map(c => getComputedStyle(c, '::before').content).filter(c => c.includes('gap'))"
    )
    assert len(said) == 1


def test_nothing_moves_when_the_map_is_drawn(show: Any) -> None:
    page = show(samples.rounding())
    heights = "['map-plot', 'drift-plot'].map(id => document.getElementById(id)).map(p => [p.offsetHeight, parseInt(getComputedStyle(p).minHeight)])"
    for drawn, kept in page.evaluate(heights):
        assert drawn == kept


def test_texts_of_others_run_nothing(show: Any) -> None:
    page = show(hostile(), width=390)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.querySelectorAll('img, iframe, a').length") == 0
    page.mouse.move(*place(page, 0, 0))
    assert HOSTILE[:60] in page.locator("#map-hover").text_content()
    assert page.evaluate(OVERFLOW) == 0


def test_the_policy_stops_a_script_that_got_in(browser: Any) -> None:
    """Even if something escaped the template, it would not run."""
    page = browser.new_page()
    page.set_content(to_html(samples.rounding()).replace("<main>", "<main><script>window.ran = 1</script>"))
    assert page.evaluate("window.ran === undefined && typeof Plotly === 'object'")
    page.close()


def test_pointing_at_a_cell_shows_its_values(show: Any) -> None:
    result = samples.rounding()
    page = show(result)
    for row, layer in list(enumerate(result.drift))[:: len(result.drift) - 1]:
        sample, position, gap = layer.per_token[3]
        assert sample is not None
        page.mouse.move(5, 5)
        page.mouse.move(*place(page, row, 3))
        said = page.locator("#map-hover").text_content()
        assert page.locator("#map-hover").evaluate("box => getComputedStyle(box).visibility") == "visible"
        assert said.split("\n")[:2] == [layer.module, f"token {position}"]
        if gap == 0:
            assert said.endswith("equal, bit for bit")
        else:
            shown = [float(part.split()[-1]) for part in said.split("\n")[2:4]]
            assert shown == pytest.approx([gap, gap * layer.max_rel / layer.max_abs], rel=0.01)


def test_the_first_divergence_is_marked(show: Any) -> None:
    page = show(samples.rounding())
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent).map")
    page.mouse.move(*place(page, *data["mark"]))
    assert page.locator("#map-hover").text_content().endswith("First divergence")
    assert page.locator("#map-plot .scatterlayer .point").count() == 2


def test_a_click_on_a_cell_lists_the_ops_of_its_layer(show: Any) -> None:
    result = samples.rounding()
    page = show(result)
    layer = result.drift[4].module
    click(page, 4, 3, layer)
    expected = [op for op in result.ops if f"{op.module}.".startswith(f"{layer}.")]
    assert expected and [row[1] for row in rows(page)] == [op.module for op in expected]
    assert page.locator("#ops-filter").text_content().startswith(f"only {layer}")
    click(page, len(result.drift) - 1, 3, result.drift[-1].module)  # a result: what runs after the layers
    assert [row[1] for row in rows(page)] == ["lm_head"]
    page.locator("#ops-filter button").click()
    assert page.locator("#ops-range").text_content() == f"1–50 of {len(result.ops)}"


def test_the_table_is_searched_sorted_filtered_and_turned(show: Any) -> None:
    result = samples.rounding()
    page = show(result)
    assert len(rows(page)) == 50
    page.locator("#ops-on").click()
    assert [int(row[0]) for row in rows(page)] == list(range(51, 101))
    page.fill("#ops-search", "Q_PROJ")
    assert {row[2] for row in rows(page)} == {"linear", "transpose"}
    page.fill("#ops-search", "")
    page.locator("th[data-key=function] button").click()
    names = [row[2] for row in rows(page)]
    assert names == sorted(op.function for op in result.ops)[:50]
    page.locator("th[data-key=function] button").click()
    assert [row[2] for row in rows(page)] == sorted((op.function for op in result.ops), reverse=True)[:50]
    page.locator("#ops-status button[data-status='only in b']").click()
    assert {row[7] for row in rows(page)} == {"only in B"}
    page.locator("#ops-first").click()
    assert result.first is not None
    first = page.locator("#ops-table tr.first")
    assert first.locator("td").all_text_contents()[1:3] == [result.first.module, result.first.function]
    first.click()
    assert result.first.code.strip() in page.locator("#ops-table tr.more").text_content()


def test_dark_and_light(show: Any) -> None:
    page = show(samples.rounding(), color_scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#map-plot .xtick text').style.fill"
    dark = page.evaluate(back), page.evaluate(ink)
    page.emulate_media(color_scheme="light")
    until(page, f"{ink} !== {dark[1]!r}")  # the charts are drawn anew
    light = page.evaluate(back), page.evaluate(ink)
    assert dark[0] == "rgb(20, 23, 27)" and light[0] == "rgb(246, 247, 249)"


def test_paper_is_white_and_nothing_is_cut_off(show: Any) -> None:
    page = show(samples.semantic(), width=718, color_scheme="dark")  # A4 with margins
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(OVERFLOW) == 0
    assert not page.locator("#ops-search").is_visible()
    assert page.pdf(format="A4")[:5] == b"%PDF-"


def test_a_large_run_opens(show: Any) -> None:
    result = samples.rounding()
    layers = tuple(
        LayerDrift(f"model.layers.{n}", 1.0, 0.01, tuple((0, t, 1e-5 * (t + n)) for t in range(4093)))
        for n in range(33)
    )
    ops = tuple(replace(result.ops[n % len(result.ops)], passes=n + 1) for n in range(5000))
    page = show(replace(result, drift=layers, ops=ops))
    page.mouse.move(*place(page, 20, 800))
    layer, token, *_ = page.locator("#map-hover").text_content().split("\n")
    assert layer == "model.layers.20"
    first, last = (int(part.split()[-1]) for part in token.split(" … "))
    assert (last - first, first) == (
        4,
        pytest.approx(4000, abs=10),
    )  # five tokens a column, which is about a pixel
    assert page.locator("#ops-range").text_content() == "1–50 of 5000"


def test_a_notebook_shows_the_frame(show: Any) -> None:
    page = show(samples.semantic(), text=f"<!doctype html><body>{samples.semantic()._repr_html_()}</body>")
    frame = page.frame_locator("iframe")
    assert "Semantic difference" in frame.locator("h1").text_content()
    assert frame.locator("#drift table").is_visible()


def test_a_cell_with_a_cross_is_not_called_equal(show: Any) -> None:
    """An op of the layer differs, what the layer returns there does not: neither colour nor text says that all is equal."""
    result = samples.rounding()
    assert result.first is not None
    layers = (
        LayerDrift("h.1", 2.0, 0.5, ((0, 0, 0.0), (0, 1, 0.0), (0, 2, 2.0))),
        LayerDrift("h.2", 2.0, 0.5, ((0, 0, 0.0), (0, 1, 0.0), (0, 2, 2.0))),
    )
    page = show(
        replace(result, drift=layers, first=replace(result.first, module="h.1.mlp", sample=0, position=1))
    )
    found = page.evaluate("document.getElementById('map-plot').data[0].z[0]")
    assert found[:2] == [0, 1]
    for column, said in [(0, "equal, bit for bit"), (1, "an op within it differs")]:
        page.mouse.move(5, 5)
        page.mouse.move(*place(page, 0, column))
        until(page, f"document.getElementById('map-hover').textContent.includes({said!r})")
