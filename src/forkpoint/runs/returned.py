"""What a model returned: all in it that can be compared, by name; and the caches, which are no results."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from forkpoint.errors import CaptureError
from forkpoint.runs.objects import attributes_of, hides_tensors, readable
from forkpoint.support.arrays import tensor_of

CACHES = ("cache", "past_key_values", "cache_params")
"""Names under which a cache is handed to the next call; the first is that of transformers from 5.24 on."""
ALL_CACHES = (*CACHES, "past_key_value", "mems", "state")
"""Names under which models return caches; a bare tensor of such a name is a result like any other."""
_NUMBERS = (bool, int, float, complex, np.bool_, np.number)
_NUMERIC = "biufc"
"""Kinds of NumPy's dtypes that are numbers."""


# ---------------------------------------------------------------------- results


def results_of(output: Any) -> dict[str, Tensor]:
    """Every value that a model returned, by name; caches are not results, and None is none.

    Sparse and quantised tensors become plain ones of the same values, and nested ones those that they consist of.
    Numbers of Python and NumPy, and lists of them, become tensors. Texts become the digest of their
    characters, [] or [texts], int64, since all there is to compare is whether they are the same; so do sets, members
    of enums and Python's own plain values. Plain objects are looked into as mappings are.

    >>> import torch
    >>> sorted(results_of({"logits": torch.zeros(1), "hidden_states": (torch.zeros(1), torch.zeros(2))}))
    ['hidden_states[0]', 'hidden_states[1]', 'logits']
    >>> {name: value.tolist() for name, value in results_of({"loss": 0.5, "lengths": [3, 5]}).items()}
    {'loss': 0.5, 'lengths': [3, 5]}
    """
    results: dict[str, Tensor] = {}
    for name, value in _leaves(output, ""):
        while name in results:  # 1 and "1" may be keys of one mapping
            name += "'"
        if isinstance(value, Tensor):
            results.update(_plain(name, value))
        elif _is_value(value):
            results[name] = _as_tensor(value)
    return results


def others_of(output: Any) -> dict[str, str]:
    """By name the class of every object in what a model returned that has no value to compare."""
    return {name: type(value).__name__ for name, value in _unread(output) if not hides_tensors(value)}


def closed_of(output: Any) -> dict[str, str]:
    """By name the class of every object in what a model returned that has a tensor somewhere, but not under a name."""
    return {name: type(value).__name__ for name, value in _unread(output) if hides_tensors(value)}


def _unread(output: Any) -> Iterator[tuple[str, Any]]:
    for name, value in _leaves(output, ""):
        if not isinstance(value, Tensor) and not _is_value(value):
            yield name, value


def all_results(outputs: Sequence[Any]) -> list[dict[str, Tensor]]:
    """The results of each call.

    Raises:
        CaptureError: the model returned neither a tensor nor a number.
    """
    results = [results_of(output) for output in outputs]
    leaves = [value for output in outputs for _, value in _leaves(output, "")]
    if not any(isinstance(value, Tensor) or (_is_value(value) and not _is_text(value)) for value in leaves):
        kinds = ", ".join(sorted({type(output).__name__ for output in outputs}))
        raise CaptureError(
            f"the model returned {kinds}", "at least one tensor", "give call= a function that returns tensors"
        )
    return results


