"""A run: a model and the forward calls to make on it, executed so that nothing is left changed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from forkpoint.errors import InputError, reraise_out_of_memory
from forkpoint.runs.layout import MAIN, Layout, token_tensor
from forkpoint.runs.modules import Survey
from forkpoint.runs.reach import modules_behind
from forkpoint.runs.returned import caches_in, fields_of, results_of, without_named
from forkpoint.runs.state import kept_state
from forkpoint.support.readable import LET_GO, why_unreadable
from forkpoint.support.restoring import as_called, by_itself, restored

Inputs = Mapping[str, Any]
AnyInputs = Inputs | Tensor | tuple[Any, ...]
"""What one forward call may be given: arguments by name, or positional ones."""


class Observer(Protocol):
    """What watches a run: entered around each forward call, told of its inputs and its output."""

    def before_call(self, index: int, inputs: Inputs) -> AbstractContextManager[Any]: ...

    def after_call(self, index: int, output: Any) -> None: ...

    def before_putting_back(self) -> None:
        """Asked where values that the run made are about to be overwritten, the model's state being put back."""
        ...


class BackwardPass(Protocol):
    """What makes a run's backward pass: entered around its calls, told of each that was made."""

    def around_run(self) -> AbstractContextManager[Any]: ...

    def after_call(self, inputs: Inputs, output: Any, *, goes_on: bool) -> None:
        """Go back from what a call returned; `goes_on` says that the next call is handed something of it."""
        ...


