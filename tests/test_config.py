"""`--config FILE`: what it takes from a file, what comes first, and what is refused in one line."""

from __future__ import annotations

import pytest

import forkpoint
from forkpoint.cli import main
from forkpoint.models import LoadedModel


@pytest.fixture
def asked(monkeypatch):
    """What reaches `fp.padding`, and how the model is loaded."""
    seen = {}

    def load(name, **options):
        seen["model"], seen["dtype"] = name, options["dtype"]
        return LoadedModel("model", "tokenizer", [])

    def padding(model, tokenizer, prompts, pad_to, side, **options):
        seen.setdefault("prompts", []).extend(prompts)
        seen["pad_to"], seen["side"], seen["options"] = pad_to, side, options
        raise forkpoint.InputError("seen")

    monkeypatch.setattr(forkpoint, "load", load)
    monkeypatch.setattr(forkpoint, "padding", padding)
    return seen


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_options_come_from_a_file_and_those_given_come_first(asked, tmp_path, capsys):
    file = tmp_path / "long.toml"
    file.write_text(
        'model = "./mine"\nprompt = ["Hello", "You"]\npad_to = 20\nside = "left"\nno-probes = true\ndtype = "float16"\n'
    )
    assert run(capsys, "padding", "--config", str(file)) == "forkpoint: seen\n"
    assert (asked["model"], asked["dtype"], asked["prompts"]) == ("./mine", "float16", ["Hello"])
    assert (asked["pad_to"], asked["side"], asked["options"]["probes"]) == (20, "left", False)
    run(capsys, "padding", "demo", "--config", str(file), "-p", "Hi", "--pad-to", "9")
    assert (asked["model"], asked["prompts"], asked["pad_to"]) == ("demo", ["Hello", "Hi"], 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pad-too = 3", "--config FILE with the key 'pad-too'; expected one of all-sources, "),
        ('pad-to = "x"', "Invalid value for '--pad-to'"),
        ('side = "up"', "Invalid value for '--side'"),
        ("pad-to =", "--config FILE can't be read: Invalid value"),
        ('no-probes = "yes"', "--config FILE with no-probes = 'yes'; expected true or false"),
        ("prompt = 3", "--config FILE with prompt = 3; expected a text, or a list of texts"),
        ("dtype = [1]", "--config FILE with dtype = [1]; expected a text or a number"),
        (r'prompts = "a\u0000b"', "; expected a text without NUL characters"),
        ("[table]\na = 1", "with the key 'table'"),
        ('config = "other.toml"', "with the key 'config'"),
        ("trust_remote_code = true", "expected --trust-remote-code on the command line: it runs code"),
    ],
)
def test_what_can_not_be_used_is_one_line(asked, tmp_path, capsys, text, said):
    file = tmp_path / "long.toml"
    file.write_text(text)
    err = run(capsys, "padding", "demo", "-p", "Hi", "--config", str(file)).replace(str(file), "FILE")
    assert said in err
    assert err.count("\n") == 1
    assert "model" not in asked


def test_a_file_that_is_none(asked, tmp_path, capsys):
    assert "can't be read" in run(capsys, "padding", "demo", "--config", str(tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "can't be read" in run(capsys, "padding", "demo", "--config", str(tmp_path / "bytes.toml"))


@pytest.mark.parametrize("command", ["factors", "generate", "embed", "cache", "models"])
def test_every_question_takes_one(command, tmp_path, capsys):
    file = tmp_path / "long.toml"
    file.write_text("nonsense = 1")
    assert "with the key 'nonsense'" in run(capsys, command, "--config", str(file))
