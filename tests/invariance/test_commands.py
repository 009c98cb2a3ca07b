"""`--invariant` and `forkpoint fix`, with models on the disk."""

import json

import pytest
from tests.architectures import ARCHITECTURES
from tests.models.test_models import word_tokenizer

from forkpoint.cli import main
from forkpoint.cli.asking import INVARIANT_NOTE

PROMPT = ("-p", "the cat sat on the mat and the cat sat on the mat and sat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def saved(name: str) -> str:
        path = tmp_path_factory.mktemp(name)
        ARCHITECTURES[name].build(attention=ARCHITECTURES[name].attentions[-1]).save_pretrained(path)
        word_tokenizer(eos_token="</s>", pad_token="<pad>").save_pretrained(path)
        return str(path)

    return saved


@pytest.fixture(scope="module")
def llama(folder):
    return folder("llama")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    "question",
    [
        ("padding", "--pad-to", "40", "--side", "left"),
        ("batch", "--size", "5"),
        ("cache", "--split", "3"),
        ("packed", "-p", "a dog", "-p", "two dogs and a cat"),
        ("repeat",),
    ],
)
def test_fix_proves_that_the_difference_is_gone(llama, question, tmp_path, capsys):
    name, *own = question
    file = tmp_path / "both.json"
    assert run("fix", name, llama, *PROMPT, *own, "--json", str(file)) == 0
    both = json.loads(file.read_text())
    results = [
        [one["result"] for one in given["prompts"]] if "prompts" in given else [given]
        for given in both.values()
    ]
    assert list(both) == ["as_it_is", "invariant"]
    assert {one["verdict"]["kind"] for one in results[1]} == {"identical"}
    assert all(INVARIANT_NOTE in one["notes"] for one in results[1])
    out = capsys.readouterr().out
    assert f"forkpoint {name} " in out.replace("\n", " ") and "--invariant" in out


def test_a_question_asked_invariantly(llama, tmp_path):
    file = tmp_path / "result.json"
    assert run("padding", llama, *PROMPT, "--pad-to", "40", "--invariant", "--json", str(file)) == 0
    told = json.loads(file.read_text())
    assert told["verdict"]["kind"] == "identical"
    assert INVARIANT_NOTE in told["notes"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (("attention", "--against", "eager"), "no layout-invariant form"),
        (("compile", "--backend", "eager"), "compiled"),
        (("autocast",), "autocast"),
    ],
)
def test_what_takes_the_invariance_away_is_refused(llama, question, words, capsys):
    name, *own = question
    assert run(name, llama, *PROMPT, *own, "--invariant") == 2
    assert words in capsys.readouterr().err


def test_fix_names_what_stands_in_the_way(folder, capsys):
    assert run("fix", "padding", folder("mamba"), *PROMPT, "--pad-to", "20") == 2
    out, err = capsys.readouterr()
    assert "convolution at modeling_mamba.py" in err
    assert "pad" in out


def test_an_audit_of_a_model(llama, tmp_path, capsys):
    file = tmp_path / "audit.json"
    assert run("audit", llama, "--longest", "9", "--invariant", "--json", str(file)) == 0
    assert "No layout that was tried changes a bit" in capsys.readouterr().out
    assert json.loads(file.read_text())["holds"] is True
    assert run("audit", llama, "--longest", "9") == 1
    assert "Breaks: " in capsys.readouterr().out
