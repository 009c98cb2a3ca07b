"""The recorder: turns what the taps see into a trace, digest by digest, never waiting for the device."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint.capture import digest
from forkpoint.capture.coordinates import NONE, CoordinateTable, Ids
from forkpoint.capture.functions import UNWRITTEN, Function, resolve, shares_memory
from forkpoint.capture.labels import Label, Labels, Shape, fits, split_blocks, spread
from forkpoint.capture.rules import Call, UnknownMovementError, propagate, tensors_in, through_module
from forkpoint.capture.sites import Place, Site, site_of
from forkpoint.capture.writes import INDEXED_WRITES, Window, Written, written_by
from forkpoint.layout import DECODER, MAIN, Layout, grid_shape, stream_of, token_tensor
from forkpoint.run import version
from forkpoint.trace import WHOLE, Cells, Event, Op, Trace

MAX_OPEN_CELLS = {"without tokens": 1 << 22, "with tokens": 1 << 18}
"""Most cells of one value whose token dimensions are only suspected; a value that has a known one
already (a mask by its keys) seldom needs them."""
MAX_OPEN_TOTAL = 1 << 24
"""Most such cells of a whole trace; beyond it those values are compared whole."""
MAX_RELABELLED = 1 << 22
"""Most elements of a tensor whose coordinates are rewritten after a write that it shares."""
PENDING_BYTES = {"cpu": 1 << 25, "other": 1 << 28}
"""Values kept alive for a digest in one go, by device."""

Group = tuple[str, str, Place]


class Watcher(Protocol):
    """Sees every value as it passes by, and may put another in its place."""

    def edit(
        self,
        recorder: Recorder,
        key: tuple[str, str, str],
        nth: int,
        output: int,
        value: Tensor,
        label: Label | None,
    ) -> Tensor | None:
        """A value of the same shape and dtype to go on with, or None to leave this one."""
        ...

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        """An event was recorded; `inputs` are the events of the tensors that went into it."""
        ...


@dataclass(slots=True)
class _Known:
    """What is known of a tensor that passed by."""

    ref: weakref.ref[Tensor]
    label: Label | None
    event: int
    """The event that holds its value, or -1."""
    lost: str = ""
    """Why its coordinates are not known, where its tokens could not be followed."""


@dataclass(slots=True)
class _Pending:
    """A value whose digest is not computed yet."""

    event: int
    tensor: Tensor
    version: int | None


@dataclass(frozen=True, eq=False)
class _Plan:
    """How a value is digested: which dimensions are cells, and how cells become coordinates."""

    cells: Cells
    row_dims: tuple[int, ...]
    row_ids: Ids | None
    """The cell of each row, where several rows are one coordinate's; None where they are the cells."""
    extra: Any = None
    """For several rows of one coordinate, which of them each row is; for pairs, their two sides and keys."""
    width: Any = 0
    """Elements in each cell: one number, or an array where cells differ."""
    shape: Shape | None = None
    """For pairs, the shape in which rows and heads are dimensions of their own."""


@dataclass(frozen=True, eq=False, slots=True)
class _Recipe:
    """What all values of one label, dtype and shape have in common."""

    shape: Shape
    dtype: str
    floating: bool
    plan: _Plan
    nbytes: int


@dataclass(slots=True)
class Frame:
    """A module on the stack."""

    path: str
    module: nn.Module | None
    arguments: tuple[Any, ...] = ()


@dataclass
class Fetch:
    """A value, or a whole call, that a second pass should keep.

    Attributes:
        key: the op's key (module, function, chain), without the output.
        call, nth: which of its passes; None for all.
        take: called with the finished call.
    """

    key: tuple[str, str, str]
    call: int | None
    nth: int | None
    take: Callable[[Taken], None]
    output: int | None = None
    """For a module's output, which of several."""


@dataclass
class Taken:
    """One call of a torch function, with copies of what went in and came out."""

    op: Op
    call: int
    nth: int
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    input_labels: dict[int, Label | None]
    """By id of the copied tensor."""
    output_labels: tuple[Label | None, ...]
    owned: dict[int, str] = field(default_factory=dict[int, str])
    """Full names of parameters and buffers among the inputs, by id of the copied tensor."""
    kept_alive: list[Tensor] = field(default_factory=list[Tensor])
    """Tensors that the two tables speak of, besides the arguments."""


