"""The questions of a sweep, out of a TOML file, and how a worker asks one.

    model = ["./small", "./large"]
    prompt = ["Hello there", "How are you?"]
    dtype = ["float32", "bfloat16"]

    [[question]]
    ask = "padding"
    pad-to = 50
    side = ["left", "right"]

A key is an option without its dashes, or an argument, as in the file of `--config`; of a list, each entry is tried in turn with
each of the others. What stands at the top is of every question. A question is asked as the command of its name asks it.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import traceback
from functools import cache
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import typer

from forkpoint import __version__
from forkpoint.cli import options
from forkpoint.cli.audit import audit
from forkpoint.cli.configured import TYPED as TRUST
from forkpoint.cli.configured import key_of, read_toml, value_of
from forkpoint.cli.embed import embed
from forkpoint.cli.engines import engines
from forkpoint.cli.factors import factors
from forkpoint.cli.generate import generate
from forkpoint.cli.loading import CACHE
from forkpoint.cli.questions import COMMANDS
from forkpoint.cli.spoken import TYPED
from forkpoint.errors import ForkpointError, InputError
from forkpoint.support.files import is_path
from forkpoint.support.progress import SILENT
from forkpoint.sweeps.cells import Cell, CellOutcome, described
from forkpoint.sweeps.sweeping import ask_cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from forkpoint.models.loading import LoadedModel
    from forkpoint.support.progress import Progress
    from forkpoint.sweeps import Sweep

QUESTIONS = {name: command for name, (command, _) in COMMANDS.items()} | {
    "factors": factors, "generate": generate, "embed": embed, "engines": engines, "audit": audit,
}  # fmt: skip
"""What can be asked, by the names of the commands."""
_NOT_HERE = {
    "json", "html", "scene", "keep", "quiet", "lang", "details", "ops", "op", "config", "help", TRUST,
}  # fmt: skip
"""Options that a question of a sweep has not: what its command shows or writes is the sweep's."""
_MODELS = ("model", "other", "assistant")
_TEXTS = {*_MODELS, "revision"}
"""What is a name, also where the file has a number: the model in the folder `7`."""


@cache
def _commands() -> dict[str, Any]:
    app = typer.Typer(add_completion=False)
    for name, command in QUESTIONS.items():
        app.command(name)(command)
    return cast("Any", typer.main.get_command(app)).commands


def _options(question: str) -> dict[str, Any]:
    """The options and arguments of a question, by their names in the file."""
    parameters = {key_of(one): one for one in _commands()[question].params}
    return {key: one for key, one in parameters.items() if key not in _NOT_HERE}


# --- what is asked -------------------------------------------------------------------------------------------


def sweep(
    questions: str | os.PathLike[str] | Mapping[str, Any], out: str | os.PathLike[str], *, workers: int = 1,
    timeout: float | None = None, ray: bool = False, trust_remote_code: bool = False, progress: Progress = SILENT,
) -> Sweep:  # fmt: skip
    """See `forkpoint.sweep`."""
    if isinstance(questions, (str, os.PathLike)):
        file = os.fspath(questions)
        cells = cells_of(read_toml(Path(file), file), file)
    else:
        cells = cells_of(questions, "questions")
    run = _trusting if trust_remote_code else answer
    return ask_cells(cells, Path(out), run, workers=workers, timeout=timeout, ray=ray, progress=progress)


def cells_of(data: Mapping[str, Any], file: str) -> list[Cell]:
    """Every question of a file, with each combination of what is given; each once.

    Raises:
        InputError: a key or a value that can't be used; the message begins with the file's name.
    """
    above = _named({key: value for key, value in data.items() if key != "question"}, file)
    tables = data.get("question", [{}])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise InputError(f"{file} with question = {tables!r}", "tables, each with [[question]] above it")
    if not tables:
        raise InputError(f"{file} without a question", "one at least")
    cells: dict[str, Cell] = {}
    versions = installed()
    for table in tables:
        settings = above | _named(table, file)
        for question in _questions(settings.pop("ask", None), file):
            for one in _combined(question, settings, file):
                cell = described(question, one, versions)
                cells.setdefault(cell.key, cell)
    return list(cells.values())


