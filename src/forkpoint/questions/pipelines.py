"""Pipelines that take texts: the forward calls that one makes inside, as a run whose tokens are known.

A pipeline makes tokens of texts, forms batches (often in an order of its own) and calls a module with tensors. That call
is its *entrance*: the outermost of any module's calls that is given a tensor. A pipeline is run once to see what goes in
there; each batch then is a call of a `Run`, in which the pipeline is asked for the texts of that batch, and the entrance is
handed the run's own tensors instead of those that the pipeline has just made.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint.errors import InputError, reraise_out_of_memory
from forkpoint.runs.layout import PADDING, Coordinates, Layout
from forkpoint.runs.pairing import read_content
from forkpoint.runs.reach import modules_behind
from forkpoint.runs.returned import results_of
from forkpoint.runs.run import Run, tensors_in
from forkpoint.runs.state import kept_state

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable, Iterator

Call = Callable[[Any, list[Any], int], Any]
"""How a pipeline is asked: `call(pipeline, texts, batch size)`."""
_TEXTS, _ORDER, _NAMES = "texts", "order", "names"
"""What a call of the run holds besides tensors: the texts that are asked for, for each row which of them it is, and what each
text's results are called."""


@dataclass(frozen=True)
class Batch:
    """What went into the entrance once.

    Attributes:
        module: the entrance.
        inputs: the tensors of the call, by the name of the argument or their key in it.
    """

    module: nn.Module
    inputs: dict[str, Tensor]

    @property
    def layout(self) -> Layout:
        return Layout.read([self.inputs])

    @property
    def rows(self) -> list[tuple[Hashable, ...]]:
        """What each row holds."""
        content = read_content(self.layout, [self.inputs])
        return [content[sample] for sample in sorted(content)]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline and the way to ask it; as `call` of a run it hands the run's tensors to the entrance.

    Attributes:
        ask: how it is asked.
        entrance: the module that is called with tensors.
        alike: whether it returns as much for one text as for another.
    """

    ask: Call
    entrance: nn.Module
    alike: bool

    def __call__(self, pipeline: Any, inputs: Mapping[str, Any]) -> Any:
        texts, order = list(inputs[_TEXTS]), inputs[_ORDER]
        handed = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
        with _replaced(self.entrance, lambda args, kwargs: _given(self.entrance, args, kwargs, handed)):
            made = self.ask(pipeline, texts, len(texts))
        return _by_row(made, order, inputs[_NAMES], alike=self.alike)


def pipeline_run(pipeline: Any, texts: Sequence[Any], size: int, ask: Call, name: str) -> Run:
    """A run with one call for each batch that the pipeline makes of the texts.

    Args:
        pipeline: the pipeline.
        texts: what it is asked for; two equal ones are two samples.
        size: the batch size that it is given.
        ask: how it is asked.
        name: what reports call the run.

    Returns:
        The run. Its samples are the texts, by index; what it returns has a row for each.

    Raises:
        InputError: no module in it is called with tensors, or not with a row for each text.
    """
    waiting: dict[Any, deque[int]] = {}
    returned: list[Any] = []

    def noting(pipeline: Any, texts: list[Any], size: int) -> Any:
        returned.append(ask(pipeline, texts, size))
        return returned[-1]

    for index, text in enumerate(texts):
        alone = _one(pipeline, [text], 1, noting)
        waiting.setdefault(alone.rows[0], deque()).append(index)
    alike = all(_form(made) == _form(returned[0]) for made in returned)
    titles = [f"of {text!r}" + f", text {at}" * (text in texts[:at]) for at, text in enumerate(texts)]
    calls: list[dict[str, Any]] = []
    layout: list[dict[str, Coordinates]] = []
    batches = _seen(pipeline, list(texts), size, ask)
    for batch in batches:
        if any(not waiting.get(row) for row in batch.rows):
            raise InputError(
                "a pipeline that makes other tokens of a text in a batch than of the same text alone",
                "one row for each text, with the same tokens in any batch",
            )
        samples = [waiting[row].popleft() for row in batch.rows]
        own = [texts[sample] for sample in samples]
        again = _one(pipeline, own, len(own), ask)
        order = _order(again.rows, batch.rows)
        called = [titles[sample] for sample in samples]
        calls.append({**again.inputs, _TEXTS: own, _ORDER: order, _NAMES: called})
        layout.append(_of_samples(again.layout.calls[0], [samples[place] for place in order]))
    names = {index: index for index in range(len(texts))}
    return Run(
        pipeline, calls, layout=Layout(layout, names), call=Pipeline(ask, batches[0].module, alike), name=name
    )


# --- what goes into the entrance ------------------------------------------------------------------------------


def _one(pipeline: Any, texts: list[Any], size: int, ask: Call) -> Batch:
    batches = _seen(pipeline, texts, size, ask)
    if len(batches) != 1 or len(batches[0].rows) != len(texts):
        rows = ", ".join(str(len(batch.rows)) for batch in batches)
        raise InputError(
            f"a pipeline that makes {len(batches)} calls of {rows} rows for a batch of {len(texts)}",
            "one call of a module, with a row for each text",
        )
    return batches[0]


def _seen(pipeline: Any, texts: list[Any], size: int, ask: Call) -> list[Batch]:
    """What goes into the entrance while a pipeline is asked."""
    own = (pipeline,) if isinstance(pipeline, nn.Module) else modules_behind(pipeline, ask)
    batches: list[Batch] = []
    depth = 0

    @contextmanager
    def noted(module: nn.Module, args: Any, kwargs: Any) -> Generator[None]:
        nonlocal depth
        inputs = {k: v for k, v in _named(module, args, kwargs).items() if isinstance(v, Tensor)}
        if not inputs:
            yield
            return
        if depth == 0:
            batches.append(Batch(module, {key: value.detach().clone() for key, value in inputs.items()}))
        depth += 1
        try:
            yield
        finally:
            depth -= 1

    modules = list(dict.fromkeys(module for root in own for module in root.modules()))
    with kept_state(nn.ModuleList(own)), _watched(modules, noted), torch.no_grad():
        _asked(pipeline, texts, size, ask)
    if not batches:
        raise InputError(
            f"a {type(pipeline).__name__} in which no module is called with tensors", "a pipeline of PyTorch"
        )
    if any(batch.module is not batches[0].module for batch in batches):
        kinds = ", ".join(dict.fromkeys(type(batch.module).__name__ for batch in batches))
        raise InputError(
            f"a pipeline that calls several modules with tensors ({kinds})", "one that calls one"
        )
    return batches


def _asked(pipeline: Any, texts: list[Any], size: int, ask: Call) -> None:
    try:
        ask(pipeline, texts, size)
    except Exception as error:
        reraise_out_of_memory(error)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"a {getattr(pipeline, 'name', type(pipeline).__name__)} that can't be asked for these texts ({reason})",
            "one that takes them",
        ) from error


@contextmanager
def _watched(modules: Sequence[nn.Module], around: Callable[..., Any]) -> Generator[None]:
    """Have `around(module, args, kwargs)` entered around each call of some modules."""

    def standing_in(module: nn.Module) -> Callable[..., Any]:
        plain = module.forward

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with around(module, args, kwargs):
                return plain(*args, **kwargs)

        return forward

    with _forwards(modules, standing_in):
        yield


@contextmanager
def _replaced(module: nn.Module, given: Callable[[Any, Any], tuple[Any, Any]]) -> Generator[None]:
    """Have a module called with other arguments than it is given."""
    plain = module.forward

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = given(args, kwargs)
        return plain(*args, **kwargs)

    with _forwards([module], lambda _: forward):
        yield


@contextmanager
def _forwards(modules: Sequence[nn.Module], make: Callable[[nn.Module], Any]) -> Generator[None]:
    """Another `forward` of modules, for a while; no class changes."""
    before = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            vars(module)["forward"] = make(module)
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; the entries of a mapping that is the only positional one, by key."""
    if len(args) == 1 and isinstance(args[0], Mapping):
        return {**args[0], **kwargs}
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def _given(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], handed: Mapping[str, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with other tensors in the places of those names."""
    if len(args) == 1 and isinstance(args[0], Mapping):
        args = ({**args[0], **{key: value for key, value in handed.items() if key in args[0]}},)
    else:
        names: Iterator[str] = iter(inspect.signature(module.forward).parameters)
        args = tuple(handed.get(name, value) for name, value in zip(names, args, strict=False))
    return args, {key: handed.get(key, value) for key, value in kwargs.items()}


def _of_samples(entry: Mapping[str, Coordinates], samples: Sequence[int]) -> dict[str, Coordinates]:
    """Coordinates of rows that are numbered from 0, as those of some samples."""
    numbers = torch.tensor([*samples, PADDING])  # the last is that of padding, -1
    return {stream: Coordinates(numbers[c.sample], c.position) for stream, c in entry.items()}


# --- what comes out -------------------------------------------------------------------------------------------


def _order(rows: Sequence[Hashable], texts: Sequence[Hashable]) -> list[int]:
    """For each row that a pipeline forms which of the texts it is, by what both hold; of equal ones the first is first."""
    places: dict[Hashable, deque[int]] = {}
    for index, text in enumerate(texts):
        places.setdefault(text, deque()).append(index)
    return [places[row].popleft() for row in rows]


def _by_row(returned: Any, order: Sequence[int], names: Sequence[str], *, alike: bool) -> Any:
    """What a pipeline returned, in the order of the rows that went in, with a row for each wherever it can have one.

    Args:
        returned: what the pipeline gave back.
        order: for each row, which of the texts it is.
        names: what results of each text are called that are no rows of one tensor.
        alike: whether it returns as much for one text as for another.
    """
    if isinstance(returned, (np.ndarray, Tensor)):
        if returned.ndim and len(returned) == len(order) and list(order) != list(range(len(order))):
            return returned[list(order)]
        return returned
    if not isinstance(returned, (list, tuple)):
        return returned
    if len(returned) != len(order):
        if len(order) != 1:
            raise InputError(
                f"a pipeline that returns {len(returned)} results for {len(order)} texts", "a result for each"
            )
        returned = [returned]  # of a list of one text several return what they have for it, and no list
    items = [_alone(returned[place]) for place in order]
    if any(tensors_in(item) for item in items):
        return {names[place]: item for place, item in zip(order, items, strict=True)}
    values = [results_of(_without_batch(item)) for item in items]
    shapes = [{name: (value.shape, value.dtype) for name, value in row.items()} for row in values]
    if (
        (alike or not any(map(_is_extraction, items)))
        and shapes[0]
        and all(row == shapes[0] for row in shapes)
    ):
        return {name: np.stack([row[name].numpy() for row in values]) for name in shapes[0]}
    by_name: dict[str, Any] = {}
    for row, (place, value) in enumerate(zip(order, values, strict=True)):
        for name, one in value.items():
            rows = np.zeros((len(order), *one.shape), one.numpy().dtype)
            rows[row] = one.numpy()
            by_name[f"{names[place]}.{name}"] = rows
    return by_name


def _form(made: Any) -> Any:
    """Names, shapes and dtypes of what was returned for one text."""
    return {name: (value.shape, value.dtype) for name, value in results_of(made).items()}


def _is_extraction(item: Any) -> bool:
    """Whether it is what was found in a text, of which another may have more: a call of one text can't tell by itself."""
    return isinstance(item, Mapping) or (
        isinstance(item, list) and bool(item) and isinstance(item[0], Mapping)
    )


def _alone(item: Any) -> Any:
    """A list of one mapping is that mapping: whether it is a list may depend on how many texts are asked for."""
    return item[0] if isinstance(item, list) and len(item) == 1 and isinstance(item[0], Mapping) else item


def _without_batch(item: Any) -> Any:
    """A list of one list of vectors is a batch of one text: the vectors of its tokens."""
    nested = isinstance(item, list) and len(item) == 1 and isinstance(item[0], list) and item[0]
    return item[0] if nested and isinstance(item[0][0], list) else item
