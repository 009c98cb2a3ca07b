"""A slow and obvious answer to "where do two runs part ways?", to check forkpoint against.

It keeps a copy of every value that every torch function returns, in both runs, and compares all of
them, element by element. It shares no code with forkpoint, and learns in its own way which
dimension of a value follows the tokens: it runs the model again at other lengths and batch sizes
and looks at what changed.

    a = Recording(model, inputs, sizes, coordinates)
    b = Recording(model, padded_inputs, padded_sizes, padded_coordinates)
    first_difference(a, b)
    # Difference(op='model.layers.0.self_attn/scaled_dot_product_attention', sample=0, position=8, …)

The order of the rows in a layer of experts depends on the data, so the recorder reads it from the
index tensors that the layer makes (`Experts`). A Mamba 2 cuts the tokens into chunks of a fixed
length, which no change of length reveals, so that length is given (`Recording.chunk`).
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

TORCH_FOLDER = str(Path(torch.__file__).parent) + "/"
"""Frames of files in here are not the model's own code."""

PUBLIC_NAMES = {
    "rdiv": "div",
    "rsub": "sub",
    "rpow": "pow",
    "rmatmul": "matmul",
    "iadd": "add_",
    "imul": "mul_",
}
"""The public name of a torch function, for the special methods that have another."""

UNINITIALISED = {"empty", "empty_like", "new_empty", "empty_strided"}
"""Their values are garbage until something is written."""

Coordinate = tuple[Any, ...]
"""Which token or tokens a value belongs to: see `places`."""


# --- What a run does -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What a dimension may follow: the rows, the tokens, and the tokens of the decoder."""

    rows: int
    tokens: int
    decoder: int = 0


@dataclass(eq=False)
class Op:
    """One call of a torch function."""

    module: str
    function: str
    place: tuple[str, int, int]
    """File, line, and the offset of the instruction."""
    outputs: list[torch.Tensor]
    """Copies."""
    func: Any
    """The torch function itself."""
    is_view: bool
    """Whether its output lies in the memory of one of its inputs, and nothing was written."""
    order: torch.Tensor | None = None
    """In a layer of experts: for each row, the [token, choice] that it holds, or both as one number."""
    labels: list[tuple[Any, ...]] = field(default_factory=list)
    """For each output, what each of its dimensions follows. Filled in later."""
    depends: bool = False
    """Whether other tokens give other values. Filled in later."""

    @property
    def name(self) -> str:
        return f"{self.module or '(model)'}/{self.function}"

    @property
    def key(self) -> tuple[Any, ...]:
        return self.module, self.function, self.place


