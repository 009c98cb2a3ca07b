"""Every phrase exists in both languages, and every public slug has one."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path

import pytest

import forkpoint
from forkpoint.errors import InputError
from forkpoint.report import chinese, english
from forkpoint.report.words import LANGUAGES, Words
from forkpoint.result import VerdictKind

MECHANISMS = [
    "reduction_order",
    "kernel_choice",
    "low_precision",
    "position_ids",
    "attention_mask",
    "padding_leak",
    "length_dependent_rope",
    "cache_state",
    "packing",
    "pooling",
    "int8_outliers",
    "dynamic_scale",
    "expert_capacity",
    "batch_statistics",
    "quantization",
    "labels",
    "token_ids",
    "parameters",
    "buffers",
    "nan",
    "atomics",
    "random_state",
]
PROBES = [
    "nan",
    "repeat",
    "inputs",
    "precision",
    "content",
    "length",
    "patch",
    "replay",
    "coupling",
    "positions",
    "pooling",
    "packing",
    "cache",
]
STATUSES = ["equal", "differs", "view", "not compared", "only in a", "only in b"]


def placeholders(phrase: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(phrase) if name}


def test_both_languages_have_the_same_phrases() -> None:
    assert english.PHRASES.keys() == chinese.PHRASES.keys()


@pytest.mark.parametrize("key", english.PHRASES)
def test_a_phrase_has_the_same_placeholders_in_both(key: str) -> None:
    forms = english.PHRASES[key].split("|")
    assert {frozenset(placeholders(form)) for form in forms} == {
        frozenset(placeholders(chinese.PHRASES[key]))
    }


@pytest.mark.parametrize("key", english.PHRASES)
def test_a_chinese_phrase_is_chinese(key: str) -> None:
    phrase = chinese.PHRASES[key]
    is_name = key in {"run.a", "run.b"} or not phrase.strip("，：；。（）{tex}")
    assert is_name or re.search(r"[\u4e00-\u9fff]", phrase)


@pytest.mark.parametrize(("source", "translation"), chinese.SENTENCES.items())
def test_a_translated_sentence_keeps_its_placeholders(source: str, translation: str) -> None:
    assert placeholders(source) == placeholders(translation)
    values = {name: "1,671" if name in "nm" else f"<{name}>" for name in placeholders(source)}
    text = source.format(**values)
    assert Words("zh").phrase(text) == translation.format(**values)
    assert Words("en").phrase(text) == text
    assert Words("zh").can_say(text)
    assert not Words("zh").can_say(f"Nobody wrote: {text}")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_slug_has_words(lang: str) -> None:
    words = Words(lang)
    for kind in VerdictKind:
        assert words.find(f"kind.{kind.value}")
        assert words.find(f"meaning.{kind.value}")
    for mechanism in MECHANISMS:
        assert words.find(f"mechanism.{mechanism}")
        assert words.find(f"advice.{mechanism}")
    for probe in PROBES:
        assert words.find(f"probe.{probe}")
        assert any(key.startswith(f"outcome.{probe}.") for key in english.PHRASES)
    for status in STATUSES:
        assert words.find(f"status.{status}")


def test_every_phrase_is_used() -> None:
    """A key stands in the source whole, or its group is looked up by slug."""
    folder = Path(english.__file__).parent
    source = "\n".join(
        p.read_text(encoding="utf-8") for p in folder.glob("*.py") if "PHRASES: dict" not in p.read_text()
    )
    by_slug = (
        "kind",
        "meaning",
        "mechanism",
        "advice",
        "probe",
        "outcome",
        "status",
        "design",
        "ops",
        "unfinite",
    )
    unused = [key for key in english.PHRASES if f'"{key}"' not in source and key.split(".")[0] not in by_slug]
    assert unused == []


def test_singular_and_plural() -> None:
    assert Words("en").many("counts.values", 1) == "1 value"
    assert Words("en").many("counts.values", 0) == "0 values"
    assert Words("zh").many("counts.values", 2000) == "2,000 个数值"


def test_reasons_that_are_joined_are_translated_apart() -> None:
    text = "not written yet; the moon is full"
    assert Words("zh").phrase(text) == "尚未写入；the moon is full"
    assert not Words("zh").can_say(text)
    assert Words("zh").can_say("not written yet; only one run returns it")


def test_a_reason_within_a_sentence_is_translated_too() -> None:
    text = "no result could be compared: only one run returns it"
    assert Words("zh").sentence(text) == "没有结果可以比较：只有一次运行返回它。"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("the results differ", "The results differ."),
        ("What is this?", "What is this?"),
        ("q_proj alone differs", "q_proj alone differs."),
        ("a gap of 0.5", "A gap of 0.5."),
        ("", ""),
    ],
)
def test_a_sentence_begins_with_a_capital_and_ends_with_a_stop(text: str, sentence: str) -> None:
    assert Words("en").sentence(text) == sentence


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match="language 'fr'; expected one of en, zh"):
        Words("fr")


def outcomes_in_the_source() -> set[tuple[str, str]]:
    """(probe, outcome) of every result that a probe makes; what a name stands for is looked up in its function."""
    found: set[tuple[str, str]] = set()
    for path in Path(forkpoint.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
                if ast.unparse(call.func) == "ProbeResult" and isinstance(call.args[0], ast.Constant):
                    outcome = call.args[1]
                    sources = [outcome]
                    if isinstance(outcome, ast.Name):
                        sources = [s for s in ast.walk(function) if _assigns(s, outcome.id)]
                    texts = (c.value for s in sources for c in ast.walk(s) if isinstance(c, ast.Constant))
                    found |= {(str(call.args[0].value), text) for text in texts if isinstance(text, str)}
    return found


def _assigns(statement: ast.AST, name: str) -> bool:
    return isinstance(statement, ast.Assign) and name in ast.unparse(statement.targets[0])


def test_every_outcome_of_a_probe_has_words() -> None:
    found = outcomes_in_the_source()
    assert len(found) >= 15
    missing = [f"outcome.{p}.{o}" for p, o in sorted(found) if f"outcome.{p}.{o}" not in english.PHRASES]
    assert missing == []
    assert {f"probe.{probe}" for probe, _ in found} <= english.PHRASES.keys()
