"""Whatever the documents, the messages and the docstrings name exists: functions, commands, options, files."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import forkpoint as fp
from forkpoint.cli.app import app
from forkpoint.report.catalogue import chinese, english

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SOURCES = sorted((ROOT / "src" / "forkpoint").rglob("*.py"))
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

_FP = re.compile(r"(?<![\w.])fp\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
_MODULE = re.compile(r"(?<![\w./-])forkpoint((?:\.[A-Za-z_]\w*)+)")
_COMMAND = re.compile(r"^\s*(?:\$ )?forkpoint ([^\n]*)")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")

OTHERS_OPTIONS = {
    "--no-deps", "--forkpoint-report", "--forkpoint-sarif", "--forkpoint-github", "--forkpoint-baselines", "--forkpoint-update", "--forkpoint-lang",
}  # fmt: skip
"""Options of other programs: pip's, and pytest's with the plugin (tests/pytest_plugin/test_docs.py holds them against it)."""


def page_texts() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        yield path.name, path.read_text(encoding="utf-8")


def message_texts() -> Iterator[tuple[str, str]]:
    """Every string in the source, docstrings and both catalogues among them."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value
    for catalogue in (english.PHRASES, chinese.PHRASES, chinese.SENTENCES):
        for key, phrase in catalogue.items():
            yield key, f"{key if catalogue is chinese.SENTENCES else ''} {phrase}"


def texts() -> Iterator[tuple[str, str]]:
    yield from page_texts()
    yield from message_texts()


def code(text: str) -> Iterator[str]:
    """What stands in code blocks, line by line, and between backticks."""
    for language, block in _FENCE.findall(text):
        if language != "text":  # what a program printed
            yield from block.splitlines()
    yield from _INLINE.findall(_FENCE.sub("", text))


def missing(look: Callable[[str, str], Iterator[str]]) -> Iterator[str]:
    for where, text in texts():
        yield from look(where, text)


def exists(owner: Any, names: str) -> bool:
    """Whether an attribute of an attribute is there; fields of a dataclass count."""
    for name in names.strip(".").split("."):
        if not hasattr(owner, name):
            return name in getattr(owner, "__dataclass_fields__", {})
        owner = getattr(owner, name)
    return True


def missing_names(where: str, text: str) -> Iterator[str]:
    for names in _FP.findall(text):
        if not exists(fp, names):
            yield f"{where}: fp.{names}"
    for names in _MODULE.findall(text):
        if not _is_module(names) and names.strip(".") not in ("md", "py", "toml"):
            yield f"{where}: forkpoint{names}"


def _is_module(names: str) -> bool:
    """Whether `forkpoint.a.b` is a module, or a name in one."""
    parts = names.strip(".").split(".")
    for cut in range(len(parts), -1, -1):
        try:
            module = importlib.import_module(".".join(["forkpoint", *parts[:cut]]))
        except ImportError:
            continue
        return cut == len(parts) or exists(module, ".".join(parts[cut:]))
    return False


def missing_commands(where: str, text: str) -> Iterator[str]:
    """Commands of forkpoint that are not there, and options that a command has not."""
    for line in code(text):
        found = _COMMAND.match(line)
        if found is None:
            for option in _OPTION.findall(line if line.startswith("--") else ""):
                if option not in OTHERS_OPTIONS and not any(option in options(c) for c in COMMANDS.values()):
                    yield f"{where}: {option}"
            continue
        words = found[1].split("#")[0].split()
        if not words or words[0] in ("…", "--help", "--version", "--install-completion", "--show-completion"):
            words = words[1:]
            known = {option for command in COMMANDS.values() for option in options(command)}
        elif words[0] in COMMANDS:
            command = COMMANDS[words[0]]
            command = getattr(command, "commands", {}).get("".join(words[1:2]), command)
            known = options(command)
        else:
            yield f"{where}: forkpoint {words[0]}"
            continue
        yield from (f"{where}: {line} ({w})" for w in words if _OPTION.fullmatch(w) and w not in known)


def options(command: click.Command) -> set[str]:
    return {"--help", *(name for parameter in command.params for name in parameter.opts)}


