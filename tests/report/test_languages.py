"""What commands, reports and the pytest plugin say is in both languages: the source is searched for what the catalogue lacks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.report.test_words import placeholders

import forkpoint
from forkpoint.cli import main
from forkpoint.cli.app import app
from forkpoint.cli.language import OF_TYPER
from forkpoint.errors import InputError
from forkpoint.report.catalogue import chinese, english
from forkpoint.report.words import Words

ROOT = Path(forkpoint.__file__).parent
ZH = Words("zh")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PROSE = re.compile(r"[A-Za-z]{2,}[,:]? [a-z]{2,}")
VALUE = "7"
"""What stands in the place of whatever is put into a text."""
PARTS = (
    "report",
    "cli",
    "pytest_plugin",
    "auditing",
    "screening",
    "questions",
    "models",
    "support",
    "sweeps",
)
ERRORS = ("InputError", "ModelError", "ShelfError")

# ---------------------------------------------------------------------- help


def helps() -> set[str]:
    """Every paragraph of every command's help."""
    found: set[str] = set()

    def see(command: Any) -> None:
        texts = [command.help, command.epilog, *(getattr(one, "help", None) for one in command.params)]
        found.update(" ".join(part.split()) for text in texts if text for part in text.split("\n\n"))
        for one in getattr(command, "commands", {}).values():
            see(one)

    see(typer.main.get_command(app))
    return found


def test_every_help_text_has_its_chinese() -> None:
    assert sorted(text for text in helps() if not CHINESE.search(ZH.help(text))) == []


def test_no_chinese_help_is_left_of_a_text_that_is_gone() -> None:
    assert set(chinese.HELP) - helps() == {"Show this message and exit."}  # typer's own


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    said = capsys.readouterr()
    return ended.value.code, said.out + said.err


