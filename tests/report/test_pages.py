"""Pages of what is more than one comparison, and all of it read again from JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report import samples

from forkpoint.cli import main
from forkpoint.cli.reading import read
from forkpoint.errors import InputError
from forkpoint.questions.answers import FactorRow, Factors, Generation
from forkpoint.report.words import LANGUAGES
from forkpoint.result import VerdictKind

HOSTILE = "</script><script>alert(1)</script>"


def factors() -> Factors:
    base = samples.rounding()
    rows = (
        FactorRow(
            "none",
            "as it is",
            VerdictKind.ROUNDING,
            "kernel_choice",
            0.1,
            0.001,
            1e-9,
            0,
            15,
            first="a/linear",
        ),
        FactorRow(
            "dtype", "bfloat16", VerdictKind.ROUNDING, "kernel_choice", 0.2, 0.5, 0.01, 1, 15, first=HOSTILE
        ),
        FactorRow("device", "cuda", reason="there is none here"),
    )
    return Factors(base.a, base.b, rows, base.notes, base.versions, "fp.factors(model, tokenizer, prompts)")


def generation(*, differs: bool) -> Generation:
    found = Generation(
        "alone", "in a batch of 8", 5, (1, 2), (1, 3), "one two", HOSTILE, call="fp.generate(model)", model="Tiny (here)",
        text=HOSTILE,
    )  # fmt: skip
    if not differs:
        return found
    return replace(
        found, first=1, token_a=2, token_b=3, candidate_a=" two", candidate_b=HOSTILE, margin_a=0.1, margin_b=0.2,
        label="tie", result=samples.rounding(),
    )  # fmt: skip


ANSWERS = [factors(), generation(differs=False), generation(differs=True)]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("answer", ANSWERS, ids=["factors", "the same", "another token"])
def test_a_page_shows_what_the_terminal_does(answer: Factors | Generation, lang: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    answer.to_html(path, lang=lang)
    page = path.read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert answer.call.partition("(")[0] in page
    assert "http" not in page.partition("</style>")[2].partition("<script")[0]
    assert ("plotly" in page) == (isinstance(answer, Generation) and answer.result is not None)
    assert page.count("<h2>") >= 1


@pytest.mark.parametrize(
    "answer", [samples.semantic(), *ANSWERS], ids=["result", "factors", "the same", "another token"]
)
def test_a_file_is_read_as_what_it_is(answer: Factors | Generation, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    answer.to_json(path)
    assert read(path) == answer


def test_a_generation_without_a_difference_says_of_what_it_is() -> None:
    said = " ".join(str(generation(differs=False)).split())
    assert "model Tiny (here)" in said
    assert f'prompt "{HOSTILE}" (5 tokens)' in said
    old = {
        key: value
        for key, value in generation(differs=False).to_dict().items()
        if key not in ("model", "text")
    }
    assert Generation.from_dict(old).model == ""


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    return int(ended.value.code or 0), *capsys.readouterr()


def test_report_shows_each_kind_and_writes_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["float16", "the same in both ways", "a tie"]
    for answer, words in zip(
        [replace(factors()), *ANSWERS[1:]], ["What matters most", *said[1:]], strict=True
    ):
        file, page = tmp_path / "answer.json", tmp_path / "page.html"
        answer.to_json(file)
        status, out, err = report(capsys, str(file), "--html", str(page), "--lang", "en")
        assert (status, err) == (0, "")
        assert words in " ".join(out.split())
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_report_of_several_prompts_is_a_line_each_and_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [("one", samples.rounding()), ("two", samples.semantic())]
    file, page = tmp_path / "answer.json", tmp_path / "page.html"
    content = {"prompts": [{"prompt": text, "result": result.to_dict()} for text, result in answers]}
    file.write_text(json.dumps(content), encoding="utf-8")
    status, out, _ = report(capsys, str(file), "--html", str(page), "--lang", "en")
    assert status == 1
    assert out.index("2 prompts") < out.index("▸ two") < out.index("● Semantic difference")
    assert "▸ two" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--markdown", "--issue"])
def test_a_table_is_no_issue(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.json"
    factors().to_json(file)
    status, out, err = report(capsys, str(file), option)
    assert (status, out) == (2, "")
    assert "the result of one comparison" in err


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "1", '{"prompts": []}', '{"prompts": [1]}', '{"matters": 1}', '{"tokens_a": []}'],
)
def test_what_is_no_answer_is_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"answer\.json: "):
        read(file)
