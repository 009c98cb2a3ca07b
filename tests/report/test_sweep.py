"""The table of a sweep: what stands in it, what is left out because it is the same everywhere, and both languages."""

from __future__ import annotations

import json

import forkpoint as fp
from forkpoint.report.sweep import MOST, PLACES


def row(question="padding", verdict=fp.VerdictKind.ROUNDING, *, prompt="Hello", model="./a/small", **more):
    options = {key: more.pop(key) for key in ("pad-to", "side", "invariant") if key in more}
    status = {fp.VerdictKind.ROUNDING: 0, fp.VerdictKind.SEMANTIC: 1}.get(verdict, 0)
    given = {
        "status": None if "reason" in more else status,
        "verdict": verdict,
        "max_abs": 1e-6,
        "top1_flips": 0,
        **more,
    }
    return fp.SweepRow("0123", model, question, json.dumps({"dtype": "float32", **options}), prompt, **given)


def lines(*rows, lang="en", **more):
    return fp.Sweep("out", rows, len(rows), **more).to_text(lang=lang).splitlines()


def test_what_is_the_same_everywhere_is_left_out():
    found = lines(row(**{"pad-to": 8}), row(**{"pad-to": 9}))
    assert "float32" not in "\n".join(found) and "small" not in "\n".join(found)
    head = next(index for index, line in enumerate(found) if "verdict" in line)
    assert found[head].split() == ["question", "verdict", "cause", "gap", "flips", "s"]
    assert found[head + 1].split()[:3] == ["padding", "pad-to=8", "rounding"]


def test_a_long_question_stands_above_its_row():
    found = lines(
        row("batch", prompt=""), row(side="left", **{"pad-to": 8}), row(side="right", **{"pad-to": 9})
    )
    assert "  padding pad-to=8 side=left" in found and "  batch" in found
    assert "prompt" not in "\n".join(found)  # of those that have one, it is the same


def test_several_models_and_prompts_stand_below_their_question():
    rows = [
        row(model=model, prompt=prompt, invariant=flag)
        for flag in (False, True)
        for model in ("x/a", "b")
        for prompt in ("p", "q")
    ]
    found = lines(*rows)
    assert [line.strip() for line in found if "padding" in line] == ["padding", "padding invariant"]
    assert sum('"p"' in line for line in found) == sum(line.split()[:1] == ["a"] for line in found) == 4


def test_what_fails_is_named_with_its_op_and_its_file():
    found = " ".join(
        lines(
            row(), row("cache", fp.VerdictKind.SEMANTIC, mechanism="cache_state", origin="model.layers.1/mul")
        )
    )
    assert "2 questions: rounding 1, semantic 1" in found
    assert "cache: model.layers.1/mul (out/results/0123.json)" in " ".join(found.split())


def test_rows_are_counted_where_a_question_has_several():
    rows = (row(), row("audit", None, setting="batch, length 3", status=1))
    assert "2 questions: rounding 1, other bits 1" in lines(*rows)[0]
    several = fp.Sweep("out", (*rows, row("audit", None, setting="steps, length 3", status=1)), 2)
    assert "2 questions, 3 rows: rounding 1, other bits 2" in str(several)
    assert "2 个问题，3 行：" in several.to_text(lang="zh")


def test_what_has_no_answer_is_named_by_its_reason():
    found = lines(
        row(),
        row("cache", None, reason="its process died: SIGKILL"),
        row("batch", None, reason="its process died: SIGKILL"),
    )
    assert found[-1] == "  cache, batch: its process died: SIGKILL"
    assert "rounding 1, no answer 2" in found[0]
    chinese = lines(
        row("cache", None, reason="no answer within 5 s"),
        row("batch", None, reason="its process died: SIGKILL"),
        lang="zh",
    )
    assert chinese[-2:] == ["  cache：5 秒内没有答案", "  batch：其进程已终止：SIGKILL"]


def test_the_same_tokens_are_no_missing_answer():
    found = lines(row("generate", None))
    assert "the same tokens 1" in found[0]
    assert "Without an answer" not in "\n".join(found)


def test_of_very_many_rows_the_worst_are_shown():
    rows = [row(prompt=f"p{n}", max_abs=n * 1e-6) for n in range(MOST + 40)]
    rows += [
        row("cache", fp.VerdictKind.SEMANTIC, prompt=f"s{n}", first="lm_head/linear")
        for n in range(PLACES + 2)
    ]
    found = lines(*rows, kept=7)
    text = "\n".join(found)
    assert f"The worst {MOST} of {len(rows)} rows; sweep.parquet has all." in text
    assert '"s0"' in text and f'"p{MOST + 39}"' in text and '"p0"' not in text
    assert "  2 more" in found
    assert "(7 answered before)" in text


def test_nothing_of_a_prompt_moves_the_cursor():
    assert "\x1b" not in "\n".join(lines(row(prompt="a\x1b[31m"), row(prompt="b")))


def test_factors_have_a_column_of_settings():
    found = lines(row("factors", setting="as it is"), row("factors", setting="int8"))
    assert any(line.split()[:4] == ["as", "it", "is", "rounding"] for line in found)
    assert fp.Sweep("out", (row(),), 1).unanswered == ()
    assert str(fp.Sweep("out", (row(),), 1)).startswith("  questions   1 question: rounding 1")


def test_the_gap_of_engines_is_told_apart_and_what_an_answer_lacks_is_a_dash():
    found = lines(
        row("engines", max_abs=0.25, prompt="a"), row("engines", max_abs=None, top1_flips=None, prompt="b")
    )
    assert any(line.split()[:4] == ['"a"', "rounding", "0.25", "0"] for line in found)
    assert any(line.split()[:4] == ['"b"', "rounding", "–", "–"] for line in found)
    assert found[-1] == "  The gap of engines is that of log-probabilities, in nats."
    assert "log-probabilities" not in "\n".join(lines(row(), row("cache", None, reason="x")))