class Recorder:
    """Records one run.

    Args:
        layout: where the run's tokens are.
        model: gives modules their paths and parameters their names.
        fetches: calls to keep; with any, digests are still taken.
        digests: False to follow the labels only (a second pass that wants values).
        labels: those of the first pass, so that a second pass speaks of the same coordinates.
        watcher: sees every value, and may change it.
        read: gives the true value of a tensor, where another mode keeps it elsewhere (`Promotion.value`).
    """

    def __init__(
        self,
        layout: Layout,
        model: nn.Module | None,
        fetches: tuple[Fetch, ...] = (),
        digests: bool = True,
        labels: Labels | None = None,
        watcher: Watcher | None = None,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.labels = labels or Labels(CoordinateTable(layout))
        self.table = self.labels.table
        self.trace = Trace(self.table)
        self.stack: list[Frame] = [Frame("", model)]
        self.call = -1
        self.watcher = watcher
        self._read = read
        self._digests = digests
        self._paths = _paths(model)
        self.owned = _owned(model)
        self._known: dict[int, _Known] = {}
        self._ops: dict[tuple[Group, int], int] = {}
        self._passes: dict[Any, int] = {}
        self._answers: dict[Any, list[Label | None] | str] = {}
        self._recipes: dict[Any, _Recipe] = {}
        self._pending_limit = PENDING_BYTES["cpu"]
        self._batch = digest.Batch()
        self._slots: list[tuple[Event, int]] = []
        self._odd: list[tuple[Event, Tensor, _Plan]] = []
        self._computed: list[tuple[Event, _Plan, list[Tensor]]] = []
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self._last: _Pending | None = None
        self._last_outputs: list[tuple[Label | None, Shape]] = []
        self._open_cells = 0
        self._lengths: frozenset[int] = frozenset()
        self._lengths_number = 0
        self._lengths_seen: dict[frozenset[int], int] = {}
        self._fetches: dict[tuple[str, str, str], list[Fetch]] = {}
        for fetch in fetches:
            self._fetches.setdefault(fetch.key, []).append(fetch)

    # ------------------------------------------------------------------ calls

    def begin_call(self, index: int, inputs: Mapping[str, Any]) -> None:
        """Label the inputs of a forward call."""
        self.call = index
        self._passes.clear()
        self._lengths = self._token_lengths(index, inputs)
        self._lengths_number = self._lengths_seen.setdefault(self._lengths, len(self._lengths_seen))
        self.trace.lengths.append(self._lengths)
        for name, value in inputs.items():
            self._label_input(index, inputs, name, value)

    def _token_lengths(self, index: int, inputs: Mapping[str, Any]) -> frozenset[int]:
        lengths: set[int] = set()
        for stream in (MAIN, DECODER):
            slots, so_far = self.table.slots(index, stream), self.table.slots_so_far(index, stream)
            for grid in (slots, so_far):
                if grid is not None and grid.ndim:
                    lengths.add(int(grid.shape[-1]))
            if slots is None:  # a decoder's encoder, seen in an earlier call
                for earlier in range(index):
                    grid = self.table.slots(earlier, stream)
                    if grid is not None and grid.ndim > 1:
                        lengths.add(int(grid.shape[-1]))
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            lengths.add(int(mask.shape[-1]))
        return frozenset(lengths - {0})

    def _label_input(self, index: int, inputs: Mapping[str, Any], name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            label = self._input_label(index, inputs, name, value)
            if self.watcher is not None:
                new = self.watcher.edit(self, ("", f"input:{name}", "?"), 0, 0, value, label)
                if new is not None:
                    value.copy_(new)
            self._remember(value, label, self._boundary("", f"input:{name}", value, label))
        elif value is not None:
            for tensor, label in self._nested_labels(index, name, value):
                if self.watcher is not None and label is not None:
                    new = self.watcher.edit(self, ("", f"input:{name}", "?"), 0, 0, tensor, label)
                    if new is not None:
                        tensor.copy_(new)
                if self._find(tensor) is None:
                    self._remember(tensor, label, -1)

    def _input_label(self, index: int, inputs: Mapping[str, Any], name: str, value: Tensor) -> Label | None:
        stream = DECODER if name.startswith("decoder_") else MAIN
        if name in ("labels", "decoder_labels") and self.table.slots(index, DECODER) is not None:
            stream = DECODER
        slots = self.table.slots(index, stream)
        shape = tuple(value.shape)
        if slots is None:
            return None
        found = token_tensor(inputs, stream)
        own = found is not None and found[1] is value and grid_shape(*found) is None and slots.ndim == 2
        if own and shape[: slots.ndim] != slots.shape and len(shape) == 3 and shape[2] == slots.shape[1]:
            return self.labels.make(slots[:, None, :])  # frames last
        for grid in (slots, self.table.slots_so_far(index, stream)):
            if (
                grid is not None
                and shape[: grid.ndim] == grid.shape
                and (grid.ndim > 1 or len(shape) == 1 or found is None or found[1] is value)
            ):
                return self.labels.make(grid.reshape(grid.shape + (1,) * (len(shape) - grid.ndim)))
            if grid is not None and grid.ndim == 2 and shape == grid.shape[::-1]:
                return self.labels.make(np.ascontiguousarray(grid.T))
        if slots.ndim == 2 and name == "labels" and shape == slots.shape[:1]:
            return self.labels.reduce(self.labels.make(slots), [1], keepdim=False)
        so_far = self.table.slots_so_far(index, stream)
        if (
            so_far is not None
            and slots.ndim == 2
            and shape == (slots.shape[0], 1, slots.shape[1], so_far.shape[1])
        ):
            return self.labels.make(slots[:, None, :, None], so_far[:, None, None, :])
        return None

    def _nested_labels(self, index: int, name: str, value: Any) -> list[tuple[Tensor, Label | None]]:
        """Labels of tensors inside an input: an encoder's output, or the cache of earlier tokens."""
        tensors = _tensors_within(value)
        stream = stream_of(name)
        found: list[tuple[Tensor, Label | None]] = []
        slots = self.table.slots(index, stream)
        for tensor in tensors:
            label: Label | None = None
            if name == "encoder_outputs" and slots is not None and tuple(tensor.shape[:2]) == slots.shape:
                label = self.labels.make(slots.reshape(slots.shape + (1,) * (tensor.dim() - 2)))
            found.append((tensor, label))
        return found

    # ------------------------------------------------------------------ ops

    def before(self, function: Function, kwargs: dict[str, Any]) -> None:
        """Called before a function runs: what it overwrites must be digested first."""
        self._note_late_write()
        if self._pending and (function.writes or "out" in kwargs or kwargs.get("inplace")):
            self.flush()

    def fetching(self, function: Function, place: Place) -> list[Fetch]:
        """The fetches that want the call which is about to run."""
        if not self._fetches:
            return []
        path = self.stack[-1].path
        group = (path, function.name, place)
        wanted = self._fetches.get((path, function.name, site_of(place).chain), [])
        nth = self._passes.get(group, 0)
        return [f for f in wanted if f.call in (None, self.call) and f.nth in (None, nth)]

    def record(
        self,
        function: Function,
        func: Any,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> tuple[Group, int, tuple[Tensor, ...], list[Label | None]] | None:
        """Record a finished call; None if it made no tensor."""
        if isinstance(result, Tensor):
            outputs: tuple[Tensor, ...] = (result,)
        elif function.name == "setitem":
            outputs = (args[0],)
        else:
            outputs = tuple(tensors_in((result,)))
            if not outputs:
                return None
        if _inside_transform():
            return None  # inside vmap or grad: these tensors are not the model's own
        labels, reason = self._propagate(function, func, args, kwargs, outputs)
        group = (self.stack[-1].path, function.name, place)
        nth = self._passes.get(group, 0)
        self._passes[group] = nth + 1
        writes = function.writes or "out" in kwargs or bool(kwargs.get("inplace"))
        inputs: list[Tensor] = []
        if (function.may_view is None and not writes) or self.watcher is not None:
            inputs = tensors_in((args, tuple(kwargs.values())))
        written: Written | None = None
        if function.rule in INDEXED_WRITES and labels[0] is not None:
            call = Call(function.rule, func, args, kwargs, outputs, self.label_of, self.labels)
            written = written_by(call, self.true_value(outputs[0]), labels[0])
        last: list[tuple[Label | None, Shape]] = []
        for index, (output, label) in enumerate(zip(outputs, labels, strict=True)):
            view = not writes and (
                shares_memory(output, inputs) if function.may_view is None else function.may_view
            )
            value, held = (written.value, written.label) if written else (output, label)
            event = self._event(self._op(group, index), nth, value, held, view, reason, function)
            if self.watcher is not None:
                self.watcher.saw(self, event, self.true_value(value), held, self._events_of(inputs))
            if writes:
                self._note_shared(output, label, event)
            self._remember(output, label, event, reason if label is None else "")
            last.append((label, output.shape))
        self._last_outputs = last
        if written is not None and self._fetches:
            labels = [written.alone(self.labels, labels[0])]
        return group, nth, outputs, labels

    def _events_of(self, inputs: list[Tensor]) -> list[int]:
        """The events that hold these tensors' values."""
        found = [self._find(t) for t in inputs]
        return [known.event for known in found if known is not None and known.event >= 0]

    def edit(
        self,
        function: Function,
        func: Any,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> Any:
        """Let the watcher change the values of a finished call before the model goes on with them."""
        watcher = self.watcher
        if watcher is None:
            return result
        if function.name == "setitem":
            outputs: tuple[Tensor, ...] = (args[0],)
        else:
            outputs = (result,) if isinstance(result, Tensor) else tuple(tensors_in((result,)))
        if not outputs or _inside_transform():
            return result
        labels, _ = self._propagate(function, func, args, kwargs, outputs)
        path = self.stack[-1].path
        key = (path, function.name, site_of(place).chain)
        nth = self._passes.get((path, function.name, place), 0)
        inputs = tensors_in((args, tuple(kwargs.values())))
        for index, (output, label) in enumerate(zip(outputs, labels, strict=True)):
            new = watcher.edit(self, key, nth, index, self.true_value(output), label)
            if new is None:
                continue
            views = shares_memory(output, inputs) if function.may_view is None else function.may_view
            if isinstance(result, Tensor) and (views or output.dtype != new.dtype):
                result = new
            elif output.dtype == new.dtype:
                output.copy_(new)
        return result

    def true_value(self, value: Tensor) -> Tensor:
        return value if self._read is None else self._read(value)

    def _propagate(
        self,
        function: Function,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
    ) -> tuple[list[Label | None], str]:
        any_label, lost = False, ""

        def fingerprint(value: Any) -> Any:
            nonlocal any_label, lost
            if isinstance(value, Tensor):
                label = self.label_of(value)
                if label is None and (known := self._known.get(id(value))) is not None and known.lost:
                    lost = known.lost
                if label is not None:
                    any_label = True
                    return (label.uid, value.shape)
                return (0, value.shape)
            kind = type(value)
            if kind is tuple or kind is list or kind is torch.Size:
                return tuple([fingerprint(item) for item in value])
            if kind is slice:
                return (slice, fingerprint(value.start), fingerprint(value.stop), fingerprint(value.step))
            if kind is dict:
                return tuple([(key, fingerprint(item)) for key, item in value.items()])
            return value

        key: Any = (function.rule, fingerprint(args), fingerprint(kwargs) if kwargs else None)
        if not any_label:
            return [None] * len(outputs), lost
        try:
            known = self._answers.get(key)
        except TypeError:
            key, known = None, None
        if known is None:
            call = Call(function.rule, func, args, kwargs, outputs, self.label_of, self.labels)
            try:
                known = propagate(call)
                if not all(fits(label, output) for label, output in zip(known, outputs, strict=True)):
                    known = f"no rule fits this call of {function.name}"
            except UnknownMovementError as unknown:
                known = str(unknown)
            except (
                IndexError,
                ValueError,
                TypeError,
                KeyError,
                AttributeError,
                RuntimeError,
                StopIteration,
            ) as error:
                known = f"no rule fits this call of {function.name} ({type(error).__name__}: {error})"
            if key is not None and not call.reads_values:
                self._answers[key] = known
        if isinstance(known, str):
            return [None] * len(outputs), known
        return known, lost

    def _event(
        self,
        op: int,
        nth: int,
        value: Tensor,
        label: Label | None,
        view: bool,
        reason: str,
        function: Function | None,
    ) -> int:
        key = (0 if label is None else label.uid, value.dtype, value.shape, self._lengths_number)
        recipe = self._recipes.get(key)
        if recipe is None:
            recipe = self._recipes[key] = self._recipe(value, label)
        events = self.trace.events
        index = len(events)
        status = "view" if view else "digest"
        event = Event(op, self.call, status, recipe.shape, recipe.dtype, recipe.floating, nth)
        events.append(event)
        if view:
            return index
        if reason and label is None:
            event.reason = reason
        if function is not None and function.name in UNWRITTEN:
            event.status, event.reason = "skipped", "not written yet"
        elif value.layout != torch.strided or value.is_meta:
            what = f"a {value.layout} tensor on {value.device.type}".replace("torch.", "")
            event.status, event.reason = "skipped", what
        elif self._digests:
            self._queue(index, event, value, label, recipe)
        return index

    # ------------------------------------------------------------------ digests

    def _recipe(self, value: Tensor, label: Label | None) -> _Recipe:
        shape, dtype = tuple(value.shape), value.dtype
        name = str(dtype).removeprefix("torch.")
        floating = dtype.is_floating_point or dtype.is_complex
        return _Recipe(shape, name, floating, self._plan(label, shape), value.numel() * dtype.itemsize)

    def _queue(self, index: int, event: Event, value: Tensor, label: Label | None, recipe: _Recipe) -> None:
        plan = recipe.plan
        if plan.cells.kind == "open":
            cells = len(plan.cells.ids) * math.prod(plan.cells.open_sizes)
            if self._open_cells + cells > MAX_OPEN_TOTAL:
                plan = self._plan(label, recipe.shape, may_open=False)
            else:
                self._open_cells += cells
        event.cells, event.width = plan.cells, plan.width
        tensor = value.detach() if value.requires_grad else value
        if plan.row_ids is None and plan.cells.kind == "rows":
            self._slots.append((event, self._batch.add(tensor, plan.row_dims)))
        else:
            self._odd.append((event, tensor, plan))
        pending = _Pending(index, tensor, version(value))
        self._pending.append(pending)
        self._last = pending
        self._pending_bytes += recipe.nbytes
        if self._pending_bytes > self._pending_limit:
            self._pending_limit = PENDING_BYTES.get(value.device.type, PENDING_BYTES["other"])
            if self._pending_bytes > self._pending_limit:
                self.flush()

    def _plan(self, label: Label | None, shape: Shape, may_open: bool = True) -> _Plan:
        if label is not None and label.k is not None:
            return self._pair_plan(label, shape)
        ids = np.full((1,) * len(shape), WHOLE, dtype=np.int32) if label is None else label.q
        row_dims = tuple(d for d in range(len(shape)) if ids.shape[d] > 1)
        open_dims = tuple(
            d for d, n in enumerate(shape) if d not in row_dims and n in self._lengths and n > 1
        )
        if label is None and any(open_dims) and 0 not in open_dims and shape[0] == self.table.rows > 1:
            open_dims = (0, *open_dims)  # a table that was made as often as there are rows
        flat_ids = ids.reshape(-1)
        unique, inverse = np.unique(flat_ids, return_inverse=True)
        rows = len(flat_ids)
        width = math.prod(shape) // rows if rows else 0
        if may_open and open_dims and len(unique) == rows:
            sizes = tuple(shape[d] for d in open_dims)
            if (
                rows * math.prod(sizes)
                <= MAX_OPEN_CELLS["without tokens" if label is None else "with tokens"]
            ):
                cells = Cells("open", flat_ids.astype(np.int32), open_dims, sizes, row_dims=row_dims)
                return _Plan(cells, row_dims, None, None, width)
        if len(unique) == rows:
            return _Plan(
                Cells("rows", flat_ids.astype(np.int32), row_dims=row_dims), row_dims, None, None, width
            )
        # Several rows of one coordinate: its slice goes on from row to row, in their order.
        counts = np.bincount(inverse)
        order = np.argsort(inverse, kind="stable")
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        occurrence = np.empty(rows, dtype=np.int64)
        occurrence[order] = np.arange(rows) - starts
        cells = Cells("rows", unique.astype(np.int32))
        return _Plan(cells, row_dims, inverse.astype(np.int32).reshape(-1), occurrence, width * counts)

    def _pair_plan(self, label: Label, shape: Shape) -> _Plan:
        assert label.k is not None
        (q, k), shape = split_blocks([label.q, label.k], shape)
        dims = tuple(d for d in range(len(shape)) if q.shape[d] > 1 or k.shape[d] > 1)
        grid = tuple(shape[d] for d in dims)
        query = spread(q, shape, dims).reshape(grid)
        key = spread(k, shape, dims).reshape(grid)
        tokens = self.table.tokens
        stream = np.asarray([0 if t is None else 1 if t[0] == MAIN else 2 for t in tokens] + [0])
        sample = np.asarray([-1 if t is None else t[1] for t in tokens] + [-1])
        position = np.asarray([-1 if t is None else t[2] for t in tokens] + [-1])
        mine = (sample[key] == sample[query]) & (sample[key] >= 0)
        before = mine & ((stream[key] != stream[query]) | (position[key] <= position[query]))
        ids, cell = np.unique(query.reshape(-1), return_inverse=True)
        past = np.where(before.reshape(-1), cell, NONE)
        future = np.where((mine & ~before).reshape(-1), cell, NONE)
        keys = position[key].reshape(-1)
        counts = np.stack(
            [
                np.bincount(cell, weights=before.reshape(-1), minlength=len(ids)),
                np.bincount(cell, weights=before.reshape(-1) * keys, minlength=len(ids)),
                np.bincount(cell, weights=(mine & ~before).reshape(-1), minlength=len(ids)),
                np.bincount(cell, weights=(mine & ~before).reshape(-1) * keys, minlength=len(ids)),
            ],
            axis=1,
        ).astype(np.int64)
        plan_cells = Cells("pair", ids.astype(np.int32), keys=counts)
        side = (past.astype(np.int32), future.astype(np.int32), keys.astype(np.int32).reshape(grid))
        width = math.prod(shape) // max(math.prod(grid), 1)
        return _Plan(plan_cells, dims, None, side, width, shape)

    def flush(self) -> None:
        """Compute the digests of everything that is pending, without waiting for the device."""
        self._last = None
        for pending in self._pending:
            if pending.version is not None and pending.tensor._version != pending.version:
                event = self.trace.events[pending.event]
                event.status, event.reason = "skipped", "overwritten before it could be read"
        self._batch.flush()
        for event, tensor, plan in self._odd:
            self._computed.append((event, plan, _digest_odd(tensor, plan)))
        self._odd.clear()
        self._pending.clear()
        self._pending_bytes = 0

    def finish(self) -> Trace:
        """Copy all digests to the host, once; they are in the trace after this."""
        self.flush()
        results = self._batch.results()
        for event, slot in self._slots:
            event.digests = results[slot]
        for event, plan, tensors in self._computed:
            _store_odd(event, plan, [t.cpu().numpy() for t in tensors])
        self._slots.clear()
        self._computed.clear()
        return self.trace

    def _note_late_write(self) -> None:
        """A value that was changed right after its function returned is that function's value."""
        last = self._last
        if last is not None:
            if last.version is not None and last.tensor._version != last.version:
                last.version = last.tensor._version
            self._last = None

    # ------------------------------------------------------------------ tensors

    def _find(self, tensor: Tensor) -> _Known | None:
        known = self._known.get(id(tensor))
        return known if known is not None and known.ref() is tensor else None

    def label_of(self, tensor: Tensor) -> Label | None:
        known = self._known.get(id(tensor))
        if known is not None and known.ref() is tensor:
            return known.label
        if id(tensor) in self.owned:
            return None
        return self._unseen(tensor)

    def _unseen(self, tensor: Tensor) -> Label | None:
        """A tensor that no tap saw being made: shaped like the last value or its module's inputs."""
        label = next((lab for lab, shape in self._last_outputs if lab and shape == tuple(tensor.shape)), None)
        if label is None:
            label = through_module(self.labels, self._frame_inputs(self.stack[-1]), tuple(tensor.shape))
        self._remember(tensor, label, -1)
        return label

    def _frame_inputs(self, frame: Frame) -> list[tuple[Label | None, Shape]]:
        inputs = [(t, self._find(t)) for t in tensors_in(frame.arguments)]
        return [(known.label, tuple(t.shape)) for t, known in inputs if known is not None]

    def _remember(self, tensor: Tensor, label: Label | None, event: int, lost: str = "") -> None:
        self._known[id(tensor)] = _Known(weakref.ref(tensor), label, event, lost)

    def _note_shared(self, written: Tensor, label: Label | None, event: int) -> None:
        """A write is seen by all that share its memory: by the base of a view, and by the views of a base."""
        if written.is_inference():
            return
        before, base = self._find(written), written if written._base is None else written._base
        held = self._find(base)
        if held is None:
            return
        held.event = event
        if label is None or (before is not None and before.label is label):
            return
        if base.numel() > MAX_RELABELLED or not base.is_contiguous() or base.dtype != written.dtype:
            return
        whole: Label | None = label
        if base is not written:
            whole = Window.of(written, base).write(self.labels, held.label, label)
            self._remember(base, whole, event)
        for known in list(self._known.values()):
            view = known.ref()
            if view is not None and view is not written and view._base is base and view.dtype == base.dtype:
                self._remember(view, Window.of(view, base).read(self.labels, whole), event)

    def _op(self, group: Group, output: int) -> int:
        index = self._ops.get((group, output))
        if index is None:
            index = self._ops[group, output] = len(self.trace.ops)
            self.trace.ops.append(Op(group[0], group[1], site_of(group[2]), output))
        return index

    # ------------------------------------------------------------------ modules

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        self._note_late_write()
        path = self._paths.get(id(module))
        if path is None:
            parent = self.stack[-1].path
            path = f"{parent}.{type(module).__name__}" if parent else type(module).__name__
        self.stack.append(Frame(path, module, (args, tuple(kwargs.values()))))
        if not path or _inside_transform():
            return
        names = _argument_names(type(module))
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                self._pass_in(path, names[position] if position < len(names) else str(position), value)
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                self._pass_in(path, name, value)

    def _pass_in(self, path: str, name: str, value: Tensor) -> None:
        label = self.label_of(value)
        known = self._find(value)
        if known is not None and self._holds(known.event, value):
            self._boundary_alias(path, f"input:{name}", value, known.event)
        else:
            event = self._boundary(path, f"input:{name}", value, label)
            if known is None or known.event < 0:
                self._remember(value, label, event)

    def _holds(self, event: int, value: Tensor) -> bool:
        """Whether an event holds a whole value, not what an indexed write wrote of it."""
        return event >= 0 and self.trace.events[event].shape == tuple(value.shape)

    def leave(self, result: Any, failed: bool) -> None:
        """A module returns."""
        self._note_late_write()
        frame = self.stack.pop()
        if failed or _inside_transform():
            return
        for index, value in enumerate(_outputs_of(result)):
            known = self._find(value)
            if known is None:
                label = self._unseen_output(frame, value)
                self._remember(value, label, self._boundary(frame.path, "output", value, label, index))
            elif known.event < 0 or self.trace.events[known.event].status == "view":
                event = self._boundary(frame.path, "output", value, known.label, index)
                self._remember(value, known.label, event)
            elif self._holds(known.event, value):
                self._boundary_alias(frame.path, "output", value, known.event, index)
            else:
                self._boundary(frame.path, "output", value, known.label, index)

    def _unseen_output(self, frame: Frame, value: Tensor) -> Label | None:
        last = next((lab for lab, shape in self._last_outputs if lab and shape == tuple(value.shape)), None)
        return last or through_module(self.labels, self._frame_inputs(frame), tuple(value.shape))

    def _boundary(self, path: str, function: str, value: Tensor, label: Label | None, output: int = 0) -> int:
        op, nth = self._boundary_op(path, function, value, label, output)
        known = self._find(value)
        event = self._event(op, nth, value, label, False, "", None)
        if self.watcher is not None:
            before = [known.event] if known is not None and known.event >= 0 else []
            self.watcher.saw(self, event, self.true_value(value), label, before)
        return event

    def _boundary_alias(self, path: str, function: str, value: Tensor, target: int, output: int = 0) -> None:
        known = self._find(value)
        op, nth = self._boundary_op(path, function, value, known.label if known else None, output)
        dtype = str(value.dtype).removeprefix("torch.")
        floating = value.dtype.is_floating_point or value.dtype.is_complex
        event = Event(op, self.call, "alias", tuple(value.shape), dtype, floating, nth, alias=target)
        self.trace.events.append(event)
        if self.watcher is not None:
            label = known.label if known else None
            self.watcher.saw(self, len(self.trace.events) - 1, self.true_value(value), label, [target])

    def _boundary_op(
        self, path: str, function: str, value: Tensor, label: Label | None, output: int
    ) -> tuple[int, int]:
        group = (path, function, ())
        nth = self._passes.get((*group, output), 0)
        self._passes[*group, output] = nth + 1
        op = self._op(group, output)
        if self.watcher is not None:
            new = self.watcher.edit(self, (path, function, "?"), nth, output, self.true_value(value), label)
            if new is not None and new.dtype == value.dtype:
                value.copy_(new)
        for fetch in self._fetches.get((path, function, "?"), ()) if self._fetches else ():
            if (
                fetch.call in (None, self.call)
                and fetch.nth in (None, nth)
                and fetch.output in (None, output)
            ):
                copied = value.detach().clone()
                fetch.take(Taken(self.trace.ops[op], self.call, nth, None, (), {}, (copied,), {}, (label,)))
        return op, nth

    def label_of_result(self, value: Tensor, call: int) -> Label | None:
        """The label of something that the model returned in a call.

        Where a tap lost sight of some of the tokens, a result of the shape of the call's own input,
        [rows, columns, ...], holds the call's tokens in their places.
        """
        known = self._find(value)
        label = known.label if known is not None else None
        for stream in (DECODER, MAIN):
            slots = self.table.slots(call, stream)
            if slots is None:
                continue
            if slots.ndim == 2 and value.dim() >= 2 and tuple(value.shape[:2]) == slots.shape:
                held = set() if label is None else set(label.q.reshape(-1).tolist())
                tokens = {item for item in slots.reshape(-1).tolist() if self.table.tokens[item] is not None}
                whole = label is not None and not any(self.table.members[i] for i in held if i >= 0)
                if (label is None or whole) and not tokens <= held:
                    return self.labels.make(slots.reshape(slots.shape + (1,) * (value.dim() - 2)))
            break
        return label


# ---------------------------------------------------------------------- helpers


def _digest_odd(value: Tensor, plan: _Plan) -> list[Tensor]:
    """The digests of a value whose rows are not simply its coordinates, on its device."""
    on, cells = value.device, plan.cells
    if cells.kind == "rows":
        assert plan.row_ids is not None
        words = _words(math.prod(value.shape) // max(len(plan.extra), 1), value)

        rows = digest.rows(value, plan.row_dims, torch.from_numpy(plan.extra * words).to(on))
        return [
            digest.accumulate(rows, torch.from_numpy(plan.row_ids.astype(np.int64)).to(on), len(cells.ids))
        ]
    if cells.kind == "open":
        grid_dims = tuple(sorted((*plan.row_dims, *cells.open_dims)))
        return [digest.rows(value, grid_dims), digest.rows(value, plan.row_dims)]
    past, future, keys = plan.extra
    value = value if plan.shape is None else value.reshape(plan.shape)
    grid = digest.grid(value, plan.row_dims, torch.from_numpy(keys).to(on))
    return [
        digest.accumulate(grid, torch.from_numpy(side.astype(np.int64)).to(on), len(cells.ids))
        for side in (past, future)
    ]


def _store_odd(event: Event, plan: _Plan, found: list[Any]) -> None:
    cells = plan.cells
    if cells.kind == "rows":
        event.digests = found[0]
    elif cells.kind == "open":
        grid_dims = tuple(sorted((*plan.row_dims, *cells.open_dims)))
        order = [grid_dims.index(d) for d in (*plan.row_dims, *cells.open_dims)]
        grid = found[0].reshape([event.shape[d] for d in grid_dims]).transpose(order)
        event.digests = np.ascontiguousarray(grid.reshape(len(cells.ids), *cells.open_sizes))
        event.flat = found[1]
    else:
        event.digests = np.stack(found, axis=1)


def _paths(model: nn.Module | None) -> dict[int, str]:
    paths: dict[int, str] = {}
    if model is not None:
        for name, module in model.named_modules(remove_duplicate=False):
            paths.setdefault(id(module), name)
    return paths


def _owned(model: nn.Module | None) -> dict[int, str]:
    owned: dict[int, str] = {}
    if model is not None:
        for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
            owned.setdefault(id(tensor), name)
    return owned


@cache
def _argument_names(kind: type[nn.Module]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(kind.forward).parameters)[1:]
    except (TypeError, ValueError, AttributeError):  # scripted modules answer for themselves
        return ()


def _outputs_of(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if is_dataclass(result) and not isinstance(result, (type, dict)):
        return tensors_in([getattr(result, field.name) for field in fields(result)], 2)
    return tensors_in(result, 2)


def _tensors_within(value: Any, depth: int = 4) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if not depth:
        return []
    if isinstance(value, (list, tuple)):
        items: Any = value
    elif isinstance(value, Mapping):
        items = value.values()
    elif hasattr(value, "__dict__"):
        items = vars(value).values()
    else:
        return []
    return [t for item in items for t in _tensors_within(item, depth - 1)]


def _inside_transform() -> bool:
    """Whether vmap or grad is at work: the tensors that pass by are then not the model's own."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]


def _words(elements: int, value: Tensor) -> int:
    """4-byte words that a row of so many elements fills."""
    return -(-elements * value.dtype.itemsize // 4)


__all__ = ["Fetch", "Frame", "Recorder", "Site", "Taken", "resolve"]
