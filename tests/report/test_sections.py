"""What each section says, without rendering."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report import samples

from forkpoint.report.brief import brief
from forkpoint.report.build import document
from forkpoint.report.document import Role, plain_text
from forkpoint.report.drift import LAYERS_SHOWN, choose
from forkpoint.report.page import parts
from forkpoint.report.words import Words
from forkpoint.result import (
    LayerDrift,
    NearTie,
    NonFinite,
    NotCompared,
    ProbeResult,
    ReplacedModule,
    Result,
    Verdict,
    VerdictKind,
)


def said(result: Result, key: str, lang: str = "en", every_op: bool = False) -> str:
    section = document(result, lang=lang, every_op=every_op).section(key)
    assert section is not None
    return plain_text(section)


def test_the_first_screen_answers_the_person() -> None:
    keys = [section.key for section in document(samples.semantic()).sections]
    assert keys[:6] == ["header", "verdict", "impact", "evidence", "first", "origin"]


# --- verdict


def test_the_verdict_comes_with_its_meaning_cause_and_advice() -> None:
    text = said(samples.rounding(), "verdict")
    assert text.startswith("● Rounding — the runs differ only by floating-point rounding\n")
    assert "cause: the op ran another kernel or was called with other arguments (kernel_choice)" in text
    assert "what to do: Nothing to repair" in text


def test_without_probes_the_verdict_says_so() -> None:
    text = said(samples.unprobed(), "verdict")
    assert text.startswith("● Undetermined — the probes were not run, so the cause is not known")
    assert document(samples.unprobed()).section("evidence") is None


def test_undetermined_with_evidence_says_what_is_missing() -> None:
    probe = ProbeResult("precision", "refused", None, "A fused kernel refuses float64.")
    verdict = Verdict(VerdictKind.UNDETERMINED, None, None, "float64 is missing.", (probe,))
    text = said(replace(samples.rounding(), verdict=verdict), "verdict")
    assert "the evidence does not suffice" in text
    assert "float64 is missing." in text
    assert "float64 is missing." in said(replace(samples.rounding(), verdict=verdict), "verdict", "zh")
    assert "In float64" not in said(samples.rounding(), "verdict", "zh")


@pytest.mark.parametrize("kind", [VerdictKind.ROUNDING, VerdictKind.IDENTICAL])
def test_the_verdict_does_not_hide_gradients_that_are_wrong(kind: VerdictKind) -> None:
    """It is of the forward pass: that nothing is to repair would be wrong of the gradients."""
    found = samples.backward()
    result = replace(found, verdict=replace(found.verdict, kind=kind))
    for said in (document(result), brief(result)):
        shown = said.section("verdict")
        assert shown is not None
        text = plain_text(shown)
        assert "The gradients differ by more than rounding." in text
        assert "neither run is wrong" not in text
        assert "See Backward below" in text


def test_gradients_that_round_leave_the_advice_as_it_is() -> None:
    found = samples.backward()
    assert found.backward is not None
    result = replace(found, backward=replace(found.backward, rounding=True))
    shown = brief(result).section("verdict")
    assert shown is not None
    assert "differ only by rounding" in plain_text(shown)
    assert "neither run is wrong" in plain_text(shown)
    alone = brief(replace(result, backward=None)).section("verdict")
    assert alone is not None
    assert "radients" not in plain_text(alone)


@pytest.mark.parametrize(
    ("by_design", "words", "role"),
    [(True, "meant to be so", Role.CAUTION), (False, "an error", Role.BAD), (None, "can't know", Role.BAD)],
)
def test_semantic_says_whether_it_is_meant(by_design: bool | None, words: str, role: Role) -> None:
    result = samples.semantic()
    result = replace(result, verdict=replace(result.verdict, by_design=by_design))
    assert words in said(result, "verdict")
    section = document(result).section("verdict")
    assert section is not None
    assert section.title[0].role is role


def test_advice_of_the_probes_goes_before_that_of_the_mechanism() -> None:
    result = samples.rounding()
    result = replace(result, verdict=replace(result.verdict, advice="Sit down."))
    assert "what to do: Sit down." in said(result, "verdict")
    assert "无需修复" in said(result, "verdict", "zh")


def test_a_slug_without_words_is_shown_as_it_is() -> None:
    result = samples.rounding()
    verdict = replace(
        result.verdict, mechanism="cosmic_rays", evidence=(ProbeResult("dowsing", "yes", 1.0, "It dips."),)
    )
    result = replace(result, verdict=verdict)
    assert "cause: cosmic_rays" in said(result, "verdict")
    assert "dowsing: It dips." in said(result, "evidence", "zh")


def test_every_outcome_that_has_words_is_said_in_chinese() -> None:
    said_of = said(samples.rounding(), "evidence", "zh")
    assert "在 float64 中差距为 1.6e-13，即最大值末位单位的 23 倍。" in said_of
    probe = ProbeResult("precision", "vanishes", 1.6e-13, "nobody has said it like that before")
    result = samples.rounding()
    result = replace(result, verdict=replace(result.verdict, evidence=(probe,)))
    assert "在 float64 中差距为 1.6e-13，只是噪声。" in said(result, "evidence", "zh")


# --- impact


def test_losses_have_the_digits_that_tell_them_apart() -> None:
    result = samples.rounding()
    assert result.impact is not None
    impact = replace(result.impact, loss_a=2.2338910, loss_b=2.2338932, loss_gap=2.2e-06)
    assert "loss: A 2.233891   B 2.233893   gap 2.2e-06" in said(replace(result, impact=impact), "impact")


def test_the_gap_is_measured_against_the_narrower_dtype() -> None:
    text = said(samples.rounding(), "impact")
    assert "0.6875 in logits, relative 0.022 (2.82 × the epsilon of bfloat16)" in text
    assert "no prediction changes" in text
    assert "15 tokens" in text


def test_flips_are_shown_farthest_from_a_tie_first() -> None:
    ties = tuple(NearTie(0, position, 7, 8, position / 8, 0.0) for position in range(5))
    result = samples.rounding()
    assert result.impact is not None
    text = said(replace(result, impact=replace(result.impact, top1_flips=5, flips=ties)), "impact")
    assert "5 of 15 predictions change" in text
    assert text.index("token 4: A picks 7, ahead by 0.5; B picks 8, ahead by 0") < text.index("token 3:")
    assert "token 1:" not in text
    assert "and 2 more" in text


def test_runs_without_a_result_that_could_be_compared() -> None:
    assert "nothing that could be compared" in said(replace(samples.rounding(), impact=None), "impact")


# --- first divergence


def test_the_first_divergence_has_place_values_and_inputs() -> None:
    text = said(samples.inputs(), "first")
    assert "model.layers.3.mlp.down_proj/linear" in text
    assert "modeling_llama.py:164\ndown_proj = self.down_proj(" in text
    assert 'token 0 "\\n", sample 0' in text
    assert "A | [0, 0, 17] | 0.11561134457588196" in text
    assert "B | [0, 0, 17] | 0.11561146378517151" in text
    assert "1.19e-07, 16 ULP of float32" in text
    assert "15 of 8,640 elements (0.17 %)" in text
    assert "weight | differs | largest gap 7.45e-09  model.layers.3.mlp.down_proj.weight" in text
    assert "A parameter differs" in text


def test_the_digits_that_differ_stand_out() -> None:
    section = document(samples.inputs()).section("first")
    assert section is not None
    values = next(block for block in section.blocks if getattr(block, "label", "") == "values")
    shown = values.body.rows[0][2]  # type: ignore[union-attr]
    assert [(span.text, span.role) for span in shown] == [
        ("0.115611", Role.PLAIN),
        ("34457588196", Role.STRONG),
    ]


def test_equal_inputs_and_an_unequal_output() -> None:
    assert "Its inputs are equal, its output is not" in said(samples.semantic(), "first")


def test_an_argument_that_one_run_lacks() -> None:
    text = said(samples.rounding(), "first")
    assert "attn_mask | only in B | [1, 1, 50, 50] bool" in text
    assert "called with other arguments" in text


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("float32", "something that forkpoint can't see"), ("int64", "An integer input differs")],
)
def test_an_input_that_differs_already(dtype: str, words: str) -> None:
    first = samples.inputs().first
    assert first is not None
    item = replace(first.inputs[0], status="differs", dtype_a=dtype, dtype_b=dtype)
    assert words in said(replace(samples.inputs(), first=replace(first, inputs=(item,))), "first")


def test_nothing_differs() -> None:
    result = samples.identical()
    assert said(result, "first") == "First divergence\nEvery value that was compared is equal, bit for bit."
    integers = replace(result, first_integer=samples.MASK)
    assert "integers that differ are listed apart" in said(integers, "first")
    missing = NotCompared("model/sort", "a.py:1", "no rule", True)
    assert "1 value could not be compared" in said(replace(result, not_compared=(missing,)), "first")


def test_a_difference_that_does_not_reach_the_result() -> None:
    result = replace(samples.identical(), first=samples.SDPA_DIVERGENCE)
    assert "It does not reach the result." in said(result, "first")


def test_ops_between_are_listed_where_they_hide_the_cause() -> None:
    text = said(samples.decode(), "first")
    assert "op: model.layers.0.self_attn\n" in text
    assert "model.layers.0.self_attn: 2 × expand, 2 × reshape" in text
    assert "inputs" not in text
    assert "Only one run has these ops" in text


def test_a_note_that_says_why_goes_before_a_general_remark() -> None:
    first = samples.decode().first
    assert first is not None
    text = said(replace(samples.decode(), first=replace(first, note="one run packs its heads")), "first")
    assert "One run packs its heads." in text
    assert "Only one run has these ops" not in text


def test_the_call_is_named_where_there_are_several() -> None:
    assert "call 0" in said(samples.decode(), "first")
    assert "call 0" not in said(samples.rounding(), "first")


def test_values_without_a_token_and_ops_of_the_root_module() -> None:
    first = replace(
        samples.SDPA_DIVERGENCE,
        module="",
        function="sum",
        sample=None,
        position=None,
        token=None,
        index_a=(),
        index_b=(),
    )
    first = replace(
        first, value_a=None, value_b=float("nan"), ulps=None, max_abs=None, max_rel=None, code="", source=""
    )
    text = said(replace(samples.rounding(), first=first), "first")
    assert "op: (model)/sum" in text
    assert "where: the whole call, not one token" in text
    assert "A | [] | ?\nB | [] | nan" in text
    assert "source:" not in text  # it stands in no line


def test_the_origin_is_a_section_of_its_own_unless_it_is_the_first_divergence() -> None:
    result = samples.semantic()
    assert "backbone.layers.0.mixer.conv1d/conv1d" in said(result, "origin")
    same = replace(result, origin=result.first)
    assert document(same).section("origin") is None
    assert "The first divergence is the origin." in said(same, "first")
    assert result.first is not None
    for change in ({"position": 9}, {"sample": "zh"}, {"call": 1}):
        elsewhere = replace(result, origin=replace(result.first, **change))
        assert document(elsewhere).section("origin") is not None


# --- runs


def test_shapes_of_several_calls_are_taken_together() -> None:
    text = said(samples.decode(), "runs")
    assert "input_ids | [1, 15] | [1, 8], [1, 1] × 7" in text
    assert "attention_mask | [1, 15] | [1, 8…15] × 8" in text
    assert "position_ids | [1, 15] | –" in text


def test_shapes_that_change_without_a_pattern_stand_one_by_one() -> None:
    sizes = [(1, 8), (8,), (8,), (1, 4), (1, 5), (1, 9), (2, 9)]
    run = replace(samples.rounding().b, calls=tuple({"x": size} for size in sizes))
    text = said(replace(samples.rounding(), b=run), "runs")
    assert "x | – | [1, 8], [8] × 2, [1, 4…5] × 2, [1…2, 9] × 2" in text


def test_what_differs_between_the_runs_stands_out() -> None:
    section = document(samples.rounding()).section("runs")
    assert section is not None
    rows = {plain_text(row[0]): row for row in section.blocks[0].rows}  # type: ignore[union-attr]
    assert rows["padding"][1][0].role is Role.PLAIN
    assert rows["dtype"][1][0].role is Role.MUTED


def test_replaced_modules_are_grouped() -> None:
    text = said(samples.int8(), "replaced")
    assert "210 × Linear8bitLt for nn.Linear" in text
    assert "120 × model.layers.*.self_attn.{q_proj, k_proj, v_proj, o_proj}" in text
    assert "90 × model.layers.*.mlp.{gate_proj, up_proj, down_proj}" in text


def test_places_beyond_the_first_few_are_counted() -> None:
    modules = tuple(
        ReplacedModule(f"part_{letter}.norm", "nn.LayerNorm", "FusedNorm") for letter in "abcdefgh"
    )
    text = said(replace(samples.rounding(), replaced_modules=modules), "replaced")
    assert "8 × FusedNorm for nn.LayerNorm" in text
    assert "and 2 more places" in text


# --- drift


def test_drift_names_the_equal_the_first_the_largest_and_the_last() -> None:
    text = said(samples.rounding(), "drift")
    lines = text.splitlines()
    assert len(lines) == 1 + 1 + LAYERS_SHOWN + 1
    assert lines[2].startswith("model.embed_tokens |  | equal")
    assert lines[3] == "model.layers.0 | 0.00 | 0.03125 | 7.81e-06 | token 8"
    assert "model.layers.29 | 1.00 | 12" in text
    assert lines[-2].startswith("lm_head")
    assert lines[-1].startswith("12 of 33 layers are shown")


def test_drift_of_equal_runs_is_one_line() -> None:
    assert said(samples.identical(), "drift") == "How the gap grows\nAll 33 layers give equal outputs."


def test_drift_with_nan_and_infinity() -> None:
    gaps = (0.0, float("nan"), float("inf"), 1.0)
    layers = tuple(LayerDrift(f"layers.{n}", gap, gap, ((0, 0, gap),)) for n, gap in enumerate(gaps))
    text = said(replace(samples.rounding(), drift=layers), "drift")
    assert "layers.1 | 1.00 | nan" in text
    assert "layers.2 | 1.00 | inf" in text


@pytest.mark.parametrize("number", [1, 2, 12, 13, 33, 97, 500])
def test_the_layers_shown_include_the_ends_and_the_largest(number: int) -> None:
    gaps = [0.0, *(float(n % 7) for n in range(1, number))]
    chosen = choose(gaps, LAYERS_SHOWN)
    assert len(chosen) == min(number, LAYERS_SHOWN)
    assert {0, number - 1, gaps.index(max(gaps))} <= set(chosen)


# --- counts, integers, notes, ops


def test_nothing_is_left_out_of_the_counts() -> None:
    result = samples.rounding()
    text = said(result, "counts")
    assert "only in B: 60 values: 30 × expand, 30 × reshape" in text
    assert "not compared: 3 values (1 floating-point)\n2 × no token dimension known\n" in text
    equal, differs = (sum(row.status == status for row in result.ops) for status in ("equal", "differs"))
    assert f"equal: {equal} values\ndiffers: {differs} values\nonly in A: none\n" in text


def test_reasons_beyond_the_first_few_are_counted() -> None:
    values = tuple(NotCompared(f"op{n}", "a.py:1", f"reason {n}" if n else "", True) for n in range(9))
    text = said(replace(samples.rounding(), not_compared=values), "counts")
    assert "9 values (9 floating-point)" in text
    assert "1 × no reason given" in text
    assert "and 3 more reasons" in text


def test_an_op_that_was_not_compared_is_counted_once() -> None:
    result = samples.identical()
    row = replace(result.ops[0], status="not compared", reason="no rule")
    listed = NotCompared(row.op, row.source, "no rule", True)
    for values in ((), (listed,)):
        text = said(replace(result, ops=(row,), not_compared=values), "counts")
        assert "not compared: 1 value (1 floating-point)\n1 × no rule" in text


def test_functions_beyond_the_first_few_are_counted() -> None:
    rows = tuple(replace(samples.MASK, status="only in a", function=f"f{n}") for n in range(9))
    text = said(replace(samples.rounding(), ops=rows), "counts")
    assert "only in A: 9 values: 1 × f0, " in text
    assert "1 × f5, and 3 others" in text


def test_a_status_without_words_is_counted_too() -> None:
    row = replace(samples.MASK, status="dreamt")
    assert "dreamt: 1 value" in said(replace(samples.rounding(), ops=(row,)), "counts")


def test_integers_are_listed_apart() -> None:
    text = said(samples.rounding(), "integers")
    assert "op: model/le (bool)" in text
    assert "return kv_idx <= q_idx" in text
    assert "3 of 15 coordinates" in text
    assert document(samples.identical()).section("integers") is None


def test_notes_and_versions() -> None:
    text = said(samples.rounding(), "notes")
    assert "pad token is its eos token <|im_end|>" in text
    assert "torch 2.13.0+cpu" in text
    assert document(replace(samples.rounding(), notes=(), versions={})).section("notes") is None


def test_every_op_is_listed_under_its_module() -> None:
    result = samples.rounding()
    text = said(result, "ops", every_op=True)
    assert len(text.splitlines()) > len(result.ops)
    assert "\nmodel.layers.3.self_attn\n" in text
    row = "scaled_dot_product_attention | attn_output | differs 7 of 15 | sdpa_attention.py:168"
    assert f"{row} | [1, 9, 15→50, 64] | bfloat16" in text
    assert document(result).section("ops") is None


def test_what_goes_into_a_module_is_listed_by_its_name() -> None:
    row = replace(samples.MASK, function="input:attention_mask", source="", code="", status="equal")
    text = said(replace(samples.rounding(), ops=(row,)), "ops", every_op=True)
    assert "input | attention_mask | equal |  | [1, 1, 50, 50] | bool" in text


@pytest.mark.parametrize(
    ("pattern", "number"),
    [("layers.3.", 6), ("*/embedding", 1), ("attn_output", 30), ("sdpa_attention.py", 90), ("nothing", 0)],
)
def test_ops_are_listed_by_name_variable_and_place(pattern: str, number: int) -> None:
    result = samples.rounding()
    whole = document(result, every_op=True, matching=pattern)
    text = plain_text(whole.section("ops"))
    assert text.startswith(f"Every op  {number} of {len(result.ops)} like {pattern}")


def test_an_op_that_ran_often_returns_several_and_could_not_be_compared() -> None:
    row = replace(
        samples.MASK,
        output=1,
        passes=8,
        status="not compared",
        reason="no rule",
        dtype_b="float32",
        shape_a=(3, 50),
    )
    text = said(replace(samples.rounding(), ops=(row,)), "ops", every_op=True)
    place = "masking_utils.py:93 | [3, 50] → [1, 1, 50, 50] | bool → float32"
    assert text.endswith(f"le[1] |  | not compared ×8 | {place}\n    no rule")
    assert "No op was captured." in said(replace(samples.rounding(), ops=()), "ops", every_op=True)


def test_probes_that_were_asked_for_are_not_called_missing() -> None:
    """Where no result could be compared no probe has anything to go by, but that is another reason."""
    verdict = Verdict(VerdictKind.UNDETERMINED, None, None, "no result could be compared: not written yet")
    text = said(replace(samples.rounding(), verdict=verdict), "verdict")
    assert "probes" not in text
    assert "No result could be compared: not written yet." in text


# --- NaN and infinities


def test_what_makes_nan_stands_before_the_first_divergence() -> None:
    made = NonFinite(
        "mlp/mul", "mlp", "mul", "model.py:7", "x * x", None, 0, "inf", "overflow", (0, 3), (300.0, 300.0),
        "float16", leads_to="mlp/div",
    )  # fmt: skip
    result = replace(samples.rounding(), first_nonfinite_b=made)
    keys = [section.key for section in document(result).sections]
    assert keys.index("unfinite") == keys.index("first") - 1
    text = said(result, "unfinite")
    assert "mlp/mul\nmodel.py:7\nx * x\nmakes inf of 300, 300  at [0, 3]" in text
    assert "beyond the range of float16" in text
    assert "then: mlp/div makes NaN of it" in text
    assert "A:" not in text
    assert "超出 float16 的范围" in said(result, "unfinite", "zh")


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    result = samples.rounding()
    assert result.impact is not None
    impact = replace(
        result.impact, loss_b=float("nan"), elements=40, nonfinite_b=30, nonfinite_apart=30, predictions=3
    )
    text = said(replace(result, impact=impact), "impact")
    assert "0 elements in A, 30 in B, of 40, 30 of them in one run alone" in text
    assert "among the elements that are finite in both runs" in text
    assert "over the 3 of 15 tokens whose logits are not NaN" in text
    assert "none of the 3 predictions that both runs make changes" in text
    assert "gap nan" not in text
    text = said(replace(result, impact=replace(impact, nonfinite_b=40, predictions=0)), "impact")
    assert "no element is finite in both runs" in text
    assert "no prediction exists in both runs" in text
    assert "nats" not in text


def test_what_is_not_known_of_a_recorded_run_is_not_shown() -> None:
    first = samples.decode().first
    assert first is not None
    between = ("a: model.mlp/mul", "b: model.mlp/add", "b: model.mlp/add")
    result = replace(samples.decode(), first=replace(first, source="?", code="", between=between))
    text = said(result, "first")
    assert "?" not in text and "source" not in text
    assert "only in A, model.mlp: mul\nonly in B, model.mlp: 2 × add" in text
    assert parts.reproduce(result, Words()) is not None
    for call in ("forkpoint compare a b", "fp.compare_traces(a, b)"):  # nothing can be run again
        assert parts.reproduce(replace(result, call=call), Words()) is None
