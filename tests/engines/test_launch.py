"""Starting an engine in its own environment: what can't be used is one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.engines.fake import FakeEngine, recorded
from tests.engines.test_comparing import PROMPTS, made

import forkpoint as fp
from forkpoint.cli import main
from forkpoint.engines.launch import interpreter, parse_arguments, run_vllm


def test_an_environment_without_vllm_is_refused() -> None:
    with pytest.raises(fp.InputError, match="which has no vLLM"):
        interpreter(sys.executable)
    with pytest.raises(fp.InputError, match="No such file"):
        interpreter("/nowhere/python")


def test_without_vllm_here_its_python_is_asked_for() -> None:
    with pytest.raises(fp.InputError, match=r"not installed in this environment.*--python PATH"):
        interpreter(None)


@pytest.mark.parametrize("text", ["quantization", "=3", "a-b=1"])
def test_arguments_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(fp.InputError, match="NAME=VALUE"):
        parse_arguments([text])


def test_an_error_of_the_engine_is_said_with_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(
        "#!/bin/sh\necho '[rank0]: ValueError: no such model'\necho bye\nexit 1\n"
    )
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(fp.ModelError, match=r"vLLM ended with an error: ValueError: no such model;"):
        run_vllm(str(tmp_path / "python"), "model", [[1]], tmp_path / "recorded")


def test_the_command_compares_with_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = made("qwen3")
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    folder = recorded(FakeEngine(model), PROMPTS, tmp_path / "r")
    status = run(["engines", str(tmp_path / "model"), "--against", str(folder), "--lang", "zh"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "舍入" in said and "前缀缓存" in said
    assert not any(line for line in said.splitlines() if "given the same inputs" in line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "nowhere"], "vllm, or a folder that an engine was recorded to"),
        (["--engine-arg", "x"], "NAME=VALUE"),
        (["--rename", "x"], "THEIRS=OURS"),
    ],
)
def test_what_can_not_be_used_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["engines", "demo", "-p", "x", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(128)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2").save_pretrained(
        folder
    )
