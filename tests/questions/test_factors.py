"""One setting after the other: the rows that are made, what can't be had, and what is said to matter."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer

import forkpoint as fp
from forkpoint.questions import factors as module
from forkpoint.result import Impact, RunSummary, Verdict, VerdictKind

PROMPT = "w5 w6 w7 w8 w9 w10 w11"
RUN = RunSummary("unpadded", ({"input_ids": (1, 7)},), 1, 7, 0, "float32", "cpu", "sdpa", 10)


def row(factor, setting, gap, kind=VerdictKind.ROUNDING, **more):
    return fp.FactorRow(factor, setting, kind, max_abs=gap, **more)


def table(*rows):
    return fp.Factors(RUN, RUN, (row("none", "as it is", 5e-5), *rows))


def result_of(kind=VerdictKind.ROUNDING, gap=1e-6):
    impact = Impact(1.0, 1.0, 0.0, gap, gap, 0.0, 0, 7)
    return fp.Result(
        a=RUN, b=RUN, first=None, verdict=Verdict(kind, None, None, ""), impact=impact, ops=(), not_compared=(),
        drift=(), replaced_modules=(), notes=("a note",),
    )  # fmt: skip


@pytest.fixture
def llama():
    return ARCHITECTURES["llama"].build(attention="sdpa")


@pytest.fixture
def asked(monkeypatch):
    """How the model is set for each row, instead of a comparison."""
    seen = []

    def ask(model, tokenizer, prompts, *, pad_to=None, side="right", **options):
        seen.append((model.config._attn_implementation, str(model.dtype), pad_to, side, options))
        return result_of()

    for name in ("padding", "batch", "cache"):
        monkeypatch.setattr(module, name, ask)
    return seen


# --- what is asked -------------------------------------------------------------------------------------------


def test_one_thing_is_set_otherwise_at_a_time(llama, asked):
    found = fp.factors(llama, word_tokenizer(), PROMPT, 20, "left", probes=False)
    made = {
        row.setting: seen[:4]
        for row, seen in zip((r for r in found.rows if not r.reason), asked, strict=True)
    }
    as_it_is = ("sdpa", "torch.float32", 20, "left")
    assert made["as it is"] == as_it_is
    assert made["eager"] == ("eager", *as_it_is[1:])
    assert made["sdpa:math"] == as_it_is  # the kernel is chosen around the call
    for dtype in ("bfloat16", "float16", "float64"):
        assert made[dtype] == ("sdpa", f"torch.{dtype}", 20, "left")
    assert made["batch"] == made["cache"] == ("sdpa", "torch.float32", None, "right")
    assert "float32" not in made
    assert "sdpa" not in made
    assert all(seen[4]["probes"] is False for seen in asked)
    assert found.notes == ("a note",)
    assert llama.config._attn_implementation == "sdpa"


def test_only_the_settings_that_are_wanted(llama, asked):
    found = fp.factors(llama, word_tokenizer(), PROMPT, only=["float16", "eager"])
    assert [row.setting for row in found.rows] == ["as it is", "eager", "float16"]
    assert len(asked) == 3
    with pytest.raises(fp.InputError, match="setting 'int4'; expected one of int8, eager"):
        fp.factors(llama, word_tokenizer(), PROMPT, only="int4")


def test_what_can_not_be_had_is_a_row_with_its_reason(llama, asked, monkeypatch):
    def refuse(model, kind):
        raise fp.ModelError("int8 without bitsandbytes", "bitsandbytes installed")

    monkeypatch.setattr(module, "quantized", refuse)
    rows = {row.setting: row for row in fp.factors(llama, word_tokenizer(), PROMPT).rows}
    assert rows["int8"].reason == "int8 without bitsandbytes; expected bitsandbytes installed"
    assert rows["int8"].verdict is None
    assert rows["float64"].verdict is VerdictKind.ROUNDING


def test_an_error_that_nobody_foresaw_ends_its_row_alone(llama, asked, monkeypatch):
    def fail(model, dtype):
        raise MemoryError

    monkeypatch.setattr(module, "cast_to", fail)
    rows = {row.setting: row for row in fp.factors(llama, word_tokenizer(), PROMPT).rows}
    assert rows["bfloat16"].reason == "MemoryError"
    assert rows["eager"].verdict is VerdictKind.ROUNDING


def test_what_the_model_as_it_is_refuses_is_an_error(llama):
    with pytest.raises(fp.InputError, match="a prompt of 7 tokens for a padded length of 3"):
        fp.factors(llama, word_tokenizer(), PROMPT, 3)


def test_a_quantised_model_is_compared_with_what_it_was(llama, asked):
    before = ARCHITECTURES["llama"].build(attention="sdpa")
    llama.config.quantization_config = {"load_in_8bit": True}
    found = fp.factors(llama, word_tokenizer(), PROMPT, unquantized=lambda: before)
    assert [row.setting for row in found.rows[:2]] == ["as it is", "int8 off"]
    assert found.rows[1].verdict is VerdictKind.ROUNDING
    (reason,) = {
        row.reason for row in fp.factors(llama, word_tokenizer(), PROMPT).rows if row.setting == "int8 off"
    }
    assert "before they were quantised" in reason


def test_each_stage_says_which_row_it_is_of(llama, monkeypatch):
    stages = []

    class Told:
        def begin(self, stage):
            stages.append(stage)

        def count(self, done, total):
            pass

    monkeypatch.setattr(module, "_factors", lambda model, ask, unquantized: iter(()))
    fp.factors(llama, word_tokenizer(), PROMPT, progress=Told())
    assert stages
    assert all(stage.startswith("as it is (1 of 1): ") for stage in stages)


@pytest.mark.usefixtures("few_objects")
def test_no_model_is_kept(monkeypatch):
    """In earnest, with two rows: as it is, and float64, where the gap is noise."""
    monkeypatch.setattr(module, "WIDTHS", ("float64",))
    monkeypatch.setattr(module, "IMPLEMENTATIONS", ())
    monkeypatch.setattr(module, "quantized", lambda model, kind: 1 / 0)
    llama = ARCHITECTURES["llama"].build(attention="sdpa")
    known = weakref.ref(llama)
    found = fp.factors(llama, word_tokenizer(), PROMPT, 20)
    rows = {row.setting: row for row in found.rows}
    assert rows["as it is"].verdict is VerdictKind.ROUNDING
    assert rows["float64"].verdict in (VerdictKind.ROUNDING, VerdictKind.IDENTICAL)  # as the processor rounds
    assert rows["float64"].max_abs < 1e-6 * rows["as it is"].max_abs
    assert rows["int8"].reason == "ZeroDivisionError: division by zero"
    assert found.matters is rows["float64"]
    assert rows["as it is"].first.startswith("model.layers.0")
    del llama
    gc.collect()
    assert known() is None


# --- what matters --------------------------------------------------------------------------------------------


def test_the_setting_that_moves_the_gap_farthest_matters_most():
    found = table(
        row("dtype", "bfloat16", 0.2), row("dtype", "float16", 0.02), row("attention", "eager", 0.0)
    )
    assert found.matters.setting == "bfloat16"
    assert found.summary == "What matters most is bfloat16: the largest gap rises from 5e-05 to 0.2."


def test_a_gap_that_falls_is_said_to_fall():
    found = table(row("dtype", "float64", 1e-13), row("attention", "eager", 0.0, VerdictKind.IDENTICAL))
    assert (
        found.summary
        == "What matters most is eager: the largest gap falls from 5e-05 to 0. It is the same with float64."
    )


def test_settings_that_change_as_much_are_all_named():
    found = table(
        row("attention", "eager", 0.0, VerdictKind.IDENTICAL), row("attention", "sdpa:math", 0.0),
        row("dtype", "float64", 1e-13), row("dtype", "bfloat16", 8e-5), row("device", "cuda", 4e-6),
    )  # fmt: skip
    assert found.matters is found.rows[1]
    assert [other.setting for other in found.as_much] == ["sdpa:math", "float64"]
    assert found.summary.endswith("falls from 5e-05 to 0. It is the same with sdpa:math, float64.")


def test_a_gap_that_rises_as_far_as_another_falls_is_not_the_same():
    found = table(row("dtype", "bfloat16", 1.0), row("dtype", "float16", 0.9), row("device", "cuda", 0.995))
    assert [other.setting for other in found.as_much] == ["cuda"]
    infinite = table(
        row("dtype", "float16", 0.0, VerdictKind.SEMANTIC, nonfinite_apart=3),
        row("quantization", "int8", 2.0),
    )
    assert infinite.as_much == ()


def test_a_difference_in_exact_arithmetic_matters_more_than_a_larger_gap():
    found = table(row("quantization", "int8", 2.3, VerdictKind.SEMANTIC), row("dtype", "bfloat16", 3.0))
    assert found.matters.setting == "int8"


@pytest.mark.parametrize("gap", [5e-5, 4e-4, 6e-6])
def test_nothing_is_said_of_a_setting_that_does_not_change_the_gap_tenfold(gap):
    found = table(
        row("quantization", "int8", gap, VerdictKind.SEMANTIC), fp.FactorRow("device", "cuda", reason="no")
    )
    assert found.matters is None
    assert found.summary == "No setting changes the largest gap tenfold."


def test_another_question_is_no_setting():
    assert table(row("question", "batch", 1.0)).matters is None


def test_numbers_in_one_run_alone_matter_whatever_the_gap_of_the_rest_is():
    found = table(
        row("dtype", "float16", 0.0, VerdictKind.SEMANTIC, nonfinite_apart=3), row("dtype", "bfloat16", 9.0)
    )
    assert found.summary == "What matters most is float16: a result is NaN or infinite in one run alone."


# --- how it is shown -----------------------------------------------------------------------------------------


def test_the_table():
    found = table(
        row("quantization", "int8", 2.32, VerdictKind.SEMANTIC, mechanism="int8_outliers", loss_gap=0.0294,
            max_kl=0.25, top1_flips=2, first="model.layers.0/add", origin="model.layers.1/mul", seconds=42.3),
        row("dtype", "bfloat16", 0.2, first="model.layers.0/add"),
        fp.FactorRow("device", "cuda", reason="no such device"),
    )  # fmt: skip
    lines = str(found).splitlines()
    assert lines[0] == "unpadded [1, 7] against unpadded [1, 7] (float32, sdpa, cpu)"
    assert lines[3].split() == ["int8", "semantic", "int8_outliers", "2.3", "0.029", "0.25", "2", "42"]
    assert "  model.layers.1/mul: int8" in lines
    assert "  model.layers.0/add: bfloat16" in lines
    assert "  cuda: no such device" in lines
    assert "What matters most is int8" in str(found)
    assert repr(found).startswith("<Factors: 3 of 4 rows; What matters most is int8")


def test_json(tmp_path):
    found = table(row("quantization", "int8", float("inf"), VerdictKind.SEMANTIC))
    found.to_json(tmp_path / "factors.json")
    data = json.loads((tmp_path / "factors.json").read_text())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert [one["setting"] for one in data["rows"]] == ["as it is", "int8"]
    assert data["rows"][1]["verdict"] == "semantic"
    assert data["rows"][1]["max_abs"] == "inf"
    assert data["matters"]["setting"] == "int8"


def test_compiling_is_asked_where_it_is_wanted(llama):
    found = fp.factors(llama, word_tokenizer(), PROMPT, only=["compiled"])
    assert [row.setting for row in found.rows] == ["as it is", "compiled"]
    row = found.rows[1]
    assert row.reason == ""
    assert row.verdict in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING)
    assert found.matters is None
