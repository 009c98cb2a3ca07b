"""In notebooks: `%load_ext forkpoint`, and then two calls in a cell are compared.

    %%forkpoint result
    model(input_ids=ids, attention_mask=mask)
    model(input_ids=padded, attention_mask=padded_mask)

The calls may be of a model, of one of its methods, or of any function. What stands above them in the cell is run first. The
result is what the cell shows, and what `result` names afterwards.
"""

from __future__ import annotations

import ast
import inspect
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from forkpoint.errors import InputError
from forkpoint.printable import one_line
from forkpoint.support.progress import Progress, watching

if TYPE_CHECKING:
    from forkpoint.result import Result
    from forkpoint.runs.run import Run

_USAGE = "%%forkpoint [NAME] [--no-probes], and a cell whose last two statements are calls: model(**a) and model(**b)"
_NAME = 60
"""Most characters of a call that name its run."""
_EVERY = 0.3
"""Seconds between two drawings of the bar."""


def load(shell: Any) -> None:
    """Register the magic with IPython's shell."""
    shell.register_magic_function(partial(compare_cell, shell), "cell", "forkpoint")


def compare_cell(shell: Any, line: str, cell: str) -> Result:
    """Compare the two calls with which a cell ends.

    Args:
        shell: IPython's, in whose names the cell runs.
        line: what stands behind the magic: a name for the result, `--no-probes`.
        cell: the rest.

    Raises:
        InputError: it is not two calls, or they can't be compared.
    """
    name, probes = _options(line)
    above, calls = _parted(shell.transform_cell(cell))
    exec(compile(above, "<cell>", "exec"), shell.user_ns)  # noqa: S102 the user's own cell
    import forkpoint as fp

    a, b = (_run(*_call_parts(call, shell.user_ns), one_line(ast.unparse(call), _NAME)) for call in calls)
    with _bar(shell) as progress:
        result = fp.compare(a, b, probes=probes, progress=progress)
    if name is not None:
        shell.user_ns[name] = result
    return result


def _options(line: str) -> tuple[str | None, bool]:
    words = line.split()
    names = [word for word in words if word != "--no-probes"]
    if len(names) > 1 or not all(map(str.isidentifier, names)):
        raise InputError(f"%%forkpoint {line.strip()}", _USAGE)
    return next(iter(names), None), len(names) == len(words)


def _parted(source: str) -> tuple[ast.Module, list[ast.Call]]:
    """What is to be run first, and the two calls."""
    tree = ast.parse(source)
    calls = [s.value for s in tree.body[-2:] if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    if len(calls) != 2:
        raise InputError("a cell that does not end with two calls", _USAGE)
    return ast.Module(tree.body[:-2], []), calls


def _call_parts(call: ast.Call, names: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What a call calls and with what, without calling it."""
    held = ast.Call(ast.Name("__taken__", ast.Load()), [call.func, *call.args], call.keywords)
    code = compile(ast.fix_missing_locations(ast.Expression(held)), "<cell>", "eval")

    def take(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        return function, args, kwargs

    return eval(code, {**names, "__taken__": take})  # noqa: S307 the user's own cell


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Run:
    from torch import nn

    from forkpoint.runs.run import Run

    inputs = {**_by_name(function, args), **kwargs}
    if isinstance(function, nn.Module):
        return Run(function, inputs, name=name)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module):
        return Run(owner, inputs, call=_method(function.__name__), name=name)
    return Run(function, inputs, call=lambda function, inputs: function(**inputs), name=name)


def _method(name: str) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda model, inputs: getattr(model, name)(**inputs)


def _by_name(function: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments by the names of their parameters."""
    if not args:
        return {}
    parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(args) > len(names):
        raise InputError("positional arguments that have no names", "keyword arguments")
    return dict(zip(names, args, strict=False))


# ---------------------------------------------------------------------- progress


@contextmanager
def _bar(shell: Any) -> Generator[Progress]:
    """A bar below the cell while it runs; where IPython runs in a terminal, that of the command line."""
    if not hasattr(shell, "kernel"):
        with watching() as progress:
            yield progress
        return
    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    handle = display(HTML(""), display_id=True)
    bar = Bar(lambda text: handle.update(HTML(text)))
    try:
        yield bar
    finally:
        bar.end()


class Bar:
    """Draws how far a comparison is, again and again, on a thread of its own.

    Args:
        draw: shows some HTML in place of what it showed before.
    """

    def __init__(self, draw: Callable[[str], None]) -> None:
        self._draw = draw
        self._stage, self._done, self._total = "", None, None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="forkpoint progress", daemon=True)
        self._thread.start()

    _done: Callable[[], int] | None
    _total: int | None

    def begin(self, stage: str) -> None:
        with self._lock:
            self._stage, self._done, self._total = stage, None, None

    def count(self, done: Callable[[], int], total: int | None) -> None:
        with self._lock:
            self._done, self._total = done, total

    def end(self) -> None:
        """Leave nothing behind."""
        self._over.set()
        self._thread.join()
        self._draw("")

    def _work(self) -> None:
        while not self._over.wait(_EVERY):
            self._draw(self.html())

    def html(self) -> str:
        """The stage that goes on, and how far it is where that is known."""
        with self._lock:
            stage, done, total = self._stage, self._done, self._total
        share = ""
        if done is not None and total:
            share = f' value="{min(done(), total)}" max="{total}"'
        return f'<div role="status"><progress{share}></progress> {escape(stage)}</div>'
