"""How each torch function moves tokens: from the labels of its inputs to the label of its output.

Four families cover what models do. *Movements* (view, transpose, getitem, cat) are replayed on the
coordinate ids themselves. *Elementwise* functions, the default where the output has the broadcast
shape of the inputs, merge labels. *Reductions* make sets of tokens. *Contractions* (linear, matmul,
einsum) are an elementwise product followed by a reduction. A function that fits none of them is
asked directly, by running it on meta tensors whose token dimensions have other sizes; if that
fails its values count as not compared, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.coordinates import NONE, Ids
from forkpoint.capture.labels import Label, Labels, Shape, compress, reshape, spread

MAX_WRITTEN_OUT = 1 << 24
"""Most ids that a movement may write out; beyond it a value counts as not compared."""


class UnknownMovementError(Exception):
    """No rule says how a function moves tokens; the text is the reason shown to the user."""


@dataclass
class Call:
    """One call of a torch function, as a rule sees it."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    label_of: Callable[[Tensor], Label | None]
    labels: Labels
    reads_values: bool = field(default=False)
    """Set by a rule whose answer depends on an index tensor's values, so that it isn't cached."""

    def arg(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position or by any of its names; one that a tensor without dimensions stands for too."""
        found = default
        if position < len(self.args):
            found = self.args[position]
        else:
            found = next((self.kwargs[name] for name in names if name in self.kwargs), default)
        if position and is_number(found):
            self.reads_values = True  # a dimension, a size, a place
        return found

    def tensors(self) -> list[Tensor]:
        """All tensor arguments, in order, those in lists and tuples too."""
        return tensors_in((self.args, tuple(self.kwargs.values())))

    def label(self, value: Any) -> Label | None:
        return self.label_of(value) if isinstance(value, Tensor) else None

    def values(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """The values of an index tensor, on the host."""
        self.reads_values = True
        return tensor.detach().cpu().numpy()

    def plain(self, argument: Any) -> Any:
        """An argument of a movement without its data: a number that a tensor holds, or else the tensor's shape."""
        if not isinstance(argument, Tensor):
            return argument
        return (
            self.values(argument).item()
            if is_number(argument)
            else torch.empty(argument.shape, device="meta")
        )


def is_number(value: Any) -> bool:
    """Whether a value is a tensor that can stand for a whole number: an index, a size, a dimension."""
    if not isinstance(value, Tensor) or value.dim():
        return False
    return not (value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool)


def tensors_in(value: Any, depth: int = 4) -> list[Tensor]:
    """Tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if depth and isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_in(item, depth - 1)]
    if depth and isinstance(value, dict):
        return [t for item in value.values() for t in tensors_in(item, depth - 1)]
    return []


def _nothing(call: Call) -> list[Label | None]:
    return [None for _ in call.outputs]


Rule = Callable[[Call], "Label | None | list[Label | None]"]
RULES: dict[str, Rule] = {}
LIBRARY = "."
"""Under what goes the rule of a library's operator that has none of its own."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def propagate(call: Call) -> list[Label | None]:
    """The label of each output of a call.

    Raises:
        UnknownMovementError: nothing is known about how the function moves tokens.
    """
    known = RULES.get(call.name) or (RULES.get(LIBRARY) if "." in call.name else None)
    found = known(call) if known else _default(call)
    if isinstance(found, list):
        return found
    return [found] * len(call.outputs)


# ---------------------------------------------------------------------- defaults


def _default(call: Call) -> list[Label | None]:
    if call.name.endswith("_") and not call.name.endswith("__") and isinstance(call.arg(0), Tensor):
        held = call.label(call.arg(0))
        if held is not None and held.k is None and bool(call.labels.table.is_slot(held.q).all()):
            if call.labels.table.one_of_many(
                held.q
            ):  # the state of a loop over columns, or one of its columns
                others = [label for t in call.tensors() if (label := call.label(t)) is not None]
                if all(call.labels.table.one_of_many(label.q) for label in others):
                    return [call.labels.merge(others, call.outputs[0].dim())] * len(call.outputs)
            return [held] * len(call.outputs)  # what is added to a token's features stays that token's
    return [by_shape(call, output) for output in call.outputs]


def by_shape(call: Call, output: Tensor) -> Label | None:
    """The label of an output of the broadcast shape of its inputs; else the answer for other sizes.

    Raises:
        UnknownMovementError: there is none.
    """
    inputs = call.tensors()
    labelled = [t for t in inputs if call.label(t) is not None]
    if not labelled:
        return None
    shape = tuple(output.shape)
    fits = [t for t in labelled if _broadcasts(tuple(t.shape), shape)]
    if len(fits) == len(labelled) and math.prod(shape) == math.prod(_broadcast_shape(inputs, shape)):
        return call.labels.merge([call.label(t) for t in labelled], output.dim())
    return _ask(call, output)


def _broadcasts(small: Shape, big: Shape) -> bool:
    if len(small) > len(big):
        return False
    return all(s in (1, b) for s, b in zip(reversed(small), reversed(big), strict=False))


def _broadcast_shape(inputs: Sequence[Tensor], shape: Shape) -> Shape:
    """The broadcast of the inputs that fit into `shape` at all (parameters of a norm need not)."""
    fitting = [tuple(t.shape) for t in inputs if _broadcasts(tuple(t.shape), shape)]
    return tuple(torch.broadcast_shapes(*fitting)) if fitting else ()


def _ask(call: Call, output: Tensor) -> Label | None:
    """Run the function on meta tensors whose token dimensions have other sizes, and look."""
    sizes = _other_sizes(call)
    index = next(i for i, o in enumerate(call.outputs) if o is output)
    try:
        args, kwargs = _on_meta((call.args, call.kwargs), call, sizes)
        with torch.no_grad():
            answer = tensors_in((call.func(*args, **kwargs),))[index]
    except Exception:  # noqa: BLE001 - any refusal means the same: it can't be asked
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens") from None
    for tensor in call.tensors():
        label = call.label(tensor)
        if label is None:
            continue
        ids = label.q
        varying = [d for d in range(ids.ndim) if ids.shape[d] > 1]
        places: list[int] = []
        for d in varying:
            wanted = sizes[int(tensor.shape[d])]
            place = next(
                (p for p in range(answer.dim()) if answer.shape[p] == wanted and p not in places), None
            )
            if place is None or output.shape[place] != tensor.shape[d]:
                break
            places.append(place)
        else:
            if not varying:
                return call.labels.make(np.full((1,) * output.dim(), ids.reshape(-1)[0], dtype=np.int32))
            squeezed = ids.reshape([ids.shape[d] for d in varying])
            order = np.argsort(places)
            target = [1] * output.dim()
            for d, place in zip(varying, places, strict=True):
                target[place] = ids.shape[d]
            return call.labels.make(np.transpose(squeezed, order).reshape(target))
    new_sizes = set(sizes.values())
    if any(int(n) % new == 0 for n in answer.shape for new in new_sizes if n):
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens")
    tokens = [label for t in call.tensors() if (label := call.label(t)) is not None]
    if all(d == 1 for label in tokens for d in label.q.shape):
        return None
    union = call.labels.table.union(np.concatenate([label.q.reshape(-1) for label in tokens]))
    return call.labels.make(np.full((1,) * output.dim(), union, dtype=np.int32))


_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033)