class Run:
    """One or more forward calls of a model on given inputs.

    Args:
        model: any `torch.nn.Module` (or, with `call`, anything).
        inputs: keyword arguments of one forward call (or a tensor, or a tuple of positional ones), or a list of them for
            several calls in order (prefill, then decoding steps). In a list the cache that one call returns
            (`cache`, `past_key_values`, `cache_params`) is handed to the next, unless that mapping names one, or
            the layout says that the next call holds other samples.
        layout: where the tokens are; by default read from the inputs (`Layout.read`).
        call: how to call the model, `call(model, inputs)`; by default `model(**inputs)`.
        name: what reports call the run.

    Raises:
        InputError: inputs without a tensor, a model without values, something that can't be called.
        LayoutError: a layout that does not fit the inputs.

    >>> import torch
    >>> run = Run(torch.nn.Linear(4, 2), {"input": torch.zeros(1, 3, 4)})
    >>> for output in run.execute():
    ...     tuple(output.shape)
    (1, 3, 2)
    """

    @by_itself
    def __init__(
        self,
        model: Any,
        inputs: AnyInputs | Sequence[AnyInputs],
        *,
        layout: Layout | None = None,
        call: Callable[[Any, dict[str, Any]], Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.model = model
        self.calls: tuple[dict[str, Any], ...] = _as_calls(inputs, model)
        self.call = call
        self.name = name
        self.gradients = False
        """Whether the calls are made with gradients on: only where they fail without."""
        self.returns = ""
        """What to call the one tensor that the model returns, where the other run has a name for it."""
        _check_model(model, call)
        if layout is not None:
            _check_layout(layout, self.calls)
        self.layout_is_read = layout is None
        self.layout = layout if layout is not None else Layout.read(self.calls)

    @cached_property
    def roots(self) -> tuple[nn.Module, ...]:
        """The model, and the modules that can be reached through it and through `call`; none where none was found."""
        behind = modules_behind(self.model, self.call)
        if not isinstance(self.model, nn.Module):
            return behind
        own = {id(module) for module in self.model.modules()}
        return (self.model, *(module for module in behind if id(module) not in own))

    @cached_property
    def modules(self) -> nn.Module | None:
        """The model as a module: itself, what is behind a callable, or a list of what is; None where none was found."""
        if isinstance(self.model, nn.Module) or len(self.roots) == 1:
            return self.roots[0]
        return nn.ModuleList(self.roots) if self.roots else None

    @cached_property
    def _all_modules(self) -> nn.Module | None:
        """What the run may write to."""
        return nn.ModuleList(self.roots) if len(self.roots) > 1 else self.modules

    @property
    def devices(self) -> set[torch.device]:
        """Where the model's weights and the inputs are."""
        weights = [] if self._all_modules is None else self._all_modules.parameters()
        inputs = (value for call in self.calls for value in tensors_in(call))
        return {tensor.device for tensor in (*weights, *inputs)}

    def check_weights(self) -> None:
        """Fail where the first call would make weights: two runs would not have the same.

        Raises:
            InputError: the model has such parameters.
        """
        named = [] if self.modules is None else self.modules.named_parameters()
        lazy = [name for name, parameter in named if is_lazy(parameter)]
        if lazy:
            raise InputError(
                f"{len(lazy)} parameters that the first call makes, {lazy[0]} first",
                "a model that has its weights",
                "call it once before, so that both runs have the same weights",
            )

    @restored
    def execute(
        self,
        observer: Observer | None = None,
        *,
        calls: Sequence[Inputs] | None = None,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        parts: Survey | None = None,
        backward: BackwardPass | None = None,
    ) -> list[Any]:
        """Make the calls and return what the model returned for each.

        The inputs are copied first, caches too; whatever the model rewrites of itself is put back by value;
        gradients are off, unless the calls need them or a backward pass is made.

        Args:
            observer: watches the calls.
            calls: other inputs in place of the run's own.
            around: makes a context manager that is entered around each call, outside the observer's.
            parts: a survey of `modules` that was just made; None to make one.
            backward: makes the backward pass, which is not observed.
        """
        outputs: list[Any] = []
        handed: dict[str, Any] = {}
        settle = observer.before_putting_back if observer is not None else None

        def returned() -> list[Tensor]:
            return [value for output in outputs for value in results_of(output).values()]

        whole = self._all_modules
        whole_parts = parts if whole is self.modules else None
        with (
            torch.set_grad_enabled(self.gradients or backward is not None),
            kept_state(whole, parts=whole_parts, by=self, settle=settle, returned=returned),
            nullcontext() if backward is None else backward.around_run(),
        ):
            all_calls = self.calls if calls is None else calls
            for index, call in enumerate(all_calls):
                inputs = {**without_named(handed, call), **copy_inputs(call)}
                watch = observer.before_call(index, inputs) if observer is not None else nullcontext()
                with as_called(), around(), watch:
                    output = self._invoke(inputs)
                if observer is not None:
                    observer.after_call(index, output)
                goes_on = index + 1 < len(all_calls) and self._goes_on(index)
                handed = caches_in(output, self.model) if goes_on else {}
                if backward is not None:
                    with as_called(), around():
                        backward.after_call(inputs, output, goes_on=bool(handed))
                outputs.append(output)
        return outputs

    def _goes_on(self, index: int) -> bool:
        """Whether the call after this one has a sample of this one; where no layout is known, it may have."""
        now, following = (
            {s for c in entry.values() for s in c.sample[c.valid].tolist()}
            for entry in self.layout.calls[index : index + 2]
        )
        return not now or not following or bool(now & following)

    def _invoke(self, inputs: dict[str, Any]) -> Any:
        output = _called(self.model, inputs) if self.call is None else self.call(self.model, inputs)
        return {self.returns: output} if self.returns else output


def _as_calls(inputs: AnyInputs | Sequence[AnyInputs], model: Any) -> tuple[dict[str, Any], ...]:
    calls_in_turn = isinstance(inputs, tuple) and all(isinstance(one, Mapping) for one in inputs)
    one_call = isinstance(inputs, (Mapping, Tensor, tuple, str)) and not calls_in_turn
    several = isinstance(inputs, Iterable) and not one_call  # pyright: ignore[reportUnnecessaryIsInstance]
    values: list[Any] = list(inputs) if several else [inputs]
    calls = [_by_name(one, model) for one in values]
    if not calls or not all(isinstance(c, Mapping) for c in calls):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"inputs of type {type(inputs).__name__}",
            "a mapping of keyword arguments for one forward call, or a non-empty list of such mappings",
        )
    for index, call in enumerate(calls):
        tensors = tensors_in(call)
        if not tensors:
            raise InputError(
                f"call {index} has no tensor among {sorted(call)}", "inputs with at least one tensor"
            )
        if any(tensor.is_meta for tensor in tensors):
            raise InputError(f"call {index} with a tensor on the device meta", "tensors that have values")
    return tuple(dict(call) for call in calls)


def _by_name(inputs: Any, model: Any) -> Any:
    """Positional arguments under the names of the parameters that take them, or their places where these have none.

    Raises:
        InputError: the model's call takes fewer.
    """
    if not isinstance(inputs, (Tensor, tuple)):
        return inputs
    values = (inputs,) if isinstance(inputs, Tensor) else inputs
    parameters = _parameters_of(model)
    names = [one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    nameless = [one for one in parameters if one.kind is inspect.Parameter.POSITIONAL_ONLY]
    any_number = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
    if nameless or (any_number and len(values) > len(names)):
        names = [f"[{place}]" for place in range(len(values) if any_number else len(nameless) + len(names))]
    if len(values) > len(names):
        raise InputError(
            f"{len(values)} positional inputs for a {type(model).__name__} that has names for {len(names)}",
            "a mapping from names to inputs",
            "or say how to call it: call=",
        )
    return dict(zip(names, values, strict=False))


def _parameters_of(model: Any) -> list[inspect.Parameter]:
    """The parameters of a model's call; any number without names where it does not say, or takes them by place alone."""
    unnamed = [inspect.Parameter("places", inspect.Parameter.VAR_POSITIONAL)]
    if hasattr(model, "_in_spec"):  # exported: what went in by its place then has to do so now
        return unnamed
    try:
        return list(inspect.signature(getattr(model, "forward", model)).parameters.values())
    except (TypeError, ValueError):  # traced, or not written in Python
        return unnamed


def _called(model: Any, inputs: dict[str, Any]) -> Any:
    """What a model returns for arguments by name, and for those that have a place in place of one."""
    places = [name for name in inputs if name.startswith("[")]
    if not places:
        return model(**inputs)
    named = {name: value for name, value in inputs.items() if name not in places}
    return model(*(inputs[name] for name in places), **named)


def _check_model(model: Any, call: Callable[..., Any] | None) -> None:
    if isinstance(model, nn.Module):
        try:
            parameters = dict(model.named_parameters())
        except Exception as error:
            reraise_out_of_memory(error)
            raise InputError(
                f"a {type(model).__name__} whose parameters torch can't list: {type(error).__name__}: {error}",
                "a torch.nn.Module",
            ) from error
        empty = [name for name, p in parameters.items() if p.device.type == "meta"]
        if empty:
            raise InputError(
                f"{len(empty)} parameters without values, {empty[0]} first",
                "a model whose weights are loaded",
                "load the model with its weights, not on the meta device",
            )
    elif call is None and not callable(model):
        raise InputError(
            f"a model of type {type(model).__name__}", "a torch.nn.Module", "or say how to call it: call="
        )


def _check_layout(layout: Layout, calls: Sequence[Inputs]) -> None:
    if not isinstance(layout, Layout):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"a layout of type {type(layout).__name__}", "an fp.Layout")
    if len(layout.calls) != len(calls):
        raise InputError(
            f"a layout of {len(layout.calls)} calls for {len(calls)} calls", "one entry for each call"
        )
    for index, (entry, inputs) in enumerate(zip(layout.calls, calls, strict=True)):
        for stream, coordinates in entry.items():
            carrier = token_tensor(inputs, stream)
            if carrier is None:
                continue
            name, tokens = carrier
            shape = coordinates.shape
            if len(shape) > tokens.dim() or (
                tuple(tokens.shape[: len(shape)]) != shape and not _frames_last(tokens, shape)
            ):
                raise InputError(
                    f"call {index}: a layout of shape {shape} for {name} of shape {tuple(tokens.shape)}",
                    "coordinates for each row and column of the input",
                )


def _frames_last(tokens: Tensor, shape: tuple[int, ...]) -> bool:
    return tokens.dim() == 3 and len(shape) == 2 and tokens.shape[0] == shape[0]


# ---------------------------------------------------------------------- copies


def copy_inputs(inputs: Inputs) -> dict[str, Any]:
    """Deep copies of the inputs of a call: tensors with their strides, caches with their tensors."""
    memo: dict[int, Any] = {}
    return {name: _copy(value, memo) for name, value in inputs.items()}


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in memo:
            with torch.no_grad():
                memo[id(value)] = _copy_tensor(value)
        return memo[id(value)]
    if isinstance(value, nn.Module):
        return value
    if type(value) in (list, tuple):
        return type(value)(_copy(item, memo) for item in value)
    if type(value) is dict:
        return {key: _copy(item, memo) for key, item in value.items()}
    try:
        return _deep_copy(value, memo)
    except Exception as error:  # noqa: BLE001 - whatever an object says that can't be copied
        reraise_out_of_memory(error)
        for tensor in tensors_in(value):  # those that gradients lead back from refuse to be copied
            _copy(tensor, memo)
    try:
        return _deep_copy(value, memo)
    except Exception as error:  # noqa: BLE001 - as above
        reraise_out_of_memory(error)
        return value


def _deep_copy(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; one that fails half-way leaves nothing in the memo."""
    copies = dict(memo)
    copied = copy.deepcopy(value, copies)
    memo.update(copies)
    return copied


def tensors_in(value: Any, depth: int = 5) -> list[Tensor]:
    """The tensors in a container or a plain object, such as a cache."""
    if isinstance(value, Tensor):
        return [value]
    if not depth:
        return []
    if isinstance(value, Mapping):
        items: Any = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        fields = fields_of(value)
        items = (
            (vars(value) if hasattr(value, "__dict__") else {}).values()
            if fields is None
            else fields.values()
        )
    return [tensor for item in items for tensor in tensors_in(item, depth - 1)]


def _copy_tensor(value: Tensor) -> Tensor:
    detached = value.detach()
    if type(detached) is Tensor and why_unreadable(detached) == LET_GO:
        raise InputError(
            f"an input of shape {tuple(value.shape)} whose memory was let go of", "inputs with values"
        )
    if value.layout != torch.strided or value.is_contiguous():
        copied = detached.clone()
    else:
        copied = copy.deepcopy(detached)
    if not value.requires_grad:
        return copied
    leaf = copied.requires_grad_()
    if value.is_leaf:
        return leaf
    with torch.enable_grad():  # what was computed may be written in place, where a leaf may not
        return leaf.clone()


def token_ids(run: Run) -> dict[tuple[int, int], int]:
    """Token id of every (sample, position) of the main stream, where the inputs are ids."""
    tokens: dict[tuple[int, int], int] = {}
    for entry, inputs in zip(run.layout.calls, run.calls, strict=True):
        coordinates, ids = entry.get(MAIN), inputs.get("input_ids")
        if coordinates is None or not isinstance(ids, Tensor) or tuple(ids.shape) != coordinates.shape:
            continue
        valid = coordinates.valid
        keys = zip(coordinates.sample[valid].tolist(), coordinates.position[valid].tolist(), strict=True)
        tokens.update(zip(keys, ids.detach().cpu()[valid].tolist(), strict=True))
    return tokens
