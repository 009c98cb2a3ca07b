"""`forkpoint sweep`: the questions of a file, what is refused before anything is asked, how one is asked, and what comes out."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer

import forkpoint
from forkpoint.auditing.layouts import Model, _ways
from forkpoint.auditing.record import Audit, Break
from forkpoint.cli import main, swept
from forkpoint.cli.swept import QUESTIONS, answer, cells_of
from forkpoint.models import LoadedModel
from forkpoint.result import VerdictKind
from forkpoint.sweeps.answer import Sweep
from forkpoint.sweeps.cells import Cell, CellOutcome
from forkpoint.sweeps.rows import rows_of

ONE = {"model": "demo", "prompt": "Hello", "ask": "padding"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, twice."""
    path = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        ARCHITECTURES["llama"].build(attention="sdpa").save_pretrained(path / name)
        word_tokenizer().save_pretrained(path / name)
    return path


def given(data):
    return [(cell.question, cell.given) for cell in cells_of(data, "file")]


# --- what is asked -------------------------------------------------------------------------------------------


def test_each_entry_is_tried_with_each_of_the_others():
    data = {
        "model": ["a", "b"], "prompt": ["Hi", ["You", "there"]], "dtype": "float32",
        "question": [{"ask": "padding", "pad_to": [8, 9]}, {"ask": ["packed", "batch"], "model": "c"}],
    }  # fmt: skip
    found = given(data)
    padding = [one for question, one in found if question == "padding"]
    assert [(one["model"], one["prompt"], one["pad-to"]) for one in padding] == [
        (model, prompt, pad) for model in "ab" for prompt in (["Hi"], ["You", "there"]) for pad in (8, 9)
    ]
    assert {one["dtype"] for _, one in found} == {"float32"}
    rest = [(question, one["model"], one["prompt"]) for question, one in found[8:]]
    assert rest == [
        (name, "c", prompt) for name in ("packed", "batch") for prompt in (["Hi"], ["You", "there"])
    ]


def test_a_question_that_stands_there_twice_is_asked_once():
    assert len(given({**ONE, "prompt": ["Hello", "Hello"], "question": [{}, {"ask": "padding"}]})) == 1


def test_a_name_may_be_a_number():
    (cell,) = cells_of({**ONE, "model": 7, "revision": 2, "pad-to": 9}, "file")
    assert (cell.given["model"], cell.given["revision"], cell.given["pad-to"]) == ("7", "2", 9)
    (row,) = rows_of(cell, CellOutcome(reason="none"))
    assert (row.model, row.revision, row.options) == ("7", "2", '{"pad-to": 9}')


