"""Pages of what is more than one comparison, and all of it read again from JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report import samples

from forkpoint.auditing.record import Accuracy, Audit, Break
from forkpoint.cli import main
from forkpoint.cli.reading import read
from forkpoint.engines.answer import Check, Cost, EngineComparison, EngineOp, Listed
from forkpoint.errors import InputError
from forkpoint.questions.answers import FactorRow, Factors, Generation
from forkpoint.report.words import LANGUAGES
from forkpoint.result import Result, VerdictKind
from forkpoint.screening import Screening
from forkpoint.support.answers import Answer
from forkpoint.support.records import JsonRecord
from forkpoint.sweeps.answer import Sweep, SweepRow

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


def sweep() -> Sweep:
    rows = (
        SweepRow("0001", "./tiny", "padding", "{}", HOSTILE, verdict=VerdictKind.SEMANTIC, status=1, max_abs=2.0, first=HOSTILE),
        SweepRow("0002", "./tiny", "padding", "{}", "other", reason="out of memory"),
    )  # fmt: skip
    return Sweep("out", rows, 2, call="forkpoint sweep x.toml")


def engine() -> EngineComparison:
    first = EngineOp(
        "model.norm/mul", "layers.py:1", "model.norm/output", "modeling.py:2", "path", "differs", 2.0, 1e-7, 9.0, 0.5, 0, 3,
        1, 7,
    )  # fmt: skip
    return EngineComparison(
        "vllm", "1", "Tiny", VerdictKind.SEMANTIC, "position_ids", f"The positions of {HOSTILE} are shifted.",
        (Check("positions", "differs", "Shifted by one."),), (first, replace(first, status="identical")), first,
        Cost(7, 0.1, 0.2, 0.01, 0.03, 1.0, 2), None, (Listed("pow", "layers.py:1", "listed", "", "no result"),),
        call="forkpoint engines ./tiny",
    )  # fmt: skip


def screening() -> Screening:
    return Screening(
        "unknown", f"Nothing explains {HOSTILE}.", 1, 5, 0.1, 0.3, 1.1, evidence=("A shift was tried.",)
    )


def audit() -> Audit:
    broken = Break("rows", 3, 4, f"row 0 of 3 and of 4 in {HOSTILE}", 2, 8, 1e-7, "linear", (("gemv",), ()))
    return Audit("linear", 12, (broken,), (1, 2, 3), Accuracy(1e-7, 1e-6, 1e-8, 1e-7), "the rest")


RUNS = [factors(), generation(differs=False), generation(differs=True)]
ANSWERS = [*RUNS, sweep(), engine(), screening(), audit()]
IDS = ["factors", "the same", "another token", "sweep", "engine", "screening", "audit"]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("answer", ANSWERS, ids=IDS)
def test_a_page_shows_what_the_terminal_does(answer: Answer, lang: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    answer.to_html(path, lang=lang)
    page = path.read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert getattr(answer, "call", "").partition("(")[0] in page
    assert "http" not in page.partition("</style>")[2].partition("<script")[0]
    assert ("plotly" in page) == (isinstance(answer, Generation) and answer.result is not None)
    assert page.count("<h2>") >= 1
    assert ("<input" in page) == ("<script" in page)  # nothing to search with that does not work


@pytest.mark.parametrize("answer", [samples.semantic(), *ANSWERS], ids=["result", *IDS])
def test_a_file_is_read_as_what_it_is(answer: JsonRecord, tmp_path: Path) -> None:
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
    said = [
        "What matters most", "the same in both ways", "a tie", "out of memory", "model.norm/mul", "A shift was tried.",
        "kernels with 4: none seen",
    ]  # fmt: skip
    for answer, words, expected in zip(ANSWERS, said, [0, 0, 0, 1, 1, 3, 1], strict=True):
        file, page = tmp_path / "answer.json", tmp_path / "page.html"
        answer.to_json(file)
        status, out, err = report(capsys, str(file), "--html", str(page), "--lang", "en")
        assert (status, err) == (expected, "")
        assert answer.status == expected
        assert words in " ".join(out.split())
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_report_shows_the_whole_of_an_engine_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tuple(
        replace(engine().ops[1], op=f"layer.{number}/mul", times=number / 100) for number in range(20)
    )
    replace(engine(), ops=(engine().ops[0], *others)).to_json(tmp_path / "answer.json")
    assert "layer.1/mul" not in report(capsys, str(tmp_path / "answer.json"), "--lang", "en")[1]
    assert "layer.1/mul" in report(capsys, str(tmp_path / "answer.json"), "--lang", "en", "--details")[1]


@pytest.mark.parametrize(("gone", "status"), [(samples.identical(), 0), (samples.rounding(), 1)])
def test_report_of_what_fix_found_shows_both(gone: Result, status: int, tmp_path, capsys) -> None:
    file = tmp_path / "fixed.json"
    answers = {"prompts": [{"prompt": "one", "result": gone.to_dict()}]}
    file.write_text(json.dumps({"as_it_is": samples.semantic().to_dict(), "invariant": answers}))
    found, out, _ = report(capsys, str(file), "--lang", "en")
    assert found == status
    assert out.index("● Semantic difference") < out.index("● Identical" if status == 0 else "● Rounding")
    assert report(capsys, str(file), "--html", str(tmp_path / "page.html"))[0] == 2


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


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("option", ["--markdown", "--issue"])
def test_a_table_is_no_issue(
    option: str, several: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.json"
    factors().to_json(file)
    if several:
        file.write_text(json.dumps({"prompts": [{"prompt": "one", "result": samples.rounding().to_dict()}]}))
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
