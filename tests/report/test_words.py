"""Every phrase exists in both languages, and every public slug has one."""

from __future__ import annotations

import ast
import importlib
import re
import string
from functools import cache
from pathlib import Path

import pytest

import forkpoint
from forkpoint.errors import InputError
from forkpoint.report.catalogue import chinese, english
from forkpoint.report.words import LANGUAGES, Words
from forkpoint.result import MECHANISMS, VerdictKind

PROBES = [
    "nan",
    "repeat",
    "inputs",
    "precision",
    "content",
    "patch",
    "replay",
    "coupling",
    "positions",
    "pooling",
    "packing",
    "cache",
]
CATALOGUES = sorted(Path(forkpoint.__file__).parent.glob("report/catalogue/*/*.py"))
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
    is_name = key in {"run.a", "run.b", "replay.allclose"} or not phrase.strip("，：；。（）{tex}")
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


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_no_key_stands_in_two_places(language: str) -> None:
    """Of two the later would count, wherever the earlier was written for."""
    kinds: dict[str, list[str]] = {}
    for path in CATALOGUES:
        if path.parent.name != language:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict):
                keys = [ast.literal_eval(key) for key in node.value.keys if key is not None]
                kinds.setdefault(ast.unparse(node.target), []).extend(keys)
    assert kinds.keys() >= {"PHRASES"}
    for keys in kinds.values():
        assert sorted(keys) == sorted(set(keys))


def test_each_file_of_phrases_is_in_both_languages() -> None:
    files = {path.parent.name: {} for path in CATALOGUES}
    for path in CATALOGUES:
        module = importlib.import_module(f"forkpoint.report.catalogue.{path.parent.name}.{path.stem}")
        if path.stem != "__init__" and hasattr(module, "PHRASES"):
            files[path.parent.name][path.stem] = set(module.PHRASES)
    assert files["english"] == files["chinese"]


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


@cache
def texts_in_the_source() -> frozenset[str]:
    """Every text that the package writes, but for the catalogues; of one with placeholders the parts between them."""
    found: set[str] = set()
    for path in Path(forkpoint.__file__).parent.rglob("*.py"):
        if path not in CATALOGUES:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            found |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    for path in Path(forkpoint.__file__).parent.rglob("*.jinja"):
        found |= set(re.findall(r"words\('([\w.]+)'", path.read_text(encoding="utf-8")))
    return frozenset(found)


@cache
def written() -> str:
    return "\n".join(texts_in_the_source())


def test_every_phrase_is_used() -> None:
    """A key stands in the source whole, or its group is looked up by a slug that does."""
    texts = texts_in_the_source()
    by_slug = (
        "screening",
        "replay",
        "tests",
        "help",
        "check",
        "held",
        "column",
        "factors",
        "setting",
        "generation",
        "label",
        "summary",
        "sweep",
        "kind",
        "verdict",
        "meaning",
        "mechanism",
        "advice",
        "probe",
        "outcome",
        "status",
        "design",
        "ops",
        "unfinite",
        "matched",
        "module_matched",
    )
    unused: list[str] = []
    for key in english.PHRASES:
        group, _, slug = key.partition(".")
        slugs = {slug.partition(".")[2]} if group == "outcome" else {slug, slug.removeprefix("kind.")}
        if key not in texts and not (group in by_slug and slugs & texts):
            unused.append(key)
    assert unused == []


def test_every_probe_that_has_words_gives_evidence() -> None:
    """A word like `length` stands in the source anyway: what counts is that evidence is called so."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(forkpoint.__file__).parent.rglob("*.py")
    )
    named = re.findall(r'ProbeResult\(\s*"(\w+)"|replace\(\w+, name="(\w+)"', source)
    groups = {key.split(".")[1] for key in english.PHRASES if key.startswith(("probe.", "outcome."))}
    assert groups <= {name for pair in named for name in pair}


@pytest.mark.parametrize("sentence", chinese.SENTENCES)
def test_a_sentence_that_is_translated_is_written_somewhere(sentence: str) -> None:
    """Four words of it in a row, or all that there are between two placeholders."""
    parts = [part.split() for part in re.split(r"\{\w+\}", sentence)]
    runs = [" ".join(words[i : i + 4]) for words in parts if words for i in range(max(1, len(words) - 3))]
    assert any(run.strip(" ,;:.()`") in written() for run in runs)


def test_singular_and_plural() -> None:
    assert Words("en").many("counts.values", 1) == "1 value"
    assert Words("en").many("counts.values", 0) == "0 values"
    assert Words("zh").many("counts.values", 2000) == "2,000 个数值"


def test_reasons_that_are_joined_are_translated_apart() -> None:
    text = "not written yet; the moon is full"
    assert Words("zh").phrase(text) == "尚未写入；the moon is full"
    assert not Words("zh").can_say(text)
    assert Words("zh").can_say("not written yet; the runs share no coordinate of it")


def test_a_reason_within_a_sentence_is_translated_too() -> None:
    text = "no result could be compared: the runs share no coordinate of it"
    assert Words("zh").sentence(text) == "没有结果可以比较：两次运行没有它的共有坐标。"


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