def commands() -> Iterator[tuple[str, ...]]:
    """The words of each command."""

    def names(command: Any, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield above
        for name, one in getattr(command, "commands", {}).items():
            yield from names(one, (*above, name))

    yield from names(typer.main.get_command(app), ())


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_the_help_of_a_command_in_chinese(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sentence of it is English, and none is cut off where a column ends."""
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    monkeypatch.setenv("COLUMNS", "80")
    status, text = shown(capsys, *command, "--help")
    assert status == 0
    assert "…" not in text.replace("[ARGS]…", "")
    for line in text.splitlines():
        said = re.sub(r"例：.*|用法：.*|'[^']*'|`[^`]*`", "", line)
        assert not re.search(r"\b[a-z]+ (?:the|a|of|is|and|by|to|in) \b", said), line


def test_what_lang_says_goes_before_the_locale(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert "Where the padding goes." in shown(capsys, "padding", "--lang", "en", "--help")[1]
    monkeypatch.setenv("LC_ALL", "C")
    assert "填充放在哪一侧" in shown(capsys, "padding", "--help", "--lang=zh")[1]
    assert "Where the padding goes." in shown(capsys, "padding", "--help")[1]  # and nothing of it stays


def test_typer_has_the_constants_that_are_translated() -> None:
    from typer import rich_utils

    for name, key in OF_TYPER.items():
        assert getattr(rich_utils, name) == Words("en")(key, value="{}")


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("padding",), "forkpoint: 缺少参数 'MODEL'。 本地文件夹、GGUF 文件、hub 上的名称，或 demo。"),
        (("padding", "demo"), "forkpoint: 没有提示词；应为 -p PROMPT，或 --prompts FILE 且文件里有一行"),
        (("padding", "demo", "--pad"), "forkpoint: 没有选项 --pad"),
        (("frobnicate",), "forkpoint: 没有命令 'frobnicate'。 (forkpoint --help)"),
        (("padding", "demo", "-p"), "forkpoint: 选项 '-p' 需要一个值。"),
        (("padding", "demo", "x"), "forkpoint: 多出了参数（x）"),
        (("padding", "demo", "--side", "up"), "forkpoint: '--side' 的值无效：'up' 不是 'left', 'right' 之一。"),
        (("padding", "demo", "--pad-to", "0"), "forkpoint: '--pad-to' 的值无效：应大于或等于 1"),
        (("padding", "demo", "--pad-to", "x"), "forkpoint: '--pad-to' 的值无效：应为整数"),
        (("compare", "a"), "forkpoint: 缺少参数 'TRACE_B'。"),
        ((), "forkpoint: 没有给出命令"),
        (("padding", "./no-such-model", "-p", "x"), "没有文件或文件夹 ./no-such-model；应为 文件夹、GGUF 文件、hub"),
        (("report", "no-such.json"), "应为 to_json 写出的结果，格式版本"),
        (
            ("padding", "demo", "-p", "x", "--html", "/no/such/x.html"),
            "没有文件夹 /no/such；应为 已有文件夹中的文件（mkdir -p /no/such）",
        ),
    ],
)  # fmt: skip
def test_an_error_in_chinese(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    status, text = shown(capsys, *arguments)
    assert status == 2
    assert said in text


def of_source(path: Path) -> tuple[ast.Module, set[int]]:
    """A file, and which of its texts are docstrings or parts of others."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(part)
        for node in ast.walk(tree)
        for part in (
            [node.value] if isinstance(node, ast.Expr)
            else ast.walk(node) if isinstance(node, ast.JoinedStr)
            else ()
        )
        if part is not node
    }  # fmt: skip
    return tree, inner


def text_of(node: ast.AST) -> str | None:
    """The text of a literal, with a value wherever something is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else VALUE for one in node.values)
    return None


def sources(*parts: str) -> Iterator[Path]:
    for part in parts:
        for path in sorted((ROOT / part).rglob("*.py")):
            if "catalogue" not in path.parts:
                yield path


def parts_of_errors() -> Iterator[tuple[str, str]]:
    """Where an error is made, and each literal part of it."""
    for path in sources("cli", "models", "questions", "report", "support", "auditing", "screening", "sweeps"):
        for node in ast.walk(of_source(path)[0]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                for text in filter(None, map(text_of, node.args)):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


UNSAID = {
    f"{VALUE} with a line in it",
    f"{VALUE} row{VALUE} of {VALUE} tokens, whose results take {VALUE} GiB",
    f"a batch of {VALUE} for {VALUE} prompt{VALUE}",
    'one object a line, {"token_ids": [...], "logprobs": [...]}',
}
"""One that no template reads back, and some that have no value but a number or an ending there."""


@pytest.mark.parametrize(("place", "text"), list(parts_of_errors()))
def test_every_error_has_its_chinese(place: str, text: str) -> None:
    assert text in UNSAID or ZH.error(text) is not None, place


@pytest.mark.parametrize(("source", "translation"), list(chinese.ERRORS.items()))
def test_a_translated_error_keeps_what_was_given(source: str, translation: str) -> None:
    """Paths and figures; numbers and names that the system adds may go."""
    assert placeholders(source) - placeholders(translation) <= {"n", "at", "name", "error"}
    assert placeholders(translation) <= placeholders(source)
    values = {name: "1,671" if name in "nm" else f"<{name}>" for name in placeholders(source)}
    assert ZH.error(source.format(**values)) == translation.format(**values)
    assert Words("en").error(source.format(**values)) == source.format(**values)


def test_an_error_in_a_report_is_in_its_language() -> None:
    """A row of `factors` has the text of an error."""
    error = InputError("dtype bfloat16 for a model in bfloat16", "another one", "--device cpu")
    assert (
        ZH.message(str(error)) == "模型为 bfloat16，而选择的数据类型是 bfloat16；应为 另一种（--device cpu）"
    )
    assert Words("en").message(str(error)) == str(error)
    assert ZH.message("nobody knows this; expected another one") == "nobody knows this; expected another one"


REASON = "mat1 and mat2 can't be multiplied (3x4 and 5x6). Got float; and more"
"""What torch may say of what it refuses."""


def refusals() -> Iterator[tuple[str, list[str]]]:
    """Where something is tried, and what is said if it is refused."""
    for path in sources("questions"):
        for node in ast.walk(of_source(path)[0]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tried":
                yield f"{path.relative_to(ROOT)}:{node.lineno}", [text_of(one) or "" for one in node.args[1:]]


@pytest.mark.parametrize(("place", "texts"), list(refusals()))
def test_a_refusal_is_said_in_chinese_but_for_its_reason(place: str, texts: list[str]) -> None:
    given, expected, *hint = texts
    error = InputError(f"{given} ({REASON})", expected, *hint)
    said = ZH.message(str(error))
    assert said == ZH.joined(f"{given} ({REASON})", expected, "".join(hint)), place
    assert f"（{REASON}）" in said, place
    assert not PROSE.search(said.replace(REASON, "")), place


# ---------------------------------------------------------------------- all that is said

NOT_SAID = {
    "cli/replay.py": {"called with other arguments: "},  # the beginning of what a scene holds
    "cli/script.py": {"python script.py", f"python script.py {VALUE}"},  # a command
    "cli/configured.py": {"one of "},  # the beginning of a text
    "cli/options.py": {"-p PROMPT or --prompts FILE", f"{VALUE} with a line in it"},
    "cli/swept.py": {"one of "},
    "cli/reading.py": {"it has no prompts", "prompts is no list of prompts with their results"},  # behind the file's name
    "models/loading.py": {"one of "},
    "questions/asking.py": {"one of "},
    "questions/compiled.py": {f"{VALUE} module{VALUE} handed to torch.compile, each by itself, and compared by inputs and outputs; "},
    "questions/checkpoints.py": {"first model", "second model"},  # replaced by what the models are called
    "questions/limits.py": {f"{VALUE} row{VALUE} of {VALUE} tokens, whose results take {VALUE} GiB"},
    "questions/generate.py": {"within rounding"},  # of a label
    "questions/answers.py": {f"<Generation: the same {VALUE} tokens>"},  # a repr
    "questions/prompts.py": {"token id", "pad token id"},
    "report/answer.py": {"the runs differ in exact arithmetic: "},  # is left out
    "report/export.py": {"coordinates that differ"},  # of a format
    "screening/screen.py": {f"the log-probabilities of B are those of A, {VALUE} positions {VALUE}"},
    "sweeps/answer.py": {f"<Sweep: {VALUE} questions, {VALUE} of them without an answer>", "a sweep is neither true nor false: ask sweep.status or its rows"},
    "screening/answer.py": {f"<Screening: {VALUE}, mean gap {VALUE} nats over {VALUE} tokens>", "a screening is neither true nor false: ask screening.agrees or screening.cause"},
    "screening/reading.py": {'one object a line, {"token_ids": [...], "logprobs": [...]}'},
}  # fmt: skip
"""English that is not put into a language where it stands."""
OF_PYTHON = (
    "pytest_plugin/settings.py",
    "pytest_plugin/fixture.py",
    "pytest_plugin/__init__.py",
    "questions/mates.py",
)
"""What pytest shows of options and of errors, in English as all that it shows; and texts for other rows of a batch."""
ARE_CODE = re.compile(
    r"^Example: |^forkpoint |^--|^pip install |^<iframe|^not compared$|^only in( a| b)?$|\\b"
)
"""Commands, and words by which records know something."""


def prose() -> Iterator[tuple[str, int, str]]:
    for path in sources(*PARTS):
        name = path.relative_to(ROOT).as_posix()
        tree, inner = of_source(path)
        for node in ast.walk(tree):
            text = text_of(node) if id(node) not in inner else None
            if text and PROSE.search(text) and not ARE_CODE.search(text) and name not in OF_PYTHON:
                yield name, getattr(node, "lineno", 0), text


def test_the_source_says_nothing_that_the_catalogue_lacks() -> None:
    """Two words in a row, wherever they stand in what speaks to people, are a phrase, a help text, a sentence or an error."""
    missing = []
    for name, at, text in prose():
        flat = " ".join(text.split())
        known = flat in chinese.HELP or text in english.PHRASES or text in english.PHRASES.values()
        if not (known or text in NOT_SAID.get(name, ()) or ZH.can_say(text) or ZH.error(text)):
            missing.append(f"{name}:{at}: {text}")
    assert missing == []
    assert sum(1 for _ in prose()) > 150


PROVED = ("mechanisms", "probes", "verdict")
"""Packages that make what a verdict rests on; what they say of it stands in records of these names."""
RECORDS = ("Mechanism", "ProbeResult")
PIECES = {
    f"an outlier in another row makes {VALUE} in higher precision for every token",
    f"whether both runs compute the same {VALUE} could not be told",
    f"{VALUE}, which no known cause explains",
    f"{VALUE}: {VALUE}",
}
"""Sentences whose parts are chosen from English words, each of which the catalogue has whole."""


def said_in_records() -> Iterator[tuple[str, str]]:
    for path in sources(*PROVED):
        for node in ast.walk(of_source(path)[0]):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", None) in RECORDS):
                continue
            for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                for one in (given.body, given.orelse) if isinstance(given, ast.IfExp) else (given,):
                    text = text_of(one)
                    if text and text.count(" ") > 1:
                        yield f"{path.stem}:{one.lineno}", text


def test_what_mechanisms_and_probes_say_is_said_in_chinese() -> None:
    missing = [
        (place, text) for place, text in said_in_records() if text not in PIECES and not ZH.can_say(text)
    ]
    assert missing == []
    assert sum(1 for _ in said_in_records()) > 40


def test_nothing_is_excused_that_is_gone() -> None:
    said = {(name, text) for name, _, text in prose()}
    assert [one for name, texts in NOT_SAID.items() for one in texts if (name, one) not in said] == []
