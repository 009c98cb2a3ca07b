"""Recording: whatever models are called within the block, by whomever, is written as a trace while it runs."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint.capture import digest
from forkpoint.capture.calls import Caller
from forkpoint.capture.cells import collect
from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.labels import Label, Labels
from forkpoint.capture.recorder import Recorder, Watcher
from forkpoint.capture.taps import Observation
from forkpoint.errors import InputError, LayoutError
from forkpoint.investigation import versions
from forkpoint.runs.layout import Coordinates, Layout
from forkpoint.runs.returned import results_of
from forkpoint.support.arrays import tensor_of
from forkpoint.support.restoring import depth, my_turn
from forkpoint.traces.elsewhere import local
from forkpoint.traces.given import KEPT_BYTES, copies_of, from_sample, goes_on, named, shape_of
from forkpoint.traces.ran import gpu, models, settings
from forkpoint.traces.writing import Rows, Writer, why_unsaved

MOST_SAID = 300
"""Most characters that a trace has of the error that a call ended in."""

LayoutReader = Callable[[nn.Module, Mapping[str, Any]], Mapping[str, Coordinates] | None]
"""Says where the tokens of one call of a module are, given what goes in by name; None for a call that is no part of the trace,
such as a warm-up."""


@contextmanager
def record(
    folder: str | Path,
    *,
    layout: Layout | LayoutReader | None = None,
    model: nn.Module | None = None,
    values: Sequence[str] = (),
) -> Generator[list[str]]:
    """Write a trace of the models that are called within the block, whatever code calls them.

    The outermost calls of modules are the forward calls of the trace: `model.generate(...)` makes one for each token. A
    call whose cache holds tokens goes on with the rows of the call before it; any other has samples of its own. What was
    written can be read at any moment, also if the process is killed. Inputs of integers (prompts!), and what the models
    return, are part of the trace. Calls that `compare` and its like make within the block are none of it, nor are those of
    processes that are forked there.

    Args:
        folder: where to write it; new or empty. Where fsspec has to find it (`s3://…`), it lies in a temporary folder while
            it is written, and is copied in the end.
        layout: where the tokens are, an entry for each call; by default read from each call's inputs. Or a function that is
            asked before each call, with the module and its inputs by name, and gives the call's coordinates by the name of an
            input; None for a call that is to be left out.
        model: gives modules their paths. By default the outermost module that is called; of a part of one that is called
            later, the paths in that.
        values: patterns of ops whose values are kept as they are (`model.layers.0.*`, `*/linear`), so that `compare_traces`
            can show values and their distance, not only that they differ.

    Yields:
        A list that holds in the end what should be known of the trace: patterns of `values` that no op has, graphs in the
        place of the models of a compiled function, or that no model was called.

    Raises:
        InputError: there is something in the folder, or it can't be written; or this is within another recording.
        LayoutError: the layout has no entry for a call.
        CaptureError: there is no room for what is to be written; nothing more is recorded then.

    >>> import tempfile, forkpoint as fp
    >>> linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     for name in "ab":
    ...         with record(f"{parent}/{name}"):
    ...             _ = linear(x)
    ...     fp.compare_traces(f"{parent}/a", f"{parent}/b").identical
    True
    """
    if isinstance(values, str):
        values = (values,)
    with local(folder) as path, my_turn() as mine:
        yield from _recorded(_Recording(path, layout, model, tuple(values), mine))


_at_work: list[_Recording] = []
"""The recording of this process, while there is one: there is no other in it meanwhile."""


def _recorded(recording: _Recording) -> Generator[list[str]]:
    """Record while whoever asked for it goes on."""
    caller = recording.caller
    complete = False
    try:
        _at_work[:] = [recording]
        with caller.replaced(recording.gate(caller.original)):
            yield recording.remarks
        complete = True
    except SystemExit as ended:  # as a script that has done all that it was to do ends
        complete = ended.code in (None, 0)
        raise
    finally:
        _at_work.clear()
        recording.close(complete=complete)


class _Recording:
    """The state of one recording.

    Args:
        depth: how many comparisons and recordings this one is in: calls that are made deeper in are not the script's.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout | LayoutReader | None,
        model: nn.Module | None,
        values: tuple[str, ...],
        depth: int,
    ) -> None:
        if _at_work and _at_work[0].is_here:
            raise InputError("a recording within a recording", "one that has ended before the next begins")
        self.layout, self.values, self.depth = layout, values, depth
        self.caller = Caller()
        self.roots: list[nn.Module] = []
        self.matched: set[str] = set()
        self.remarks: list[str] = []
        self.calls = 0
        self.group: _CallGroup | None = None
        self.samples = 0
        self.process, self.thread = os.getpid(), threading.get_ident()
        self.busy = self.closed = False
        about: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": versions(),
            "settings": settings(),
            "values": list(values),
            "models": [],
        }
        self.writer = Writer(folder, about)
        if model is not None:
            self.root_of(model)

    @property
    def is_here(self) -> bool:
        """Whether this is its process, not one that was forked from it."""
        return os.getpid() == self.process

    def is_recorded(self) -> bool:
        """Whether a call that is made now is part of the trace."""
        free = not (self.busy or self.closed or self.writer.broken) and depth() == self.depth
        return free and threading.get_ident() == self.thread and self.is_here

    def gate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What makes the calls of modules meanwhile."""

        def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if not self.is_recorded():
                return original(module, *args, **kwargs)
            self.busy = True
            try:
                with torch._C.DisableTorchFunction():
                    inputs = named(module, args, kwargs)
                    entry = self.layout(module, inputs) if callable(self.layout) else None
                if callable(self.layout) and entry is None:
                    return original(module, *args, **kwargs)
                return self.recorded(module, args, kwargs, inputs, entry)
            finally:
                self.busy = False

        return call

    def recorded(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: dict[str, Any],
        entry: Mapping[str, Coordinates] | None,
    ) -> Any:
        """Make an outermost call, and write down what it does.

        Args:
            inputs: what goes in, by name.
            entry: where its tokens are, if a function was asked.
        """
        with torch._C.DisableTorchFunction():
            root = self.root_of(module)
            if not self.calls:  # what is on around the calls may not have been on before them
                self.writer.manifest["settings"] = {**settings(), **gpu()}
            group = self._group_of(module, inputs)
            index = group.add(inputs, entry)
            copies = copies_of(inputs)
        self.calls += 1
        try:
            with (
                self.caller.as_before(),
                group.observation.before_call(index, inputs),
                group.up_to_an_error(),
            ):
                output = nn.Module.__call__(module, *args, **kwargs)  # which is watched now
        except BaseException as error:
            with torch._C.DisableTorchFunction(), suppress(Exception):  # what the model says comes first
                self._write_call(group, index, root, copies, {}, f"{type(error).__name__}: {error}")
            raise
        with torch._C.DisableTorchFunction():
            group.observation.after_call(index, output)
            group.recorder.settle()
            self._write_call(group, index, root, copies, results_of(output))
        return output

    def root_of(self, module: nn.Module) -> int:
        """The number of a model; its weights are written the first time."""
        for number, root in enumerate(self.roots):
            if root is module:
                return number
        self.roots.append(module)
        self.writer.manifest["models"] = models(self.roots)
        self.writer.manifest["settings"] = {**settings(), **gpu()}
        self.writer.save_manifest()
        self.writer.weights(len(self.roots) - 1, module)
        return len(self.roots) - 1

    def _group_of(self, module: nn.Module, inputs: Mapping[str, Any]) -> _CallGroup:
        """The calls that this one goes on with, or a new group of them."""
        group = self.group
        if (
            group is not None
            and group.module is module
            and not group.failed
            and (self.layout is not None or goes_on(inputs))
        ):
            return group
        if group is not None:
            self.samples = max(self.samples, group.next_sample)
        self.group = group = _CallGroup(self, module, self.root_of(module), self.calls, self.samples)
        return group

    def _write_call(
        self, group: _CallGroup, local: int, root: int, inputs: dict[str, Tensor], results: dict[str, Tensor], failed: str = "",
    ) -> None:  # fmt: skip
        """Write down what is known of a call.

        Args:
            inputs: what went in.
            results: what it returned.
            failed: the error that it ended in, if it did.
        """
        labels = {name: group.recorder.label_of_result(value, local) for name, value in results.items()}
        numbers = self.writer.coordinates(group.recorder.table, group.base)  # labels may have made some
        tensors: dict[str, Tensor] = {f"input.{name}": value for name, value in inputs.items()}
        for stream, coordinates in group.layout.calls[local].items():
            ids = group.recorder.table.slots(local, stream)
            assert ids is not None
            tensors[f"layout.{stream}.sample"] = coordinates.sample
            tensors[f"layout.{stream}.position"] = coordinates.position
            tensors[f"layout.{stream}.ids"] = _as_tensor(numbers[ids])
        left_out: dict[str, str] = {}
        room = KEPT_BYTES
        for name, value in results.items():
            if value.nbytes > room:
                left_out[name] = f"{value.nbytes:,} bytes, of which digests alone were kept"
                continue
            reason = why_unsaved(value)
            if reason:
                left_out[name] = reason
                continue
            room -= value.nbytes
            tensors[f"result.{name}"] = value
            label = labels[name]
            if label is not None:
                tensors[f"label.{name}.q"] = _as_tensor(numbers[label.q])
                if label.k is not None:
                    tensors[f"label.{name}.k"] = _as_tensor(numbers[label.k])
        about = {
            "root": root, "inputs": {n: [str(v.dtype), list(v.shape)] for n, v in inputs.items()},
            "results": list(results), "left_out": left_out, "rows": self.writer.rows,
            "lengths": sorted(group.recorder.trace.lengths[local]), "failed": failed[:MOST_SAID],
            "opaque": group.observation.opaque, "uncompiled": group.observation.uncompiled,
        }  # fmt: skip
        self.writer.call(group.base + local, tensors, about)

    def close(self, *, complete: bool) -> None:
        self.closed = True
        if not self.is_here:
            return  # the files are those of the process that this one was forked from
        if complete and isinstance(self.layout, Layout) and self.calls < len(self.layout.calls):
            complete = False
        self.writer.manifest["calls"] = self.calls
        self.remarks += self._remarks()
        self.writer.manifest["remarks"] = self.remarks
        self.writer.close(complete=complete)

    def _remarks(self) -> list[str]:
        """What whoever recorded should know: what was asked for and not found, or not seen."""
        remarks = [
            f"no op is called {pattern}: none of its values were kept"
            for pattern in self.values
            if pattern not in self.matched
        ]
        if any(isinstance(root, torch.fx.GraphModule) for root in self.roots):
            remarks.append(
                "a graph of torch.fx was recorded: if torch.compile made it of a function, the models that this calls are not in "
                "the trace"
            )
        if not self.calls:
            remarks.append("no model was called, or only in functions that torch.compile had compiled")
        return remarks


class _CallGroup:
    """Calls that go on with the same rows, and the one recorder of them.

    Attributes:
        base: the index in the trace of its first call.
        first: the number of its first sample.
    """

    def __init__(self, recording: _Recording, module: nn.Module, root: int, base: int, first: int) -> None:
        self.recording, self.module, self.root = recording, module, root
        self.base, self.first = base, first
        self.failed = False
        self.seen: list[dict[str, Any]] = []
        self.layout = Layout([])
        table = CoordinateTable(self.layout)
        watcher = _Keeper(self) if recording.values else None
        self.recorder = _Streaming(self, Labels(table), watcher)
        self.observation = Observation(self.recorder)
        self.row_base = recording.writer.rows

    @property
    def next_sample(self) -> int:
        """The number of the first sample that none of its calls has."""
        return max([self.first, *(s + 1 for s in self.layout.samples)])

    @contextmanager
    def up_to_an_error(self) -> Generator[None]:
        """Where a call ends in an error within the block, what it did before is recorded, and nothing goes on from it."""
        try:
            yield
        except BaseException:
            self.failed = True
            with suppress(Exception):  # the model's own error comes first
                self.recorder.tape.catch_up()
            raise

    def add(self, inputs: Mapping[str, Any], entry: Mapping[str, Coordinates] | None = None) -> int:
        """One more call; returns its index in the group.

        Args:
            entry: where its tokens are, if a function was asked.
        """
        given = self.recording.layout
        index = len(self.layout.calls)
        names: Mapping[int, Any] = {}
        if entry is not None:
            pass
        elif isinstance(given, Layout):
            if self.base + index >= len(given.calls):
                raise LayoutError(
                    f"a layout of {len(given.calls)} calls, and one more call",
                    "an entry for each call of a model",
                )
            entry = given.calls[self.base + index]
            names = given.names
        else:
            self.seen.append({name: shape_of(value) for name, value in inputs.items()})
            entry = {
                stream: from_sample(c, self.first)
                for stream, c in Layout.read(self.seen).calls[index].items()
            }
        self.layout = Layout([*self.layout.calls, entry], names)
        self.recorder.table.grow(self.layout)
        return index


class _Streaming(Recorder):
    """A recorder that writes what it has digests of, and keeps none of it."""

    def __init__(self, group: _CallGroup, labels: Labels, watcher: _Keeper | None) -> None:
        self.group = group
        self.written = 0
        self.op_numbers: dict[int, int] = {}
        """By id of an op, which the trace keeps."""
        super().__init__(group.layout, group.module, labels=labels, watcher=watcher)

    def collect(self) -> None:
        """The digests of all rows so far are there."""
        tape, writer, base = self.tape, self.group.recording.writer, self.group.base
        digests, first = tape.batch.results(), self.written
        tape.batch = digest.DigestBatch()
        opened = dict(tape.opened)
        computed = {row: (treatment, tensors) for row, treatment, tensors in tape.computed}
        tape.opened.clear()
        tape.computed.clear()
        numbers = writer.coordinates(self.table, base)
        skipped, ops, forms = self.trace.skipped, self.op_numbers, dict[int, int]()
        rows = Rows()
        slot = 0
        for index, (op, call, form, back, slots) in enumerate(
            itertools.islice(self.trace.rows, first, None), first
        ):
            flat: Any = None
            if index in opened:
                treatment = opened[index]
                of_cells, flat = collect(treatment.cut, form.shape, [digests[slot + 1], digests[slot]])
            elif index in computed:
                treatment, tensors = computed[index]
                of_cells, flat = collect(treatment.cut, form.shape, [t.cpu().numpy() for t in tensors])
            else:
                of_cells = digests[slot] if slots else None
            slot += slots
            number = ops.get(id(op))
            if number is None:
                number = ops[id(op)] = writer.op(op, self.group.root)
            of = forms.get(id(form))
            if of is None:
                of = forms[id(form)] = writer.form(form, numbers)
            rows.add(number, base + call, of, back, skipped.pop(index, ""), of_cells, flat)
        writer.rows_at_once(rows.batch())
        self.written = tape.begins = len(self.trace.rows)


class _Keeper(Watcher):
    """Keeps the values of the ops that were asked for."""

    def __init__(self, group: _CallGroup) -> None:
        self.group = group

    def saw(
        self,
        recorder: Recorder,
        event: int,
        value: Tensor,
        label: Label | None,
        inputs: list[int],  # noqa: ARG002
    ) -> None:
        recording = self.group.recording
        op = recorder.trace.rows[event][0]
        names = op.name, op.module or "(model)"
        wanted = {pattern for name in names for pattern in recording.values if fnmatchcase(name, pattern)}
        if not wanted:
            return
        recording.matched |= wanted
        numbers = recording.writer.coordinates(recorder.table, self.group.base)
        tensors = {"value": value}
        if label is not None:
            tensors["q"] = _as_tensor(numbers[label.q])
            if label.k is not None:
                tensors["k"] = _as_tensor(numbers[label.k])
        recording.writer.value(self.group.row_base + event, tensors)


def _as_tensor(ids: Any) -> Tensor:
    """Ids as a tensor; of an array without dimensions NumPy makes a number."""
    return tensor_of(np.asarray(ids, dtype=np.int32))