def _leaves(
    output: Any, name: str, key: Any = None, within: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """(name, value) of all that is no container: tensors, numbers or rectangular lists of them, texts, objects.

    Args:
        output: what is looked into.
        name: its name.
        key: its own name in the mapping or object that it is in.
        within: ids of what it lies in, which is not looked into again.
    """
    if output is None or _is_cache(output, key) or id(output) in within:
        return
    within = (*within, id(output))
    if len(within) > DEEPEST:
        raise CaptureError(
            f"what the model returned holds something {DEEPEST} levels deep",
            "values in fewer levels",
            "give call= a function that returns tensors",
        )
    output = readable(output)
    if isinstance(output, PackedSequence):  # the rest of it says how the rows of the batch lie
        yield f"{name}.data" if name else "data", output.data
    elif isinstance(output, Tensor) or _is_value(output):
        yield name or "output", output
    elif (items := entries_of(output)) is not None:
        for field, value in items.items():
            yield from _leaves(value, f"{name}.{field}" if name else str(field), field, within)
    elif isinstance(output, (list, tuple)):
        for index, value in enumerate(output):
            yield from _leaves(value, f"{name}[{index}]", None, within)
    else:
        yield name or "output", output
    if isinstance(output, (list, tuple)):  # one of a class of one's own may hold more
        for field, value in (attributes_of(output) or {}).items():
            yield from _leaves(value, f"{name}.{field}" if name else field, field, within)


def entries_of(output: Any) -> Mapping[Any, Any] | None:
    """What a mapping, a dataclass or a plain object holds, by name; None for what has no names."""
    fields = fields_of(output)
    if fields is None:
        return None if isinstance(output, (list, tuple)) else attributes_of(output) or None
    if isinstance(output, dict):  # a class of one's own may hold more
        more = attributes_of(output) or {}  # pyright: ignore[reportUnknownArgumentType]
        return {**fields, **{name: value for name, value in more.items() if name not in fields}}
    return fields


def fields_of(output: Any) -> Mapping[Any, Any] | None:
    """The entries of a mapping or a dataclass, as they are stored; None for anything else.

    No attribute is asked for: one that is kept for old callers alone may warn, or be worked out.
    """
    if isinstance(output, dict):
        return dict(dict.items(output))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(output, Mapping):
        return output  # pyright: ignore[reportUnknownVariableType]
    if is_dataclass(output) and not isinstance(output, type):
        slots = [
            n
            for n in output.__dataclass_fields__
            if inspect.ismemberdescriptor(getattr(type(output), n, None))
        ]
        return {**{n: getattr(output, n, None) for n in slots}, **getattr(output, "__dict__", {})}
    return None


def _plain(name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor in a form in which its elements can be paired with others: strided, and not quantised."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        if value.is_nested:
            parts = value.unbind()
            return {k: v for i, part in enumerate(parts) for k, v in _plain(f"{name}[{i}]", part).items()}
        if value.is_quantized:
            return {name: value.dequantize()}
        if value.layout is torch.strided:
            packed = value.dtype == _PACKED  # torch can't even copy its numbers
            return {name: value.view(torch.uint8) if packed else value}
        if value.numel() * value.dtype.itemsize <= _DENSE_BYTES:
            return {name: value.to_dense()}
        if value.layout is torch.sparse_coo:
            value = value.coalesce()
            return {f"{name}.indices": value.indices(), f"{name}.values": value.values()}
        return {name: value}


DEEPEST = 200
"""Most containers in containers that a model may return."""
_DIMENSIONS = 32
"""Most dimensions of an array that every NumPy makes of lists."""
_PACKED = getattr(torch, "float4_e2m1fn_x2", None)
"""The dtype of two numbers a byte."""
_DENSE_BYTES = 1 << 28
"""Largest size, with all its zeros, of a sparse result that is compared element by element."""


def _is_value(value: Any) -> bool:
    """Whether it is a number or a text, or an array or rectangular list of either."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in _NUMERIC or (value.dtype.kind in "US" and value.size > 0)
    if isinstance(value, (*_NUMBERS, str, bytes)):
        return True
    return isinstance(value, (list, tuple)) and bool(value) and _shape(value) is not None  # pyright: ignore[reportUnknownArgumentType]


def _is_text(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in _NUMERIC
    while isinstance(value, (list, tuple)):
        value = value[0]
    return isinstance(value, (str, bytes))


def _shape(value: Any, deep: int = 0) -> tuple[tuple[int, ...], bool] | None:
    """The shape of nested lists of numbers alone or of texts alone, and which of them; None for any others.

    A list that holds itself would have no end of dimensions.
    """
    if isinstance(value, (list, tuple)):
        if deep >= _DIMENSIONS:
            return None
        items = {_shape(item, deep + 1) for item in value}  # pyright: ignore[reportUnknownVariableType]
        if len(items) != 1 or (only := items.pop()) is None:
            return None
        return (len(value), *only[0]), only[1]  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, (str, bytes)):
        return (), True
    return ((), False) if isinstance(value, _NUMBERS) else None


def _as_tensor(value: Any) -> Tensor:
    """Numbers as a tensor of their own precision; texts as digests; a float of Python is float64."""
    if _is_text(value):
        array = np.asarray(value, dtype=object)
        digests = [_digest(text) for text in array.reshape(-1).tolist()]
        return torch.tensor(digests, dtype=torch.int64).reshape(array.shape)
    array = np.array(value)
    if array.dtype.kind in _NUMERIC and array.dtype.itemsize <= np.dtype(np.complex128).itemsize:
        if array.dtype == np.longdouble:
            array = array.astype(np.float64)
        return tensor_of(array)
    whole = np.asarray(value, dtype=object)  # integers of more than 64 bits
    return torch.tensor([_digest(str(n)) for n in whole.reshape(-1).tolist()]).reshape(whole.shape)


def _digest(text: str | bytes) -> int:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


# ---------------------------------------------------------------------- caches


def _is_cache(value: Any, key: Any) -> bool:
    if key in ALL_CACHES and not (isinstance(value, Tensor) and key in ("cache", "state")):
        return True
    name = type(value).__name__
    return name.endswith("Cache") or name in ("MambaCache", "RwkvState")


def caches_in(output: Any, model: Any) -> dict[str, Any]:
    """The caches that a call returned, to hand to the next one, each under one name.

    It is the name that the model takes, where the output has it under another or under several.
    """
    fields = fields_of(output)
    parameters = cache_parameters(model)
    caches: dict[int, tuple[str, Any]] = {}
    for name in sorted(CACHES, key=lambda name: name not in parameters):
        value = _attribute(output, name) if fields is None else fields.get(name)
        bare = name == "cache" and isinstance(value, Tensor)
        if value is not None and not bare and id(value) not in caches:
            caches[id(value)] = name if name in parameters else _other_name(parameters, fields, name), value
    return dict(caches.values())


def _other_name(parameters: list[str], fields: Any, name: str) -> str:
    """What a model calls the cache of an output that has another name for it; the output's if it takes none."""
    free = [other for other in parameters if fields is None or fields.get(other) is None]
    return free[0] if free else name


def without_named(handed: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """Caches that are handed on, but for those that a call is given under any of their names.

    >>> without_named({"cache": 1}, {"past_key_values": None}), without_named({"cache": 1}, {"input_ids": 2})
    ({}, {'cache': 1})
    """
    if len(handed) == 1 and any(name in inputs for name in CACHES):
        return {}
    return handed


def cached_tokens(cache: Any) -> int | None:
    """How many tokens a cache says that it holds; None where it doesn't, as one of states alone, which raises."""
    try:
        return int(cache.get_seq_length())
    except Exception:  # noqa: BLE001 - whatever the cache of somebody's model does instead
        return None


def cache_parameters(model: Any) -> list[str]:
    """The names by which a model's forward pass takes what an earlier call left; none where it takes none."""
    return [name for name in CACHES if _takes(model, name)]


def _attribute(output: Any, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(output, name, None)


def _takes(model: Any, name: str) -> bool:
    """Whether a model's forward pass has a parameter of a name."""
    try:
        return name in inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):
        return False