def test_prompts_of_a_file_are_questions_each(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    found = given(
        {"model": "demo", "prompts": str(tmp_path / "prompts.txt"), "prompt": "zero", "ask": "cache"}
    )
    assert [one["prompt"] for _, one in found] == [["zero"], ["one"], ["two"]]


def test_options_that_may_be_given_again_take_a_list_for_each_question():
    (one,) = given({**ONE, "ask": "engines", "engine-arg": [["a=1", "b=2"]]})
    assert one[1]["engine-arg"] == ["a=1", "b=2"]


def test_another_version_is_another_question(monkeypatch):
    (cell,) = cells_of(ONE, "file")
    assert list(cell.versions) == ["forkpoint", "torch", "transformers"] and all(cell.versions.values())
    monkeypatch.setattr(swept, "version", lambda name: "0.0")
    assert cells_of(ONE, "file")[0].key != cell.key


def test_a_value_is_no_option():
    (cell,) = cells_of({**ONE, "model": "--trust-remote-code", "prompt": "--help"}, "file")
    params = swept._context(cell.question, cell.given).params
    assert (params["model"], params["prompt"], params["trust_remote_code"]) == (
        "--trust-remote-code",
        ["--help"],
        False,
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_can_be_described(question):
    more = {"models": {"other": "demo"}, "embed": {"texts": "texts.txt"}}.get(question, {})
    one = {"model": "demo", "ask": question, **more}
    (cell,) = cells_of(one if question in ("embed", "audit") else {**one, "prompt": "Hello"}, "file")
    assert cell.question == question


# --- what is refused -----------------------------------------------------------------------------------------


MISSING = [
    ('prompt = "x"\nask = "padding"', "FILE without model for padding; expected model = …"),
    ('model = "demo"\nask = "padding"', "FILE without prompt for padding; expected prompt = …"),
    ('model = "demo"\nprompt = "x"', 'FILE with a question without ask; expected ask = "padding"'),
    ('model = "demo"\nprompt = "x"\nask = "models"', "FILE without other for models; expected other = …"),
    ('model = "demo"\nask = "embed"', "FILE without texts for embed; expected texts = …"),
    ("", 'FILE with a question without ask; expected ask = "padding"'),
    ("ask =", "FILE can't be read: Invalid value"),
]
WRONG = [
    ('ask = "pading"', "FILE with ask = 'pading'; expected one of padding, batch, cache, "),
    ("ask = [[1]]", "FILE with ask = [1]; expected one of padding, "),
    ("ask = []", "FILE with ask = []; expected an entry at least"),
    ("question = []", "FILE without a question; expected one at least"),
    (
        'question = "padding"',
        "FILE with question = 'padding'; expected tables, each with [[question]] above it",
    ),
    ("pad-too = 3", "FILE with the key 'pad-too' for padding; expected one of all-sources, attn, "),
    ("size = 3", "FILE with the key 'size' for padding; expected one of all-sources, attn, "),
    ("trust-remote-code = true", "FILE with the key 'trust-remote-code' for padding; expected one of "),
    ('json = "x.json"', "FILE with the key 'json' for padding; expected one of "),
    ("pad-to = []", "FILE with pad-to = [] for padding; expected an entry at least"),
    ('pad-to = [8, "x"]', "FILE with pad-to = 'x' for padding: "),
    ("pad-to = [8, 0]", "FILE with pad-to = 0 for padding: "),
    (
        "pad-to = 8\npad_to = 9",
        "FILE with both pad_to and pad-to; expected one of the two",
    ),
    ('side = "up"', "FILE with side = 'up' for padding: "),
    ('no-probes = "yes"', "FILE with no-probes = 'yes' for padding; expected true or false"),
    ("dtype = 1979-05-27", "; expected a text or a number"),
    ("prompt = [3]", "FILE with prompt = [3] for padding; expected a text, or a list of texts"),
    ("prompt = [[]]", "FILE with prompt = [[]] for padding; expected an entry at least"),
    ('model = ["demo", "./none"]', "FILE with model = './none'; expected a folder or file that is there"),
    (f'model = "./{"x" * 300}"', "x'; expected a folder or file that is there"),
    ('prompts = "none.txt"', "--prompts none.txt can't be read"),
    ("prompts = 3", "FILE with prompts = 3; expected a file with one prompt a line"),
    (
        'ask = "embed"',
        "FILE with the key 'prompt' for embed; expected one of all-sources, attn, batch-size, ",
    ),
]
"""Added to a file that is sound without it, or in the place of what that has."""


def in_place(text):
    """The sound file with a line of another in it."""
    key = text.partition(" =")[0]
    return "\n".join([*(f"{name} = {json.dumps(value)}" for name, value in ONE.items() if name != key), text])


@pytest.mark.parametrize(("text", "said"), [*MISSING, *((in_place(text), said) for text, said in WRONG)])
def test_what_can_not_be_used_is_one_line_before_anything_is_asked(tmp_path, capsys, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text(text)
    monkeypatch.setattr(swept, "ask_cells", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "FILE", "--out", "out"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("forkpoint: ") and said in err
    assert not (tmp_path / "out").exists()


def test_a_folder_has_to_be_named_where_the_file_has_no_suffix(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(tmp_path / "asked")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("asked without a suffix; expected --out DIR\n")


def test_a_table_of_python_is_named_by_its_argument(tmp_path):
    with pytest.raises(
        forkpoint.InputError, match=r"questions with the key 'size' for padding; expected one of"
    ):
        forkpoint.sweep({**ONE, "size": 3}, tmp_path / "out")


DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", ["sweeps.md", "recipes.md"])
def test_the_files_in_the_documents_can_be_asked(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("Hello\n")
    for name in ("my-model", "my-other-model"):
        (tmp_path / name).mkdir()
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    found = [cells_of(tomllib.loads(block), page) for block in blocks]
    if page == "sweeps.md":
        assert f"  {len(found[0])} questions: " in text


def test_the_documents_name_every_question():
    text = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    listed = text.partition("`ask` names the command: ")[2].partition(".\n")[0]
    assert re.findall(r"`(\w+)`", listed) == list(QUESTIONS)


# --- how one is asked ----------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch):
    """How often a model is loaded, instead of loading; questions that give no answer."""
    loads = []

    def load(name, **options):
        loads.append((name, options["dtype"]))
        return LoadedModel(name, "tokenizer", [])

    def refuse(model, *_, **options):
        raise forkpoint.InputError(f"no answer of {model}") if model == "bad" else ZeroDivisionError

    monkeypatch.setattr(forkpoint, "load", load)
    monkeypatch.setattr(forkpoint, "repeat", refuse)
    monkeypatch.setattr(swept, "_LAST", {})
    return loads


def test_what_can_not_be_answered_has_its_reason(loaded, capsys):
    bad = answer(Cell("repeat", {"model": "bad", "prompt": ["x"]}))
    assert (bad.status, bad.document, bad.reason) == (None, None, "no answer of bad")
    assert answer(Cell("repeat", {"model": "m", "prompt": ["x"]})).reason == "ZeroDivisionError"
    assert loaded == [("bad", None), ("m", None)]


def test_a_model_is_loaded_once_and_no_two_are_kept(folder, monkeypatch):
    load, loads = forkpoint.load, []

    def counted(name, **options):
        assert not swept._LAST  # the last one has gone before the next one comes
        loads.append(name)
        return load(name, **options)

    monkeypatch.setattr(forkpoint, "load", counted)
    monkeypatch.setattr(swept, "_LAST", {})
    one, two = (str(folder / name) for name in ("one", "two"))
    for model, prompt in ((one, "w5 w6"), (one, "w7"), (two, "w5 w6"), (one, "w5 w6")):
        found = answer(Cell("repeat", {"model": model, "prompt": [prompt], "no-probes": True}))
        assert (found.status, found.document["verdict"]["kind"]) == (0, "identical")
        assert found.document["call"] == f"forkpoint repeat {model} --no-probes"
    assert loads == [one, two, one]
    assert len(swept._LAST) == 1


def test_code_that_a_model_brings_along_is_run_only_if_the_command_says_so(loaded, monkeypatch):
    seen = []
    monkeypatch.setattr(
        forkpoint, "load", lambda name, **options: seen.append(options["trust_remote_code"]) or 1 / 0
    )
    cell = Cell("repeat", {"model": "m", "prompt": ["x"]})
    answer(cell)
    swept._trusting(cell)
    assert seen == [False, True]


def test_an_audit_has_a_row_for_each_break(folder, monkeypatch):
    monkeypatch.setattr(swept, "_LAST", {})
    cell = Cell("audit", {"model": str(folder / "one"), "longest": 3, "invariant": True})
    outcome = answer(cell)
    assert (outcome.status, outcome.reason) == (0, "")
    (row,) = rows_of(cell, outcome)
    assert (row.question, row.verdict, row.status, row.setting, row.max_abs) == ("audit", None, 0, "", 0.0)
    found = Break("batch", 3, 2, "words", 1, 8, 0.5, "model/add (a.py:1)")
    for audit, expected in (
        (
            Audit("m", 4, (found, replace(found, kind="steps"))),
            [("batch, length 3", 1, 0.5), ("steps, length 3", 1, 0.5)],
        ),
        (Audit("m", 4, (), unfinished="lengths from 9 on"), [("without lengths from 9 on", 0, 0.0)]),
    ):
        rows = rows_of(cell, CellOutcome(audit.status, audit.to_dict()))
        assert [(row.setting, row.status, row.max_abs) for row in rows] == expected
        assert "other bits" in str(Sweep("out", rows, 1)) or audit.holds
        assert "same bits" in str(Sweep("out", rows, 1)) or not audit.holds


def test_an_audit_that_tried_nothing_is_no_answer():
    """So it is asked again, as whatever has no answer."""
    cell = Cell("audit", {"model": "m", "seconds": 0.0})
    unfinished = "lengths from 2 on, for want of time"
    (row,) = rows_of(cell, CellOutcome(1, Audit("m", 0, (), unfinished=unfinished).to_dict()))
    assert (row.status, row.reason) == (None, f"no layout was tried: {unfinished}")
    sweep = Sweep("out", (row,), 1)
    assert (sweep.status, sweep.unanswered) == (3, (row,))
    assert "no answer" in str(sweep)


def test_the_layouts_of_an_audit_have_their_chinese(folder):
    """Of each kind that an audit of a model varies, what was not tried, and why nothing was."""
    model, _ = forkpoint.load(str(folder / "one"))
    subject = Model(model, 3, 0)
    row = subject.row(3)
    kinds = {way.of(row).kind for way in _ways(subject, model, [1, 2, 3])} | {"again"}
    assert len(kinds) > 4
    found = tuple(Break(kind, 3, 2, "words", 1, 8, 0.5) for kind in sorted(kinds))
    late = "lengths from 9 on, for want of time"
    audits = (Audit("m", 4, found), Audit("m", 4, (), unfinished=late), Audit("m", 0, (), unfinished=late))
    cell = Cell("audit", {"model": "m"})
    rows = tuple(row for audit in audits for row in rows_of(cell, CellOutcome(audit.status, audit.to_dict())))
    text = Sweep("out", rows, 3).to_text(lang="zh")
    assert "length" not in text
    assert text.count("长度") >= len(rows)


# --- all of it -----------------------------------------------------------------------------------------------


def test_a_sweep(folder, tmp_path, monkeypatch, capsys):
    """From the file to the table, in a process of its own: two questions that are answered, and one that can't be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.toml").write_text(
        f'model = "{folder / "one"}"\nprompt = ["w5 w6 w7", "w8"]\nask = "cache"\n[[question]]\n[[question]]\nask = "repeat"\n'
    )
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "some.toml", "--json", "some.json", "--workers", "1"])
    printed = capsys.readouterr().out
    assert ended.value.code == 3
    assert "4 questions: identical 2, rounding 1, no answer 1" in printed.replace(
        "identical 3, no", "identical 2, rounding 1, no"
    )
    assert "a prompt of 1 token; expected 2 or more, to be given in steps" in " ".join(printed.split())
    found = forkpoint.Sweep.from_dict(json.loads((tmp_path / "some.json").read_text()))
    assert [(row.question, row.prompt) for row in found.rows] == [
        ("cache", "w5 w6 w7"), ("cache", "w8"), ("repeat", "w5 w6 w7"), ("repeat", "w8"),
    ]  # fmt: skip
    assert [row.verdict for row in found.rows[2:]] == [VerdictKind.IDENTICAL] * 2
    assert found.call == "forkpoint sweep some.toml --workers 1"
    result = forkpoint.Result.from_json(tmp_path / "some" / "results" / f"{found.rows[2].cell}.json")
    assert result.verdict.kind is VerdictKind.IDENTICAL
    asked = {"model": str(folder / "one"), "prompt": ["w5 w6 w7", "w8"], "ask": "repeat"}
    again = forkpoint.sweep(asked, "some")
    assert (again.cells, again.kept, again.rows) == (2, 2, found.rows[2:])
    with pytest.raises(SystemExit) as ended:
        main(["report", "some.json"])
    assert ended.value.code == 3
    assert "4 questions" in capsys.readouterr().out