class Recorder(TorchFunctionMode):
    """Notes every torch function that a model calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.path: list[str] = [""]
        self.experts = Experts()
        self.model = model

    @property
    def functions(self) -> list[Any]:
        """The torch functions that were called."""
        return list({id(op.func): op.func for op in self.ops}.values())

    def record(self, inputs: Mapping[str, Any]) -> list[Op]:
        paths = {module: path for path, module in self.model.named_modules()}

        def enter(module: nn.Module, _: Any) -> None:
            # A module that the model makes while it runs has its class for a name.
            self.path.append(paths.get(module, f"{self.path[-1]}.{type(module).__name__}"))

        def leave(*_: Any) -> None:
            self.path.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            with torch.no_grad(), self:
                self.model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return self.ops

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        result = func(*args, **kwargs)
        function = public_name(func)
        writes = function.endswith("_") or function == "setitem" or "out" in kwargs
        outputs = list(tensors(args[0] if function == "setitem" else result))
        if outputs:
            shared = any(out.untyped_storage().data_ptr() in taken for out in outputs if out.numel())
            op = Op(
                module=self.path[-1],
                function=function,
                place=caller(sys._getframe(1)),
                outputs=[out.detach().clone() for out in outputs],
                func=func,
                is_view=shared and not writes,
            )
            self.experts.watch(op, args)
            self.ops.append(op)
        return result


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def public_name(func: Any) -> str:
    name = func.__name__
    if name == "__get__":
        name = func.__self__.__name__
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
    return PUBLIC_NAMES.get(name, name)  # pyright: ignore[reportReturnType]


def caller(frame: FrameType | None, *own: str) -> tuple[str, int, int]:
    """The innermost place outside torch (and outside this file, and files of the watcher's `own`)."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(TORCH_FOLDER) and file not in (__file__, *own):
            return file, frame.f_lineno, frame.f_lasti
        frame = frame.f_back
    raise AssertionError("a torch function called by nobody")


class Experts:
    """Follows which token each row belongs to, inside layers of experts.

    The eager loop picks the rows of one expert with `where`, which gives (choice, token); the
    grouped form sorts (token, choice) pairs, flattened, and puts them back with `inv_perm`.
    """

    def __init__(self) -> None:
        self.layer: str | None = None
        self.rows: torch.Tensor | None = None

    def watch(self, op: Op, args: Any) -> None:
        layer = op.module.split(".experts")[0] if ".experts" in op.module else None
        if layer != self.layer:
            self.layer, self.rows = layer, None
        if layer is None:
            return
        if op.function == "where":
            choice, token = op.outputs
            self.rows = torch.stack([token, choice], dim=1)
        elif op.function == "sort":
            _, permutation = op.outputs
            self.rows = permutation
        elif op.function == "setitem":
            self.rows = None
        elif op.function == "index_add_":
            # Only the rows that it wrote: the others are none of this expert's business.
            op.outputs = [op.outputs[0][args[2]]]
            op.order = self.rows
        elif self.rows is not None and all(out.dim() and len(self.rows) == len(out) for out in op.outputs):
            op.order = self.rows


# --- Which dimension follows the tokens ----------------------------------------------------------


class Recording:
    """A run, with what each dimension of each of its values follows."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Callable[[Sizes], Mapping[str, Any]],
        sizes: Sizes,
        coordinates: Mapping[str, Mapping[int, list[tuple[int, int]]]],
        chunk: int | None = None,
    ) -> None:
        """
        Args:
            inputs: makes the inputs of the run at these sizes and, with the same kind of layout, at
                others.
            sizes: the sizes of the run itself.
            coordinates: for each stream ("tokens", "decoder"), for each row, the (sample, position)
                of each column, or (-1, -1) for padding.
            chunk: the length of the chunks of a state-space model.
        """
        self.sizes = sizes
        self.coordinates = coordinates
        self.chunk = chunk
        self.ops = Recorder(model).record(inputs(sizes))
        others = []
        for rows, tokens, decoder in [(0, 2, 0), (0, 4, 0), (0, 8, 0), (2, 0, 0), (5, 0, 0), (0, 0, 2)]:
            if decoder and not sizes.decoder:
                continue
            other = Sizes(sizes.rows + rows, sizes.tokens + tokens, sizes.decoder + decoder)
            others.append((other, by_pass(Recorder(model).record(inputs(other)))))
        for key, op in by_pass(self.ops).items():
            partners = [(other, ops[key].outputs) for other, ops in others if key in ops]
            op.labels = [
                tuple(
                    self.label(
                        size,
                        [
                            (o, out[i].shape[dim])
                            for o, out in partners
                            if i < len(out) and dim < out[i].dim()
                        ],
                    )
                    for dim, size in enumerate(output.shape)
                )
                for i, output in enumerate(op.outputs)
            ]
            if op.order is not None:
                op.labels = [("ordered", *("fixed",) * (out.dim() - 1)) for out in op.outputs]
            if chunk and op.place[0].endswith("cache_utils.py"):
                # The last few columns, which may be padding in one run, with no dimension to tell.
                op.labels = [("unknown",) for _ in op.outputs]
            op.depends = any(
                not same(mine, theirs)
                for _, outputs in partners
                for mine, theirs in zip(op.outputs, outputs, strict=False)
                if mine.shape == theirs.shape
            )

    def label(self, size: int, elsewhere: list[tuple[Sizes, int]]) -> Any:
        """What a dimension follows: "fixed", (what, factor), "unknown", or a part of a chunk."""
        observed = [(self.sizes, size), *elsewhere]
        if self.chunk and size == self.chunk and all(s == size for _, s in elsewhere):
            return "within"
        if all(s == size for _, s in elsewhere):
            return "fixed"
        for what, count in COUNTS.items():
            base = count(self.sizes)
            if base and size % base == 0 and all(s == count(other) * (size // base) for other, s in observed):
                return what, size // base
        if self.chunk:
            chunks = lambda other: -(-other.tokens // self.chunk)  # noqa: E731
            if all(s == chunks(other) for other, s in observed):
                return "chunk"
            if all(s == chunks(other) * self.chunk for other, s in observed):
                return "tokens", 1
            # A causal convolution has a tail: the token at column c is the input's column c.
            if all(0 < s - other.tokens == size - self.sizes.tokens for other, s in observed):
                return "tokens", 1
        return "unknown"

    def token_of(self, stream: str, row: int, column: int) -> tuple[int, int]:
        columns = self.coordinates[stream][row]
        return columns[column] if column < len(columns) else (-1, -1)


COUNTS: dict[str, Callable[[Sizes], int]] = {
    "rows": lambda s: s.rows,
    "tokens": lambda s: s.tokens,
    "decoder": lambda s: s.decoder,
    "rows x tokens": lambda s: s.rows * s.tokens,
    "rows x decoder": lambda s: s.rows * s.decoder,
}


def by_pass(ops: Iterable[Op]) -> dict[tuple[Any, ...], Op]:
    """The ops by key and pass: the k-th call at a place."""
    seen: dict[tuple[Any, ...], int] = defaultdict(int)
    found = {}
    for op in ops:
        found[(*op.key, seen[op.key])] = op
        seen[op.key] += 1
    return found


# --- The values of each token --------------------------------------------------------------------


def values(run: Recording, op: Op, index: int) -> dict[Coordinate, torch.Tensor] | None:
    """The values of one output of an op by coordinate, or None if the oracle can't tell."""
    output, labels = op.outputs[index], op.labels[index]
    indexed = followed(labels)
    if indexed is None:
        return None
    found: dict[Coordinate, torch.Tensor] = {}
    for place in itertools.product(*(range(output.shape[dim]) for dim in indexed)):
        at = dict(zip(indexed, place, strict=True))
        for coordinate in places(run, op, labels, at):
            value = output[tuple(at.get(dim, slice(None)) for dim in range(output.dim()))].reshape(-1)
            # Heads that share a dimension with the rows are put one after the other.
            found[coordinate] = torch.cat([found[coordinate], value]) if coordinate in found else value
    return found


def coordinate_at(run: Recording, op: Op, index: int, element: tuple[int, ...]) -> Coordinate | None:
    """The (first) coordinate that one element of an output belongs to, or None if it is padding."""
    labels = op.labels[index]
    indexed = followed(labels)
    if indexed is None:
        return None
    return min(places(run, op, labels, {dim: element[dim] for dim in indexed}), default=None, key=in_order)


def followed(labels: Any) -> list[int] | None:
    """The dimensions that follow rows or tokens; None if the oracle can't tell how."""
    chunks, within = labels.count("chunk"), labels.count("within")
    streams = sum(label[0] in COUNTS for label in labels) - sum(label[0] == "rows" for label in labels)
    if "unknown" in labels or chunks > 1 or within > 2 or streams > 2 or (chunks and (streams or not within)):
        return None
    return [dim for dim, label in enumerate(labels) if label != "fixed" and (label != "within" or chunks)]


def places(run: Recording, op: Op, labels: Any, at: Mapping[int, int]) -> Iterator[Coordinate]:
    """The coordinates that an index of the followed dimensions stands for.

    - (stream, sample, position): the value of a token
    - (stream, sample, query, key): what a token makes of another
    - ("choice", number, sample, position): what one of a token's experts made
    - (None, sample): a value of the sample
    - (): a value of the whole call

    None for padding, and several where there is no dimension for the rows.
    """
    row: int | None = None
    columns: list[tuple[str, int]] = []
    chunk: int | None = None
    for dim, index in at.items():
        label = labels[dim]
        if label == "ordered":
            yield from choice_of(run, op, index)
            return
        if label == "chunk":
            chunk = index
        elif label == "within":
            continue
        else:
            what, factor = label
            number = index // factor
            if what == "rows":
                row = number
            else:
                stream = what.removeprefix("rows x ")
                if what != stream:
                    row, number = divmod(number, getattr(run.sizes, stream))
                columns.append((stream, number))
    if chunk is not None:
        assert run.chunk
        columns = [
            ("tokens", chunk * run.chunk + index) for dim, index in at.items() if labels[dim] == "within"
        ]
    if row is None and not columns:
        yield ()
        return
    for each in range(run.sizes.rows) if row is None else [row]:
        if not columns:
            yield None, next(sample for sample, _ in run.coordinates["tokens"][each] if sample >= 0)
            continue
        tokens = [run.token_of(stream, each, column) for stream, column in columns]
        if all(sample >= 0 for sample, _ in tokens):
            yield columns[0][0], tokens[0][0], *(position for _, position in tokens)


def choice_of(run: Recording, op: Op, place: int) -> Iterator[Coordinate]:
    """The token of a row in a layer of experts, and which of the token's experts has it."""
    assert op.order is not None
    if op.order.dim() == 2:
        token, choice = op.order[place].tolist()
    else:
        per_token = len(op.order) // (run.sizes.rows * run.sizes.tokens)
        token, choice = divmod(int(op.order[place]), per_token)
    sample, position = run.token_of("tokens", token // run.sizes.tokens, token % run.sizes.tokens)
    if sample >= 0:
        yield "choice", choice, sample, position


# --- The comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first op whose floating-point values differ, and the first token at which they do."""

    op: str
    sample: int | None
    position: int | None
    place: str = field(default="", compare=False)
    differing: int = field(default=0, compare=False)


def first_difference(a: Recording, b: Recording) -> Difference | None:
    """Compares the values of `a`, in the order in which it made them, with those of `b`."""
    for op, coordinate, differing in differences(a, b):
        sample, position = sample_and_position(coordinate)
        file, line, _ = op.place
        return Difference(op.name, sample, position, f"{Path(file).name}:{line}", differing)
    return None


def differences(a: Recording, b: Recording) -> Iterator[tuple[Op, Coordinate, int]]:
    """Every op that differs, its first coordinate that does, and how many do."""
    theirs = by_pass(b.ops)
    same_tokens = (a.sizes, a.coordinates) == (b.sizes, b.coordinates)
    # The passes of a loop over experts are told apart by the token: its k-th meets its k-th.
    passes: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for op in b.ops:
        for index in range(len(op.outputs)) if op.order is not None else ():
            for coordinate, value in (values(b, op, index) or {}).items():
                passes[op.key, index, coordinate].append(value)
    for key, op in by_pass(a.ops).items():
        if op.is_view or op.function in UNINITIALISED:
            continue
        for index, output in enumerate(op.outputs):
            if not (output.is_floating_point() or output.is_complex()):
                continue
            mine = values(a, op, index)
            if mine is not None and () in mine and op.depends and not same_tokens:
                continue  # A count, say, over all tokens of the call, padding too.
            if op.order is not None:
                other = {c: rest.pop(0) for c in mine or {} if (rest := passes[op.key, index, c])}
            elif key in theirs and index < len(theirs[key].outputs):
                other = values(b, theirs[key], index) or {}
            else:
                continue
            differing = [
                coordinate
                for coordinate, value in (mine or {}).items()
                if coordinate in other
                and comparable(coordinate, value, other[coordinate])
                and not same(value, other[coordinate])
            ]
            if differing:
                yield op, min(differing, key=in_order), len(differing)
                break


def in_order(coordinate: Coordinate) -> Any:
    sample, position = sample_and_position(coordinate)
    return (-1 if sample is None else sample, -1 if position is None else position)


def sample_and_position(coordinate: Coordinate) -> tuple[int | None, int | None]:
    match coordinate:
        case ():
            return None, None
        case (None, sample):
            return sample, None
        case ("choice", _, sample, position):
            return sample, position
        case (_, sample, position, *_):
            return sample, position
        case _:
            raise AssertionError(coordinate)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, but a NaN is a NaN and -0.0 is 0.0."""
    a, b = a.reshape(-1), b.reshape(-1)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def comparable(coordinate: Coordinate, a: torch.Tensor, b: torch.Tensor) -> bool:
    """What belongs to a token may be packed otherwise; what belongs to the whole call may not."""
    return a.shape == b.shape if coordinate == () else a.numel() == b.numel()
