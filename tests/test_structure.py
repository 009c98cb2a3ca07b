"""How the source is laid out: no file needs itself through others, and few stand outside a package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import forkpoint

ROOT = Path(forkpoint.__file__).parent

RENDERERS = {
    "forkpoint.result": {"forkpoint.report.page", "forkpoint.report.terminal"},
    "forkpoint.questions.answers": {"forkpoint.report.factors"},
}
"""A record asks for its renderers when it is shown."""


def modules() -> dict[str, Path]:
    """Every module by its name."""
    found: dict[str, Path] = {}
    for path in ROOT.rglob("*.py"):
        parts = ("forkpoint", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports of forkpoint, anywhere in it: in functions and for types alone, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in known or base in known:
                    yield whole if whole in known else base


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules each of which imports, through others of the set, every other."""
    reached = {name: _reached(name, graph) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reached[name] if name in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def _reached(name: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[name])
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += graph[other]
    return seen


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert circles(graph) == [{"b", "c"}, {"e", "f"}]


def test_no_file_imports_itself_through_others():
    known = modules()
    graph = {name: set(imported(name, path, known)) - {name} for name, path in known.items()}
    assert len(graph) > 150
    for record, renderers in RENDERERS.items():
        assert graph[record] >= renderers
        graph[record] -= renderers
    assert circles(graph) == []


def test_eight_files_at_most_stand_beside_the_packages():
    assert len(list(ROOT.glob("*.py"))) <= 8


MOST_LINES = {"file": 500, "class": 300}


def too_long(name: str, source: str) -> dict[str, int]:
    """The file and those of its classes that are longer than they may be, with their lines."""
    found = {name: source.count("\n")} if source.count("\n") > MOST_LINES["file"] else {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MOST_LINES["class"]:
                found[f"{name}.{node.name}"] = lines
    return found


def test_long_files_and_classes_are_found():
    source = "class A:\n" + "    x = 1\n" * 300
    assert too_long("a", source) == {"a.A": 301}
    assert too_long("a", source + "x = 1\n" * 200) == {"a.A": 301, "a": 501}


def test_no_file_has_more_than_500_lines_and_no_class_more_than_300():
    found: dict[str, int] = {}
    for name, path in modules().items():
        found |= too_long(name.removeprefix("forkpoint."), path.read_text(encoding="utf-8"))
    assert found == {}


def classes_by_name(sources: dict[str, str]) -> dict[str, list[str]]:
    """By the name of a class the modules that define one of that name, from the source of each module."""
    found: dict[str, list[str]] = {}
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module)
    return found


def test_classes_of_one_name_are_found():
    sources = {"a": "class A: ...", "b": "class B:\n    class A: ...", "c": "def f():\n    class C: ..."}
    assert classes_by_name(sources) == {"A": ["a", "b"], "B": ["b"], "C": ["c"]}


def test_no_two_classes_share_a_name():
    sources = {
        name.removeprefix("forkpoint."): path.read_text(encoding="utf-8") for name, path in modules().items()
    }
    assert {name: where for name, where in classes_by_name(sources).items() if len(where) > 1} == {}


WORDS_OF_NOTHING = {"found", "kept", "known", "taken"}
"""Participles that say of a value how somebody came by it, and not what it is."""

KEYS = {
    ("engines.answer", "found"),
    ("engines.table", "found"),
    ("report.sweep", "kept"),
    ("sweeps.answer", "kept"),
}
"""Keys of the JSON that others read: how an op of an engine met the reference's, and how many answers a sweep had already."""

OTHER_WORDS = {"asked", "given", "made", "met", "said", "told"}
"""Others of the kind, which few packages have a use for."""

CLEAR_OF_THESE = {
    "backward",
    "cli",
    "comparison",
    "engines",
    "errors",
    "explain",
    "investigation",
    "match",
    "mechanisms",
    "models",
    "native",
    "notebook",
    "ports",
    "printable",
    "promotion",
    "pytest_plugin",
    "report",
    "result",
    "runs",
    "scene",
    "screening",
    "support",
    "sweeps",
    "testing",
    "verdict",
}
"""Packages and files in which values have no such names. The list only gets longer."""

MEANT = {
    # of an error what was given, beside what was expected; of a cell of a sweep a key of its JSON
    "given": {
        "cli.language", "cli.swept", "errors", "report.words", "runs.batches", "scene.saving.choice", "sweeps.cells",
        "sweeps.rows", "sweeps.sweeping",
    },
    # of a port's value, that the reference has it, too: `ports.values` defines it
    "met": {"ports.explaining", "ports.harmless", "ports.parting", "ports.roots", "ports.values"},
    # in a phrase, the place of a text
    "said": {"cli", "report.factors"},
}  # fmt: skip
"""Where one of them is a term, by module."""


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Every name that stands in a module for something of Python's, with its line: no text, no comment."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.alias():
                yield node.lineno, node.asname or node.name
            case _:
                pass


def of_nothing(source: str, words: set[str] = WORDS_OF_NOTHING) -> list[tuple[int, str]]:
    """The names in a module that are no more than such a word, private ones, too."""
    return sorted((line, name) for line, name in names_in(source) if name.strip("_").lower() in words)


def test_words_of_nothing_are_found():
    source = "def kept(known):\n  x.found = [Taken for _found in y]\n  f(taken=1, found_in='found')"
    found = [(1, "kept"), (1, "known"), (2, "Taken"), (2, "_found"), (2, "found"), (3, "taken")]
    assert of_nothing(source) == found


def test_a_name_says_what_a_value_is():
    seen = {
        name: {word for _, word in of_nothing(path.read_text(encoding="utf-8"))}
        for name, path in modules().items()
    }
    assert len(seen) > 50
    assert {(name.removeprefix("forkpoint."), word) for name, words in seen.items() for word in words} == KEYS


def test_nor_does_another_such_word_stand_for_a_value():
    seen: dict[str, set[str]] = {}
    for name, path in modules().items():
        if CLEAR_OF_THESE & set(name.split(".")):
            for _, word in of_nothing(path.read_text(encoding="utf-8"), OTHER_WORDS):
                seen.setdefault(word, set()).add(name.removeprefix("forkpoint."))
    assert seen == MEANT


INTERNALS = ROOT.parents[1] / "docs" / "internals.md"


def test_paths_that_the_internals_name_exist():
    paths = re.findall(r"`((?:src|tests|docs)/[\w./-]+)`", INTERNALS.read_text(encoding="utf-8"))
    assert len(paths) > 50
    assert [path for path in paths if not (INTERNALS.parents[1] / path).exists()] == []


def test_the_glossary_has_40_words_at_most():
    glossary = INTERNALS.read_text(encoding="utf-8").partition("## Glossary")[2]
    rows = re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE)
    words = [word for row in rows[2:] for word in row.split(", ")]
    assert "layout" in words
    assert len(words) == len(set(words)) <= 40


def test_arrays_become_tensors_in_one_place():
    """`torch.from_numpy` warns, once in a process, of an array that may not be written: with warnings as errors a rule failed."""
    places = [
        path.name
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "from_numpy"
    ]
    assert places == ["arrays.py"]