def _other_sizes(call: Call) -> dict[int, int]:
    """A new, unmistakable size for every size that a token dimension has."""
    sizes: dict[int, int] = {}
    for tensor in call.tensors():
        label = call.label(tensor)
        if label is not None:
            for d, size in enumerate(label.q.shape):
                if size > 1 and int(tensor.shape[d]) not in sizes:
                    sizes[int(tensor.shape[d])] = _PRIMES[len(sizes) % len(_PRIMES)]
    return sizes


def _on_meta(value: Any, call: Call, sizes: dict[int, int]) -> Any:
    if isinstance(value, Tensor):
        label = call.label(value)
        shape = [
            sizes[int(n)] if label is not None and label.q.shape[d] > 1 else int(n)
            for d, n in enumerate(value.shape)
        ]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if isinstance(value, tuple):
        return tuple(_on_meta(item, call, sizes) for item in value)
    if isinstance(value, list):
        return [_on_meta(item, call, sizes) for item in value]
    if isinstance(value, dict):
        return {key: _on_meta(item, call, sizes) for key, item in value.items()}
    return value


# ---------------------------------------------------------------------- nothing of its inputs


@rule(
    "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "zeros", "ones", "full", "empty", "arange",
    "zeros_like", "ones_like", "empty_like", "full_like", "eye", "linspace", "rand", "randn", "randint", "finfo", "iinfo", "empty_strided",
)  # fmt: skip
def _creation(_: Call) -> Label | None:
    return None


@rule(
    "tensor", "as_tensor", "to", "type", "type_as", "clone", "contiguous", "detach", "float", "half", "bfloat16", "double", "long", "int",
    "bool", "cpu", "cuda", "requires_grad_", "alias", "data", "real", "imag", "rand_like", "randn_like", "bernoulli",
    "fill_", "zero_", "normal_", "uniform_", "layer_norm", "rms_norm",
    "group_norm", "batch_norm", "instance_norm", "dropout", "softmax", "log_softmax", "_to_copy", "pin_memory",
)  # fmt: skip
def _as_first(call: Call) -> Label | None:
    first = call.arg(0, "input", "self", "data")
    label = call.label(first)
    if label is not None and tuple(first.shape) != tuple(call.outputs[0].shape):
        return _default(call)[0]
    return label


# ---------------------------------------------------------------------- movements