def test_names_in_documents_and_messages_exist() -> None:
    assert not list(missing(missing_names))


def test_commands_in_documents_and_messages_exist() -> None:
    assert not list(missing(missing_commands))


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("run inside `with\u00a0fp.unvarying(model):`", ["here: fp.unvarying"]),
        ("`fp.Layout.from_mask` and `fp.compare(a, b)`; `fp.Result.identical`", []),
        ("fp.Layout.from_thin_air", ["here: fp.Layout.from_thin_air"]),
        ("`forkpoint.native.IN_USE` of forkpoint.native", []),
        ("`forkpoint.naive.IN_USE`", ["here: forkpoint.naive.IN_USE"]),
    ],
)
def test_a_name_that_does_not_exist_is_found(text: str, missing: list[str]) -> None:
    assert list(missing_names("here", text)) == missing


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`forkpoint mend MODEL`", ["here: forkpoint mend"]),
        ("```\nforkpoint padding demo --no-such-thing 3  # --remark\n```", 1),
        ("```\nforkpoint padding demo -p Hello --dtype bfloat16\n```", []),
        ("the option `--tongue zh` of it", ["here: --tongue"]),
        ("forkpoint fixes nothing; `forkpoint --help`; `forkpoint … --json FILE`", []),
    ],
)
def test_a_command_that_does_not_exist_is_found(text: str, missing: list[str] | int) -> None:
    found = list(missing_commands("here", text))
    assert len(found) == missing if isinstance(missing, int) else found == missing


def python_blocks() -> Iterator[tuple[str, ast.AST]]:
    for where, text in page_texts():
        for language, block in _FENCE.findall(text):
            if language == "python":
                yield where, ast.parse(block)


def test_calls_in_the_documents_fit_their_functions() -> None:
    calls = 0
    for where, tree in python_blocks():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("fp."):
                function: Any = fp
                for name in ast.unparse(node.func).split(".")[1:]:
                    function = getattr(function, name)
                keywords = {str(k.arg): None for k in node.keywords}
                inspect.signature(function).bind(*node.args, **keywords), where
                calls += 1
    assert calls >= 5


def test_attributes_of_results_in_the_documents_exist() -> None:
    """`result` is what `compare` returned; where the first divergence or the verdict is asked, what they have."""
    parts = {"result": fp.Result, "verdict": fp.Verdict, "first": fp.Divergence, "impact": fp.Impact}
    seen = 0
    for where, text in page_texts():
        for line in code(text):
            for chain in re.findall(r"\bresult((?:\.\w+)+)", line):
                owner: Any = parts["result"]
                for name in chain.strip(".").split("."):
                    assert name in ("json", "to_json") or exists(owner, name), f"{where}: result{chain}"
                    owner = parts.get(name)
                    seen += 1
                    if owner is None:
                        break
    assert seen >= 5


def test_files_variables_and_targets_in_the_documents_exist() -> None:
    source = "\n".join(p.read_text(encoding="utf-8") for p in (*SOURCES, ROOT / "setup.py"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    folders = (ROOT, ROOT / "docs", *(ROOT / "src/forkpoint" / n for n in ("", "capture", "native")))
    for where, text in page_texts():
        for variable in re.findall(r"FORKPOINT_[A-Z_]+", text):
            assert f'"{variable}"' in source, f"{where}: {variable}"
        for extra in re.findall(r"pip install '\.\[(\w+)\]'", text):
            assert extra in extras, f"{where}: {extra}"
        for line in code(text):
            for target in re.findall(r"^make (\w+)", line):
                assert target in targets, f"{where}: make {target}"
            if re.fullmatch(r"[a-z_]+(/|\.py)", line) or re.fullmatch(r"[a-z_]+/[a-z_/]+\.\w+", line):
                assert any((folder / line).exists() for folder in folders), f"{where}: {line}"
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            base = ROOT / "docs" if (ROOT / "docs" / where).exists() and where != "README.md" else ROOT
            assert any((b / link).exists() for b in (base, ROOT / "docs")), f"{where}: {link}"