def installed() -> dict[str, str]:
    """The versions that an answer is about: with another one it is another question. Nothing is imported for them."""
    return {"forkpoint": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def _named(table: Mapping[str, Any], file: str) -> dict[str, Any]:
    """A table with its keys written in one way: `pad_to` is `pad-to`."""
    entries = {key.replace("_", "-"): value for key, value in table.items()}
    if len(entries) < len(table):
        key = next(key for key in table if key.replace("_", "-") != key and key.replace("_", "-") in table)
        raise InputError(f"{file} with both {key} and {key.replace('_', '-')}", "one of the two")
    return entries


def _questions(value: Any, file: str) -> list[str]:
    if value is None:
        raise InputError(f"{file} with a question without ask", "ask = " + json.dumps(next(iter(QUESTIONS))))
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or name not in QUESTIONS:
            raise InputError(f"{file} with ask = {name!r}", "one of " + ", ".join(QUESTIONS))
    if not names:
        raise InputError(f"{file} with ask = []", "an entry at least")
    return names


def _combined(question: str, settings: Mapping[str, Any], file: str) -> Iterator[dict[str, Any]]:
    """Each combination of the entries of what is given."""
    parameters = _options(question)
    for key in settings:
        if key not in parameters:
            raise InputError(
                f"{file} with the key {key!r} for {question}", "one of " + ", ".join(sorted(parameters))
            )
    entries: dict[str, list[Any]] = {}
    for key, value in settings.items():
        if key != "prompts":
            entries[key] = _entries(value, parameters[key], f"{file} with {key} = {value!r} for {question}")
    if "prompts" in settings:
        entries["prompt"] = [*entries.get("prompt", []), *_lines(settings["prompts"], file)]
    missing = [
        key for key, one in parameters.items() if getattr(one, "required", False) and key not in entries
    ]
    missing += ["prompt"] if "prompt" in parameters and "prompt" not in entries else []
    if missing:
        raise InputError(f"{file} without {missing[0]} for {question}", f"{missing[0]} = …")
    for values in itertools.product(*entries.values()):
        one = dict(zip(entries, values, strict=True))
        _check(question, one, file)
        yield one


def _entries(value: Any, parameter: Any, description: str) -> list[Any]:
    """What is tried in turn: each entry of a list, or one value; of an option that may be given again, a list of texts."""
    entries = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not entries or [] in entries:
        raise InputError(description, "an entry at least")
    checked = [value_of(entry, parameter, description) for entry in entries]
    named = key_of(parameter) in _TEXTS
    return [
        one if named or isinstance(one, list) else entry for one, entry in zip(checked, entries, strict=True)
    ]


def _lines(name: Any, file: str) -> list[list[str]]:
    """The prompts of a file, each a question of its own."""
    if not isinstance(name, str):
        raise InputError(f"{file} with prompts = {name!r}", "a file with one prompt a line")
    return [[line] for line in options.read_prompts(None, Path(name))]


def _check(question: str, settings: dict[str, Any], file: str) -> None:
    """What the command itself would say of these options before it does anything."""
    for key in _MODELS:
        if is_path(settings.get(key, "")) and not os.path.exists(settings[key]):
            raise InputError(f"{file} with {key} = {settings[key]!r}", "a folder or file that is there")
    try:
        _context(question, settings)
    except Exception as error:  # a usage error; typer and click have classes of their own for it
        parameter, message = getattr(error, "param", None), getattr(error, "message", "")
        if parameter is None or not message:
            raise
        key = key_of(parameter)
        raise InputError(f"{file} with {key} = {settings.get(key)!r} for {question}: {message}") from None


def _context(question: str, settings: Mapping[str, Any]) -> Any:
    """The command with its options, checked and ready to be invoked."""
    parameters = _options(question)
    # Not as words of a command line: a value of the file is never read as an option.
    values = {parameters[key].name: value_of(value, parameters[key], key) for key, value in settings.items()}
    return _commands()[question].make_context(question, [], default_map=values)


# --- how a worker asks ---------------------------------------------------------------------------------------

_LAST: dict[Any, LoadedModel] = {}
"""The model that this worker has loaded last."""


def answer(cell: Cell, *, trusted: bool = False) -> CellOutcome:
    """Ask a question as its command does, and give what it writes."""
    began = perf_counter()
    with tempfile.TemporaryDirectory(prefix="forkpoint-cell-") as folder:
        file = Path(folder) / "result.json"
        cache_token, typed_token = CACHE.set(_LAST), TYPED.set(_typed(cell))
        try:
            context = _context(cell.question, cell.given)
            written = {"json": file, "quiet": True, "lang": "en"}
            context.params |= {name: written[name] for name in written.keys() & context.params.keys()}
            if trusted and "trust_remote_code" in context.params:
                context.params["trust_remote_code"] = True
            status, reason = _invoked(context), ""
        except Exception as error:  # noqa: BLE001 - what can't be answered is a row, and the others are asked
            _LAST.clear()
            traceback.print_exc()
            status, reason = None, _reason(error)
        finally:
            TYPED.reset(typed_token)
            CACHE.reset(cache_token)
        document = json.loads(file.read_bytes()) if status is not None else None
    return CellOutcome(status, document, perf_counter() - began, reason)


def _trusting(cell: Cell) -> CellOutcome:
    return answer(cell, trusted=True)


def _invoked(context: Any) -> int:
    """The exit status of a command."""
    with context:
        try:
            context.command.invoke(context)
        except typer.Exit as ended:
            return ended.exit_code
    return 0


def _reason(error: Exception) -> str:
    if isinstance(error, ForkpointError):
        return str(error)
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _typed(cell: Cell) -> tuple[str, ...]:
    """The command as somebody would type it, for what its report says of it."""
    parameters = _options(cell.question)
    words: Sequence[str] = [cell.question]
    arguments = [
        str(cell.given[key]) for key, one in parameters.items() if not _dashed(one) and key in cell.given
    ]
    for key, value in cell.given.items():
        if _dashed(parameters[key]) and value is not False:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{key}"] if one is True else [f"--{key}", str(one)]
    return (words[0], *arguments, *words[1:])


def _dashed(parameter: Any) -> bool:
    return parameter.opts[0].startswith("-")