@rule("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "_unsafe_view", "ravel")
def _reshape(call: Call) -> Label | None:
    source = call.arg(0, "input", "self")
    label, out = call.label(source), tuple(call.outputs[0].shape)
    if label is None or tuple(source.shape) == out:
        return label
    if source.numel() != call.outputs[0].numel():
        raise UnknownMovementError(f"{call.name} to a dtype of another size")
    _check_size([source.numel() if label.q.size > 1 else 1])
    return call.labels.apply(label, lambda ids: reshape(ids, tuple(source.shape), out))


def _check_size(sizes: Sequence[int]) -> None:
    if sum(sizes) > MAX_WRITTEN_OUT * 64:
        raise UnknownMovementError("too large for its coordinates to be followed")


@rule(
    "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "T", "mT", "H", "mH", "adjoint",
    "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to",
    "select", "narrow", "split", "chunk", "tensor_split", "unbind", "unsafe_split", "unsafe_chunk",
    "split_with_sizes", "diagonal", "unfold", "flip", "roll", "repeat", "tile", "rot90", "fliplr", "flipud",
    "atleast_1d", "atleast_2d", "atleast_3d", "hsplit", "vsplit", "dsplit", "view_as_real", "view_as_complex",
)  # fmt: skip
def _replay(call: Call) -> Label | None | list[Label | None]:
    """Run the same function on the ids; views cost nothing, since constant dimensions have stride 0."""
    source = call.arg(0, "input", "self")
    label = call.label(source)
    if label is None:
        return _nothing(call)
    if call.name in ("view_as_real", "view_as_complex"):
        return call.labels.apply(label, lambda ids: _resize_last(ids, call.outputs[0].dim()))
    if sum(o.numel() for o in call.outputs) > MAX_WRITTEN_OUT and call.name in (
        "roll",
        "flip",
        "repeat",
        "tile",
    ):
        raise UnknownMovementError("too large for its coordinates to be followed")
    parts = [_replay_one(call, source, label.q)]
    if label.k is not None:
        parts.append(_replay_one(call, source, label.k))
    return [
        call.labels.make(parts[0][i], parts[1][i] if len(parts) > 1 else None, label.depth)
        for i in range(len(call.outputs))
    ]


def _resize_last(ids: Ids, ndim: int) -> Ids:
    return ids.reshape((*ids.shape, 1)) if ndim > ids.ndim else ids.reshape(ids.shape[:-1])


def _replay_one(call: Call, source: Tensor, ids: Ids) -> list[Ids]:
    full = torch.from_numpy(np.array(ids, copy=True)).expand(source.shape)
    rest = tuple(map(call.plain, call.args[1:]))
    kwargs = {k: call.plain(v) for k, v in call.kwargs.items() if k not in ("input", "self")}
    function = call.func
    if call.name in ("T", "mT", "H", "mH"):
        return [(full.permute(*range(full.dim() - 1, -1, -1)) if call.name == "T" else full.mT).numpy()]
    if "aten" in type(function).__module__ or isinstance(function, torch._ops.OpOverload):
        function = getattr(torch.ops.aten, call.name.split(".")[-1])
    with torch.no_grad():
        return [t.numpy() for t in tensors_in((function(full, *rest, **kwargs),))]


@rule("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_")
def _reshape_in_place(call: Call) -> Label | None:
    """The tensor has its new shape already, so the ids are moved as they are, compressed."""
    label, ndim = call.label(call.args[0]), call.outputs[0].dim()
    if label is None or (call.name == "squeeze_" and label.q.ndim == ndim):
        return label
    function = getattr(torch, call.name.removesuffix("_"))

    def move(ids: Ids) -> Ids:
        return function(torch.from_numpy(ids), *map(call.plain, call.args[1:]), **call.kwargs).numpy()

    return call.labels.apply(label, move)


@rule("cat", "concat", "concatenate")
def _cat(call: Call) -> Label | None:
    tensors = list(call.arg(0, "tensors"))
    dim = call.arg(1, "dim", "axis", default=0)
    parts = [t for t in tensors if not (t.dim() == 1 and t.numel() == 0 and call.outputs[0].dim() != 1)]
    return _join(call, [(call.label(t), tuple(t.shape)) for t in parts], dim % max(call.outputs[0].dim(), 1))


@rule("stack")
def _stack(call: Call) -> Label | None:
    dim = call.arg(1, "dim", default=0) % call.outputs[0].dim()
    parts: list[tuple[Label | None, Shape]] = []
    for t in call.arg(0, "tensors"):
        shape = tuple(t.shape)
        label = call.labels.apply(call.label(t), lambda ids: np.expand_dims(ids, dim))
        parts.append((label, (*shape[:dim], 1, *shape[dim:])))
    return _join(call, parts, dim)


def _join(call: Call, parts: list[tuple[Label | None, Shape]], dim: int) -> Label | None:
    if all(label is None for label, _ in parts):
        return None
    ndim = call.outputs[0].dim()
    arrays: list[Ids] = []
    for which in ("q", "k"):
        pieces: list[Ids] = []
        for label, shape in parts:
            ids = None if label is None else getattr(label, which)
            if ids is None:
                ids = np.full((1,) * ndim, NONE, dtype=np.int32)
            pieces.append(spread(ids, shape, [dim]))
        others = np.broadcast_shapes(*[(*p.shape[:dim], 1, *p.shape[dim + 1 :]) for p in pieces])
        grown = [np.broadcast_to(p, (*others[:dim], p.shape[dim], *others[dim + 1 :])) for p in pieces]
        arrays.append(np.concatenate(grown, axis=dim))
    return call.labels.make(arrays[0], arrays[1])


@rule("pad", "constant_pad_nd")
def _pad(call: Call) -> Label | None:
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None:
        return None
    widths = list(call.arg(1, "pad"))
    mode = "constant" if call.name == "constant_pad_nd" else call.arg(2, "mode", default="constant")

    def move(ids: Ids) -> Ids:
        for i in range(len(widths) // 2):
            d, (left, right) = ids.ndim - 1 - i, (int(widths[2 * i]), int(widths[2 * i + 1]))
            if left or right:
                if ids.shape[d] == 1 and mode != "constant":
                    continue  # the same coordinate all along
                ids = _pad_dim(spread(ids, tuple(source.shape), [d]), d, left, right, str(mode))
        return ids

    return call.labels.apply(label, move)


def _pad_dim(ids: Ids, d: int, left: int, right: int, mode: str) -> Ids:
    size = ids.shape[d]
    index = np.arange(-left, size + right)
    inside = (index >= 0) & (index < size)
    if mode == "constant":
        ids = np.take(ids, np.clip(index, 0, size - 1), axis=d)
        shape = tuple(-1 if i == d else 1 for i in range(ids.ndim))
        return np.where(inside.reshape(shape), ids, NONE).astype(np.int32)
    if mode == "circular":
        return np.take(ids, index % size, axis=d)
    if mode == "reflect":
        index = np.abs(index)
        index = np.where(index >= size, 2 * (size - 1) - index, index)
    return np.take(ids, np.clip(index, 0, size - 1), axis=d)


@rule("repeat_interleave")
def _repeat_interleave(call: Call) -> Label | None:
    source, repeats = call.arg(0, "input", "self"), call.arg(1, "repeats")
    dim, shape = call.arg(2, "dim"), tuple(source.shape)

    def move(ids: Ids) -> Ids:
        if dim is not None and ids.shape[dim] == 1:
            return ids
        counts = call.values(repeats) if isinstance(repeats, Tensor) else repeats
        return np.repeat(spread(ids, shape, None if dim is None else [dim % len(shape)]), counts, axis=dim)

    return call.labels.apply(call.label(source), move)


# ---------------------------------------------------------------------- indexing


@rule("getitem")
def _getitem(call: Call) -> Label | None:
    source, index = call.args[0], call.args[1]
    label = call.label(source)
    if label is None:
        return _label_of_index(call, index)
    moved = call.labels.apply(label, lambda ids: take(call, ids, tuple(source.shape), index))
    if moved is not None and moved.q.ndim != call.outputs[0].dim():
        raise UnknownMovementError("an index that forkpoint can't follow")
    return moved


def _label_of_index(call: Call, index: Any) -> Label | None:
    """A lookup in a table without tokens: the result belongs to the tokens of the index."""
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [p for p in parts if isinstance(p, Tensor) and p.dtype != torch.bool]
    if not any(call.label(t) is not None for t in tensors):
        return None
    merged = call.labels.merge([call.label(t) for t in tensors], max(t.dim() for t in tensors))
    if merged is None:
        return None
    extra = call.outputs[0].dim() - merged.q.ndim
    if not isinstance(parts[0], Tensor) and extra:
        raise UnknownMovementError("a lookup by tokens behind other dimensions")
    return call.labels.apply(merged, lambda ids: ids.reshape(ids.shape + (1,) * extra))


def take(call: Call, ids: Ids, shape: Shape, index: Any) -> Ids:
    """The ids of `tensor[index]`: first what torch takes as views, then the index tensors at once."""
    parts = list(index) if isinstance(index, tuple) else [index]
    parts = [torch.tensor(p) if isinstance(p, list) else p for p in parts]
    parts = [call.plain(p) if is_number(p) else p for p in parts]
    consumed = sum(p.dim() if isinstance(p, Tensor) and p.dtype == torch.bool else p is not None for p in parts
                   if p is not Ellipsis and not isinstance(p, bool))  # fmt: skip
    if Ellipsis in [p for p in parts if not isinstance(p, Tensor)]:
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - consumed)
    parts += [slice(None)] * (len(shape) - sum(
        p.dim() if isinstance(p, Tensor) and p.dtype == torch.bool else p is not None for p in parts))  # fmt: skip
    basic: list[Any] = []
    advanced: list[Any] = []  # one entry for each dimension after the basic step
    sizes: list[int] = []
    d = 0
    for part in parts:
        if isinstance(part, bool):
            raise UnknownMovementError("an index by a Python bool")
        if part is None:
            basic.append(None)
            advanced.append(None)
            sizes.append(1)
            continue
        if isinstance(part, Tensor):
            width = part.dim() if part.dtype == torch.bool else 1
            basic += [slice(None)] * width
            advanced += [part, *[...] * (width - 1)]
            sizes += shape[d : d + width]
            d += width
            continue
        if isinstance(part, slice):
            if any(isinstance(bound, Tensor) for bound in (part.start, part.stop, part.step)):
                call.reads_values = True
            length = len(range(*part.indices(shape[d])))
            if ids.shape[d] == 1 and shape[d] != 1:
                basic.append(slice(None))
                sizes.append(length)
            else:
                basic.append(part)
                sizes.append(length)
            advanced.append(None)
        else:
            basic.append(0 if ids.shape[d] == 1 else int(part))
        d += 1
    ids = ids[tuple(basic)]
    if not any(isinstance(a, Tensor) for a in advanced):
        return ids
    return _take_advanced(call, ids, tuple(sizes), advanced)


def _take_advanced(call: Call, ids: Ids, sizes: Shape, advanced: list[Any]) -> Ids:
    touched = [d for d, part in enumerate(advanced) if part is not None]
    constant = all(ids.shape[d] == 1 for d in touched)
    if not constant:
        ids = spread(ids, sizes, touched)
    index: list[Any] = []
    for d, part in enumerate(advanced):
        if part is None:
            index.append(slice(None))
        elif part is Ellipsis:
            continue  # a later dimension of a bool mask, already there
        elif part.dtype == torch.bool:
            if constant:
                index += [np.zeros(1, dtype=np.int64)] * part.dim()
            else:
                index += list(np.nonzero(call.values(part)))
        elif constant:
            index.append(np.zeros((1,) * part.dim(), dtype=np.int64))
        else:
            values = call.values(part).astype(np.int64)
            index.append(np.where(values < 0, values + sizes[d], values))
    return ids[tuple(index)]


@rule("index_select")
def _index_select(call: Call) -> Label | None:
    source, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    label = call.label(source)
    d = dim % max(source.dim(), 1)
    if label is None or all(ids is None or ids.shape[d] == 1 for ids in (label.q, label.k)):
        found = call.label(index)
        if found is None or label is not None:
            return label
        shape = [1] * source.dim()
        shape[d] = found.q.size
        return call.labels.make(found.q.reshape(shape))
    values = call.values(index).reshape(-1)
    return call.labels.apply(
        label, lambda ids: np.take(spread(ids, tuple(source.shape), [d]), values, axis=d)
    )


@rule("gather", "take_along_dim")
def _gather(call: Call) -> Label | None:
    if call.name == "gather":
        source, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    else:
        source, index, dim = call.arg(0, "input"), call.arg(1, "indices"), call.arg(2, "dim")
    label, out = call.label(source), tuple(call.outputs[0].shape)
    if label is None:
        return call.label(index)
    d = dim % source.dim()

    def move(ids: Ids) -> Ids:
        if ids.shape[d] == 1:
            return ids
        values = call.values(index)
        _check_written(out)
        base = spread(ids, tuple(source.shape))[
            tuple(slice(0, n) if i != d else slice(None) for i, n in enumerate(values.shape))
        ]
        return np.take_along_axis(base, values, axis=d)

    return call.labels.apply(label, move)


def _check_written(shape: Shape) -> None:
    if math.prod(shape) > MAX_WRITTEN_OUT:
        raise UnknownMovementError("too large for its coordinates to be followed")


@rule("masked_select")
def _masked_select(call: Call) -> Label | None:
    source, mask = call.arg(0, "input"), call.arg(1, "mask")
    label = call.label(source)
    if label is None:
        return None
    shape = tuple(torch.broadcast_shapes(source.shape, mask.shape))
    _check_written(shape)
    chosen = np.broadcast_to(call.values(mask), shape)
    return call.labels.apply(label, lambda ids: np.broadcast_to(ids, shape)[chosen])


@rule("where")
def _where(call: Call) -> Label | None | list[Label | None]:
    if len(call.args) + len(call.kwargs) > 1:
        return _default(call)
    return _coordinates_of_nonzero(call)


@rule("nonzero", "argwhere")
def _coordinates_of_nonzero(call: Call) -> Label | None | list[Label | None]:
    source = call.arg(0, "condition", "input")
    label = call.label(source)
    if label is None:
        return _nothing(call)
    _check_written(tuple(source.shape))
    chosen = spread(label.q, tuple(source.shape))[call.values(source) != 0]
    tail = (1,) * (call.outputs[0].dim() - 1)
    return call.labels.make(chosen.reshape(-1, *tail))


# ---------------------------------------------------------------------- writes


@rule("setitem", "index_put_", "index_put", "_index_put_impl_")
def _setitem(call: Call) -> Label | None:
    target, index, value = call.arg(0, "input"), call.arg(1, "indices"), call.arg(2, "values")
    before = call.label(target)
    new = call.label(value)
    shape = tuple(target.shape)
    if new is None:
        return before
    _check_written(shape)
    if isinstance(index, list) and call.name != "setitem":  # index_put: an index for each dimension
        index = tuple(slice(None) if i is None else i for i in index)
    place = take(call, np.arange(math.prod(shape), dtype=np.int32).reshape(shape), shape, index)

    def write(old: Ids | None, ids: Ids | None) -> Ids | None:
        if old is None and ids is None:
            return None
        full = np.full(shape, NONE, dtype=np.int32) if old is None else spread(old, shape).copy()
        written = np.full((1,), NONE, dtype=np.int32) if ids is None else ids
        while written.ndim > place.ndim and written.shape[0] == 1:
            written = written[0]
        full.reshape(-1)[place.reshape(-1)] = np.broadcast_to(written, place.shape).reshape(-1)
        return full

    q = write(None if before is None else before.q, new.q)
    k = write(None if before is None else before.k, new.k)
    assert q is not None
    return call.labels.make(q, k)


@rule("copy_")
def _copy(call: Call) -> Label | None:
    label = call.labels.merge([call.label(call.arg(1, "src", "other"))], call.args[0].dim())
    return label if label is not None else call.label(call.args[0])


@rule("index_add_", "index_add", "index_copy_", "index_copy")
def _index_add(call: Call) -> Label | None:
    target, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    source = call.arg(3, "source", "tensor", "src")
    new, before = call.label(source), call.label(target)
    if new is None:
        return before
    d = dim % target.dim()
    if new.q.shape[d] == 1 and source.shape[d] > 1:
        return call.labels.merge([before, new], target.dim())
    shape = tuple(target.shape)
    old = np.full((1,) * target.dim(), NONE, dtype=np.int32) if before is None else before.q
    wide = np.broadcast_shapes(
        spread(old, shape, [d]).shape, (*new.q.shape[:d], shape[d], *new.q.shape[d + 1 :])
    )
    full = np.broadcast_to(spread(old, shape, [d]), wide).copy()
    values = call.values(index).reshape(-1)
    rows = np.broadcast_to(new.q, (*wide[:d], len(values), *wide[d + 1 :]))
    _scatter_rows(
        call, np.moveaxis(full, d, 0), values, np.moveaxis(rows, d, 0), overwrite="copy" in call.name
    )
    return call.labels.make(full)


def _scatter_rows(call: Call, full: Ids, index: np.ndarray[Any, Any], rows: Ids, overwrite: bool) -> None:
    """Write rows of ids at an index; where different tokens meet, they become a set."""
    if overwrite:
        full[index] = rows
        return
    order = np.argsort(index, kind="stable")
    index, rows = index[order], rows[order]
    starts = np.flatnonzero(np.r_[True, index[1:] != index[:-1]]) if len(index) else []
    for start, stop in zip(starts, [*starts[1:], len(index)], strict=True):
        group = np.unique(rows[start:stop].reshape(stop - start, -1), axis=0)
        here = full[index[start]].reshape(-1)
        if len(group) == 1:
            joined = np.where((here == NONE) | (here == group[0]), group[0], -2)
        else:
            joined = np.full(here.shape, -2)
        for i in np.flatnonzero(joined == -2):
            joined[i] = call.labels.table.union(np.r_[group[:, i], here[i : i + 1]])
        full[index[start]] = joined.reshape(full[index[start]].shape)


@rule("scatter_", "scatter", "scatter_add_", "scatter_add", "scatter_reduce_", "scatter_reduce")
def _scatter(call: Call) -> Label | None:
    target, dim, index = call.arg(0, "input"), call.arg(1, "dim"), call.arg(2, "index")
    source = call.arg(3, "src", "value", "source")
    before, moving = call.label(target), call.label(index)
    new = call.label(source) if isinstance(source, Tensor) else moving
    d = dim % max(target.dim(), 1)
    label = new if new is not None else moving
    if label is None:
        return before
    if label.q.shape[d] == 1:
        shapes_match = all(target.shape[i] == index.shape[i] for i in range(target.dim()) if i != d)
        if shapes_match and (before is None or before.q.shape[d] == 1):
            return call.labels.merge([before, label], target.dim())
    values = call.values(index)
    _check_written(tuple(target.shape))
    full = (
        np.full(tuple(target.shape), NONE, dtype=np.int32)
        if before is None
        else spread(before.q, tuple(target.shape)).copy()
    )
    ids = spread(label.q, tuple(values.shape))
    members: dict[tuple[int, ...], set[int]] = {}
    for at in np.ndindex(*values.shape):
        place = (*at[:d], int(values[at]), *at[d + 1 :])
        members.setdefault(place, set()).add(int(ids[at]))
    add = "add" in call.name or "reduce" in call.name
    for place, found in members.items():
        if add and full[place] != NONE:
            found.add(int(full[place]))
        full[place] = found.pop() if len(found) == 1 else call.labels.table.union(np.asarray(list(found)))
    return call.labels.make(full)


@rule("masked_scatter", "masked_scatter_")
def _masked_scatter(call: Call) -> Label | None:
    if call.label(call.arg(2, "source")) is not None:
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens")
    return call.label(call.args[0])  # an image's features in the places of its tokens


@rule(
    "as_strided", "slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "pad_sequence", "take",
    "put", "put_",
)  # fmt: skip
def _unfollowed(call: Call) -> Label | None:
    """Functions that move tokens in ways that are not worth following."""
    if any(call.label(t) is not None for t in call.tensors()):
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens")
    return None


# ---------------------------------------------------------------------- reductions


@rule(
    "sum", "mean", "prod", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all", "std", "var", "norm",
    "logsumexp", "median", "nanmean", "nansum", "std_mean", "var_mean", "vector_norm", "linalg_vector_norm",
    "linalg_norm", "count_nonzero", "aminmax", "nanmedian", "mode", "quantile",
)  # fmt: skip
def _reduction(call: Call) -> Label | None | list[Label | None]:
    source = call.arg(0, "input", "self", "x")
    at = 2 if "norm" in call.name or call.name == "quantile" else 1
    dim = call.arg(at, "dim", "axis")
    if isinstance(dim, Tensor) or "other" in call.kwargs:
        return _default(call)
    label, ndim = call.label(source), source.dim()
    if isinstance(dim, bool):
        dim = None
    dims = list(range(ndim)) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
    dims = sorted(d % max(ndim, 1) for d in dims) if ndim else []
    keep = call.outputs[0].dim() == ndim
    return call.labels.reduce(label, dims, keep)


@rule("topk", "sort", "kthvalue", "argsort", "msort")
def _sorted(call: Call) -> Label | None:
    source = call.arg(0, "input", "self")
    label = call.label(source)
    if label is None:
        return None
    at = 2 if call.name in ("topk", "kthvalue") else 1
    dim = call.arg(at, "dim", default=-1)
    d = (dim if isinstance(dim, int) and not isinstance(dim, bool) else -1) % max(source.dim(), 1)
    if source.dim() == 0:
        return label

    def move(ids: Ids) -> Ids:
        if ids.shape[d] > 1:
            _check_written(tuple(source.shape))
            order = call.values(call.outputs[-1])
            if order.ndim == ids.ndim - 1:
                order = np.expand_dims(order, d)
            moved = np.take_along_axis(spread(ids, tuple(source.shape)), order, axis=d)
            return moved if call.outputs[-1].dim() == source.dim() else np.squeeze(moved, d)
        return ids if call.outputs[-1].dim() == source.dim() else np.squeeze(ids, d)

    return call.labels.apply(label, move)


@rule(
    "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "binary_cross_entropy", "kl_div", "smooth_l1_loss",
    "binary_cross_entropy_with_logits", "cosine_embedding_loss", "huber_loss",
)  # fmt: skip
def _loss(call: Call) -> Label | None:
    source, target = call.arg(0, "input"), call.arg(1, "target")
    if call.outputs[0].dim():
        label = call.label(target)
        return label if label is not None else _default(call)[0]
    ids = [label.q.reshape(-1) for t in (source, target) if (label := call.label(t)) is not None]
    if not ids:
        return None
    return call.labels.make(np.full((), call.labels.table.union(np.concatenate(ids)), dtype=np.int32))


@rule("bincount", "histc", "unique", "unique_consecutive", "_unique2", "histogram")
def _counts(call: Call) -> Label | None | list[Label | None]:
    label = call.label(call.arg(0, "input", "self"))
    if label is None:
        return _nothing(call)
    table = call.labels.table
    union = table.mixed if table.has_padding(label.q) else table.union(label.q.reshape(-1))
    return [call.labels.make(np.full((1,) * o.dim(), union, dtype=np.int32)) for o in call.outputs]


# ---------------------------------------------------------------------- contractions


@rule("linear")
def _linear(call: Call) -> Label | None:
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None:
        weight = call.label(call.arg(1, "weight"))
        if weight is None:
            return None
        return _product(call, source, call.arg(1, "weight").mT)
    return call.labels.reduce(label, [source.dim() - 1], keepdim=True)


@rule("embedding")
def _embedding(call: Call) -> Label | None:
    first, second = call.arg(0, "input"), call.arg(1, "weight")
    indices = second if first.is_floating_point() else first
    return call.labels.apply(call.label(indices), lambda ids: ids[..., None])


@rule("one_hot")
def _one_hot(call: Call) -> Label | None:
    return call.labels.apply(call.label(call.arg(0, "input", "self")), lambda ids: ids[..., None])


@rule("matmul", "bmm", "mm", "mv", "dot")
def _matmul(call: Call) -> Label | None:
    return _product(call, call.arg(0, "input", "self"), call.arg(1, "other", "mat2", "vec", "tensor"))


@rule("rmatmul")
def _rmatmul(call: Call) -> Label | None:
    return _product(call, call.args[1], call.args[0])


@rule("addmm", "addbmm", "baddbmm", "addmv", "baddbmm_", "addmm_")
def _addmm(call: Call) -> Label | None:
    product = _product(call, call.arg(1, "batch1", "mat1", "mat"), call.arg(2, "batch2", "mat2", "vec"))
    if call.name == "addbmm":
        raise UnknownMovementError("addbmm sums over the batch")
    return call.labels.merge([product, call.label(call.arg(0, "input", "self"))], call.outputs[0].dim())


def _product(call: Call, x: Tensor, y: Tensor) -> Label | None:
    """X [..., n, m] @ y [..., m, p]: elementwise over [..., n, m, p], then summed over m."""
    if call.label(x) is None and call.label(y) is None:
        return None
    lx, ly = call.label(x), call.label(y)
    if x.dim() == 1:
        lx = call.labels.apply(lx, lambda ids: ids[None, :])
    if y.dim() == 1:
        ly = call.labels.apply(ly, lambda ids: ids[:, None])
    has_keys = lx is not None and lx.k is not None
    lx = call.labels.apply(lx, lambda ids: ids[..., :, :, None])
    ly = call.labels.apply(ly, lambda ids: ids[..., None, :, :])
    ndim = max(x.dim(), y.dim(), 2) + 1
    table = _query_key_table(call, lx, ly, ndim)
    merged = table or call.labels.merge([lx, ly], ndim)
    merged = call.labels.reduce(merged, [ndim - 2], keepdim=False)
    if merged is not None and has_keys and merged.k is not None:
        merged = call.labels.make(merged.q)  # weights @ values: the keys are summed over
    elif (
        merged is not None
        and lx is not None
        and ly is not None
        and merged.k is None
        and _one_by_one(x, y)
        and _scores(call, lx, ly)
    ):
        merged = call.labels.make(merged.q, merged.q)  # a single query meets its own, single key
    if merged is not None and x.dim() == 1:
        merged = call.labels.apply(merged, lambda ids: np.squeeze(ids, -2))
    if merged is not None and y.dim() == 1:
        merged = call.labels.apply(merged, lambda ids: np.squeeze(ids, -1))
    return merged


def _query_key_table(call: Call, x: Label | None, y: Label | None, ndim: int) -> Label | None:
    """The label of q @ k.T: rows of one operand's tokens meet columns of the other's, none being summed over."""
    if x is None or y is None or x.k is not None or y.k is not None or np.array_equal(x.q, y.q):
        return None
    table = call.labels.table
    if not (table.is_slot(x.q).any() and table.is_slot(y.q).any()) or x.q.shape[-2] > 1 or y.q.shape[-2] > 1:
        return None
    if x.q.shape[-3] == 1 and y.q.shape[-1] == 1:
        return None  # one token a row on both sides: a state and the token that reads it
    q, k = (ids.reshape((1,) * (ndim - ids.ndim) + ids.shape) for ids in (x.q, y.q))
    return call.labels.make(q, k)


def _one_by_one(x: Tensor, y: Tensor) -> bool:
    """Whether x @ y has one row and one column; the rows of a state that one token reads are its features."""
    return (x.dim() == 1 or x.shape[-2] == 1) and (y.dim() == 1 or y.shape[-1] == 1)


def _scores(call: Call, x: Label, y: Label) -> bool:
    table = call.labels.table
    return (
        x.k is None
        and y.k is None
        and len(np.unique(x.q)) <= table.rows
        and bool(table.is_slot(x.q).all() and table.is_slot(y.q).all())
        and x.q.shape[-2:] == (1, 1)
        and y.q.shape[-3] == y.q.shape[-2] == 1
        and x.q.shape[-3] == y.q.shape[-1] == 1
    )


@rule("einsum")
def _einsum(call: Call) -> Label | None:
    equation, operands = call.args[0], list(call.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or "." in equation:
        raise UnknownMovementError("an einsum with an ellipsis")
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = [c for c in left if c != ","]
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    summed = sorted(set("".join(terms)) - set(right))
    axes = [*right, *summed]
    labels: list[Label | None] = []
    for term, operand in zip(terms, operands, strict=True):
        if len(set(term)) != len(term):
            raise UnknownMovementError("an einsum with a diagonal")
        order = [term.index(c) for c in axes if c in term]
        shape = [c in term for c in axes]
        labels.append(call.labels.apply(call.label(operand), lambda ids, o=order, s=shape: _place(ids, o, s)))
    merged = call.labels.merge(labels, len(axes))
    return call.labels.reduce(merged, list(range(len(right), len(axes))), keepdim=False)


def _place(ids: Ids, order: list[int], present: list[bool]) -> Ids:
    sizes = iter(np.transpose(ids, order).shape)
    return np.transpose(ids, order).reshape([next(sizes) if here else 1 for here in present])


@rule("scaled_dot_product_attention", "flex_attention", "_scaled_dot_product_attention_math")
def _attention(call: Call) -> Label | None:
    query = call.arg(0, "query")
    label = call.label(query)
    if label is None:
        return None
    return call.labels.make(label.q if label.q.shape[-1] == 1 else label.q[..., :1])


@rule("_grouped_mm", "grouped_mm", "aten._grouped_mm")
def _grouped_mm(call: Call) -> Label | None:
    first = call.args[0]
    return call.labels.reduce(call.label(first), [first.dim() - 1], keepdim=True)


@rule("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Label | None:
    spatial = int(call.name[4])
    weight = call.arg(1, "weight")
    return _windows(
        call, spatial, list(weight.shape[2:]), call.arg(3, "stride", default=1), call.arg(4, "padding", default=0),
        call.arg(5, "dilation", default=1), channels=True,
    )  # fmt: skip


@rule("max_pool1d", "avg_pool1d", "max_pool2d", "avg_pool2d")
def _pool(call: Call) -> Label | None:
    kernel = call.arg(1, "kernel_size")
    return _windows(
        call, int(call.name[-2]), kernel, call.arg(2, "stride", default=None) or kernel,
        call.arg(3, "padding", default=0), 1, channels=False,
    )  # fmt: skip


def _windows(
    call: Call, spatial: int, kernel: Any, stride: Any, padding: Any, dilation: Any, *, channels: bool
) -> Label | None:
    """A sliding window makes one output of several tokens: which of them it belongs to.

    With stride 1 it is the place in the window that keeps the most tokens: the middle with as much padding
    on both sides, and else the last, as a causal layer has it. With a larger stride it is the first
    of the window, and a window that reaches into padding belongs to no token (its frame is not counted by
    the models' own length functions).

    A column kept of an earlier call is there for the windows of later ones. Its own window, where it begins before
    what was kept, is cut short: what comes of it is no value of its token.
    """
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None:
        return None

    def per_dim(value: Any) -> list[Any]:
        return list(value) if isinstance(value, (tuple, list)) else [value] * spatial

    kernels, strides, dilations = per_dim(kernel), per_dim(stride), per_dim(dilation)
    first = source.dim() - spatial
    if channels:
        label = call.labels.reduce(label, [first - 1], keepdim=True)
        assert label is not None

    def move(ids: Ids) -> Ids:
        for i in range(spatial):
            d = first + i
            alone = int(source.shape[d]) == 1 and bool(call.labels.table.is_slot(ids).all())
            if ids.shape[d] == 1 and not alone:
                continue
            out, step, reach = int(call.outputs[0].shape[d]), int(strides[i]), int(kernels[i])
            spread_by = int(dilations[i])
            before = _padding_before(padding, i, reach, spread_by)
            windows = np.arange(out)[:, None] * step - before + np.arange(reach)[None, :] * spread_by
            inside = (windows >= 0) & (windows < ids.shape[d])
            moved = np.moveaxis(ids, d, 0)
            held = np.where(
                inside.reshape(*inside.shape, *[1] * (ids.ndim - 1)),
                moved[np.clip(windows, 0, ids.shape[d] - 1)],
                NONE,
            )
            ids = np.moveaxis(_of_window(call, held, step), 0, d).astype(np.int32)
        return ids

    return call.labels.apply(label, move)


def _padding_before(padding: Any, i: int, kernel: int, dilation: int) -> int:
    if padding == "same":
        return (kernel - 1) * dilation // 2
    if padding == "valid":
        return 0
    return int(padding[i] if isinstance(padding, (tuple, list)) else padding)


def _of_window(call: Call, held: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
    """The coordinate of each window, from the ids that it holds, [outputs, kernel, ...]."""
    kernel, table = held.shape[1], call.labels.table
    if step == 1:
        counts = [len(np.unique(held[:, place][held[:, place] != NONE])) for place in range(kernel)]
        best = max(range(kernel), key=lambda place: (counts[place], place))
        cut = (held[:, :best] == NONE).any(axis=1) & table.kept_of_earlier(held[:, best])
        return np.where(cut, table.mixed, held[:, best])
    padded = np.asarray([*map(table.is_padding, range(len(table.kinds))), False])[held].any(axis=1)
    chosen = held[:, 0]
    for place in range(1, kernel):
        chosen = np.where(chosen == NONE, held[:, place], chosen)
    return np.where(padded, table.mixed, chosen)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(call: Call) -> list[Label | None]:
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None or source.dim() not in (2, 3):
        return _nothing(call)
    steps = call.labels.reduce(label, [source.dim() - 1], keepdim=True)
    state: Label | None = None
    if source.dim() == 3 and len(call.outputs) > 1:
        batch_first = tuple(call.outputs[1].shape)[1] == source.shape[0] and call.args[-1] is True
        time = 1 if batch_first else 0
        summed = call.labels.reduce(steps, [time], keepdim=False)
        state = call.labels.apply(summed, lambda ids: ids[None])
    return [steps, *[state] * (len(call.outputs) - 1)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(call: Call) -> Label | None:
    """One step of a recurrent network belongs to the column that goes in, not to those in its state."""
    label = call.label(call.arg(0, "input"))
    if label is None:
        return _default(call)[0]
    return call.labels.reduce(label, [call.arg(0, "input").dim() - 1], keepdim=True)


@rule("_pack_padded_sequence")
def _pack(call: Call) -> list[Label | None]:
    """Rows of different lengths become one list of steps: all rows' first tokens, then all second ones."""
    source, lengths, batch_first = call.args[0], call.args[1], call.arg(2, "batch_first", default=False)
    label = call.label(source)
    if label is None:
        return [None, None]
    ids = spread(label.q, tuple(source.shape), [0, 1])
    ids = ids if batch_first else np.swapaxes(ids, 0, 1)
    sizes = call.values(lengths)
    steps = [ids[row, t] for t in range(int(sizes.max())) for row in range(len(sizes)) if sizes[row] > t]
    return [call.labels.make(np.stack(steps)), None]


@rule("_pad_packed_sequence")
def _unpack(call: Call) -> list[Label | None]:
    data, batch_sizes, batch_first = call.args[0], call.args[1], call.arg(2, "batch_first", default=False)
    label = call.label(data)
    if label is None:
        return [None, None]
    ids = spread(label.q, tuple(data.shape), [0])
    sizes = call.values(batch_sizes)
    out = call.outputs[0]
    rows, steps = (out.shape[0], out.shape[1]) if batch_first else (out.shape[1], out.shape[0])
    padded = np.full((rows, steps, *ids.shape[1:]), NONE, dtype=np.int32)
    at = 0
    for t, size in enumerate(sizes.tolist()):
        padded[:size, t] = ids[at : at + size]
        at += size
    return [call.labels.make(padded if batch_first else np.swapaxes(padded, 0, 1)), None]


# ---------------------------------------------------------------------- what a module hides


def through_module(
    labels: Labels, inputs: Sequence[tuple[Label | None, Shape]], shape: Shape
) -> Label | None:
    """The label of a value that a module made where no tap saw it: that of an input it is shaped like.

    The token dimensions keep their places in every layer that works token by token; an input whose
    token dimensions have other sizes in the output says nothing.
    """
    for label, source in inputs:
        if label is None:
            continue
        ids = label.q
        fits = all(
            size == 1 or (d < len(shape) and shape[d] == source[d]) for d, size in enumerate(ids.shape)
        )
        if fits:
            kept = ids.shape[: len(shape)]
            if any(size > 1 for size in ids.shape[len(shape) :]):
                continue
            return labels.make(compress(ids.reshape(kept + (1,) * (len(shape) - len(kept)))))
    return None
