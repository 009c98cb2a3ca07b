"""What the tensors of a model hold, noted before a run and put back after it: by value, since not every write is counted.

Running statistics, `.data` and fused observers are written without a new `_version`. So the memory of tensors is
copied, 64 MB of it together, and compared byte by byte; what is larger is compared by its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from forkpoint.errors import CaptureError
from forkpoint.runs.modules import walk
from forkpoint.support.restoring import undone

MOST_COPIED = 1 << 26
"""Bytes of tensors that are copied before a run, the smallest first."""

_BATCHED = 1 << 16
"""Memories of at most so many bytes are compared all at once: on a GPU each comparison waits for the device."""

Digest = Callable[[Tensor], Tensor]
"""From the bytes of a memory, uint8[n], what changes if they do."""


@dataclass(eq=False, slots=True)
class StorageSnapshot:
    """The memory of one tensor or of several.

    Attributes:
        owner: one of them.
        storage, n_bytes: the memory, and how large it was.
        now: it, as uint8[n]; writes to it don't count as writes to the tensors.
        copy: what it held; None where that is too much.
        digest: of what it held, where there is no copy and digests are taken.
        each_run: whether it is compared after each run, as what a forward call is likely to write.
    """

    owner: Tensor
    storage: torch.UntypedStorage
    n_bytes: int
    now: Tensor
    copy: Tensor | None = None
    digest: Tensor | None = None
    each_run: bool = False


@dataclass(eq=False, slots=True)
class TensorView:
    """Which part of which memory a tensor was."""

    tensor: Tensor
    memory: StorageSnapshot
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    version: int | None
    address: int

    @classmethod
    def of(cls, tensor: Tensor, memory: StorageSnapshot) -> TensorView:
        offset, size, stride = int(tensor.storage_offset()), tensor.size(), tensor.stride()
        return cls(tensor, memory, offset, size, stride, tensor.dtype, version(tensor), tensor.data_ptr())

    def seems_kept(self) -> bool:
        """Whether nothing that is counted has happened to the tensor."""
        return not self.counted() and self.tensor.data_ptr() == self.address

    def counted(self) -> bool:
        """Whether torch has counted a write to it."""
        return version(self.tensor) != self.version

    def is_kept(self) -> bool:
        """Whether it still is what it was, whatever is written there."""
        tensor = self.tensor
        return (
            tensor.untyped_storage()._cdata == self.memory.storage._cdata
            and tensor.size() == self.size
            and tensor.dtype is self.dtype
            and tensor.stride() == self.stride
            and tensor.storage_offset() == self.offset
        )

    def put_back(self) -> None:
        """Make the tensor what it was."""
        empty = torch.empty(0, dtype=self.dtype, device=self.memory.now.device)
        self.tensor.data = empty.set_(self.memory.storage, self.offset, self.size, self.stride)


class Contents:
    """The contents of a model's tensors, or of several models', as they were before the runs.

    Args:
        digest: notes what is too large to be copied; without it, only writes that torch counts are noticed there.
    """

    def __init__(self, digest: Digest | None = None) -> None:
        self._digest = digest
        self._left = MOST_COPIED
        self._memories: dict[int, StorageSnapshot] = {}
        self._state: dict[int, TensorView] = {}
        self._parameters: dict[int, TensorView] = {}
        self._models: list[nn.Module] = []
        self._visitors: list[object] = []

    def note(self, tensors: Iterable[Tensor]) -> None:
        """Note what tensors hold that a forward call is likely to write; those that were noted before are as they were."""
        new = [tensor for tensor in tensors if id(tensor) not in self._state]
        if new:
            with _aside():
                self._add(new, self._state, each_run=True)

    def note_parameters(self, model: nn.Module, modules: Iterable[nn.Module]) -> None:
        """The same for the parameters of a model and their gradients; these are all the model's modules."""
        if any(noted is model for noted in self._models):
            return
        self._models.append(model)
        weights = chain.from_iterable(module._parameters.values() for module in modules)
        new = [weight for weight in weights if weight is not None and id(weight) not in self._parameters]
        new += [gradient for weight in new if weight.is_leaf and (gradient := weight.grad) is not None]
        with _aside():
            self._add(new, self._parameters, each_run=False)

    def meet(self, somebody: object) -> bool:
        """Whether it is the first time that somebody comes here."""
        met_before = any(one is somebody for one in self._visitors)
        self._visitors.append(somebody)
        return not met_before

    def put_back(
        self,
        *,
        thoroughly: bool,
        digests: bool = False,
        settle: Callable[[], object] | None = None,
        returned: Callable[[], Sequence[Tensor]] = tuple,
    ) -> None:
        """Make every tensor hold again what was noted.

        Args:
            thoroughly: compare those parameters that were copied, too, of which torch counts no write.
            digests: and what was not copied, by its digest.
            settle: called before anything is put back.
            returned: what the run returned; values that lie in what is put back get memory of their own.

        Raises:
            CaptureError: something has changed that was too large to be copied.
        """
        with _aside():
            try:
                lost = self._put_back(thoroughly, digests, settle, returned)
            except BaseException:
                self._overwrite()
                raise
        if lost:
            raise self._lost(lost)

    def _put_back(
        self,
        thoroughly: bool,
        digests: bool,
        settle: Callable[[], object] | None,
        returned: Callable[[], Sequence[Tensor]],
    ) -> list[StorageSnapshot]:
        """Put back what was written; returns what there was no copy of."""
        state = self._state.values()
        rest = (*self._parameters.values(), *(form for form in state if not form.memory.each_run))
        suspects = [
            form
            for form in rest
            if digests or (thoroughly and form.memory.copy is not None) or not form.seems_kept()
        ]
        forms = [form for form in (*state, *suspects) if not form.is_kept()]
        written = self._written(suspects)
        if forms or written:
            if settle is not None:
                settle()
            self._set_apart(returned(), written)
        _refill(written, forms)
        for memory in written:
            if memory.copy is not None:
                memory.each_run = True  # it may be written again, without anybody counting
        _put_back_versions([*state, *suspects])
        return [memory for memory in written if memory.copy is None]

    def _overwrite(self) -> None:
        """Put back all of which there is a copy, without a look at it: to compare takes memory that may be short."""
        forms = [*self._state.values(), *self._parameters.values()]
        copied = [memory for memory in self._memories.values() if memory.copy is not None]
        _refill(copied, [form for form in forms if form.memory.copy is not None and not form.is_kept()])
        _put_back_versions(forms)

    # ------------------------------------------------------------------ noting

    def _add(self, tensors: Sequence[Tensor], forms: dict[int, TensorView], *, each_run: bool) -> None:
        new: list[StorageSnapshot] = []
        for tensor in tensors:
            for part in parts(tensor):
                memory = self._memory(part, new)
                if memory is not None:
                    forms[id(part)] = TensorView.of(part, memory)
        for memory in sorted(new, key=lambda memory: memory.n_bytes):
            if memory.n_bytes <= self._left:
                self._left -= memory.n_bytes
                memory.copy = memory.now.clone()
                memory.each_run = each_run
            elif self._digest is not None:
                memory.digest = self._digest(memory.now)

    def _memory(self, tensor: Tensor, new: list[StorageSnapshot]) -> StorageSnapshot | None:
        storage = tensor.untyped_storage()
        if storage.device.type == "meta":
            return None
        key = storage._cdata
        if key not in self._memories:
            now = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # pyright: ignore[reportArgumentType, reportCallIssue]
            memory = self._memories[key] = StorageSnapshot(tensor, storage, storage.nbytes(), now)
            new.append(memory)
        return self._memories[key]

    # ------------------------------------------------------------------ comparing

    def _written(self, suspects: Iterable[TensorView]) -> list[StorageSnapshot]:
        """The memories that don't hold what they held, among those of tensors that may have been written."""
        counted: dict[StorageSnapshot, bool] = {
            memory: False for memory in self._memories.values() if memory.each_run
        }
        for form in suspects:
            counted[form.memory] = counted.get(form.memory, False) or (form.counted() and form.is_kept())
        written: list[StorageSnapshot] = []
        batched: dict[torch.device, list[tuple[StorageSnapshot, Tensor]]] = {}
        for memory, has_count in counted.items():
            if memory.storage.nbytes() != memory.n_bytes:
                written.append(memory)
            elif memory.copy is None:
                if self._is_lost(memory, has_count):
                    written.append(memory)
            elif memory.n_bytes <= _BATCHED:
                batched.setdefault(memory.now.device, []).append((memory, memory.copy))
            elif not _same(memory.now, memory.copy):
                written.append(memory)
        for pairs in batched.values():
            now, before = torch.cat([m.now for m, _ in pairs]), torch.cat([copy for _, copy in pairs])
            if not _same(now, before):
                written += [memory for memory, copy in pairs if not _same(memory.now, copy)]
        return written

    def _is_lost(self, memory: StorageSnapshot, counted: bool) -> bool:
        """Whether something has changed of which there is no copy."""
        if self._digest is None or memory.digest is None:
            return counted
        return not _same(self._digest(memory.now), memory.digest)

    def _set_apart(self, results: Sequence[Tensor], written: Sequence[StorageSnapshot]) -> None:
        keys = {memory.storage._cdata for memory in written}
        for value in results:
            is_noted = id(value) in self._state or id(value) in self._parameters
            for part in () if is_noted else parts(value):
                if part.untyped_storage()._cdata in keys:
                    part.data = part.detach().clone()

    def _lost(self, lost: Sequence[StorageSnapshot]) -> CaptureError:
        names = [self._name_of(memory) for memory in lost]
        named = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        return CaptureError(
            f"the model's forward call writes {named} ({sum(m.n_bytes for m in lost) / 1e6:,.0f} MB), which was too "
            "large to be copied beforehand and is not what it was",
            f"a model that writes no more than {MOST_COPIED >> 20} MiB of its tensors",
            "load the model again, and have it write to a copy",
        )

    def _name_of(self, memory: StorageSnapshot) -> str:
        for model in self._models:
            for path, module in walk(model):
                for name, value in (
                    *module._parameters.items(),
                    *module._buffers.items(),
                    *vars(module).items(),
                ):
                    if isinstance(value, Tensor) and any(p is memory.owner for p in parts(value)):
                        return f"{path}.{name}" if path else name
        return f"a tensor of shape {tuple(memory.owner.shape)}"


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with memory that one consists of: itself, in most cases; none for those without values.

    >>> [tuple(part.shape) for part in parts(torch.eye(3).to_sparse())]
    [(2, 3), (3,)]
    """
    if type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:  # pyright: ignore[reportUnknownVariableType]
            yield from parts(getattr(tensor, name))
    elif tensor.layout is torch.strided:
        if tensor.device.type != "meta" and not _is_wrapped(tensor):
            yield tensor
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())  # noqa: SLF001 - also of one that isn't coalesced
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())


_PLAIN = frozenset({Tensor, nn.Parameter})


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether it has no memory of its own: functorch's wrappers."""
    try:
        tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return True
    return False


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two memories, uint8[n], hold the same bytes."""
    if a.dtype is torch.uint8 and a.numel() % 8 == 0 and not (a.data_ptr() | b.data_ptr()) % 8:
        a, b = a.view(torch.int64), b.view(torch.int64)
    return torch.equal(a, b)


def _refill(memories: Sequence[StorageSnapshot], forms: Sequence[TensorView]) -> None:
    """Give memories the contents of their copies, and tensors the memory that they had."""
    for memory in memories:
        if memory.storage.nbytes() != memory.n_bytes:
            memory.storage.resize_(memory.n_bytes)
    for form in forms:
        if not form.tensor.is_quantized:
            form.put_back()
    for memory in memories:
        if memory.copy is not None:
            memory.now.copy_(memory.copy)


def _put_back_versions(forms: Iterable[TensorView]) -> None:
    """Count no writes that are undone."""
    moved = [(f.tensor, f.version) for f in forms if f.version is not None and f.tensor._version != f.version]
    if moved:
        tensors, versions = zip(*moved, strict=True)
        set_versions(tensors, versions)


set_versions: Callable[[tuple[Tensor, ...], tuple[int, ...]], None] = (
    torch._C._autograd._unsafe_set_version_counter  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]
)


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None where torch keeps no count (inference mode)."""
    return None if tensor.is_inference() else tensor._version


@contextmanager
def _aside() -> Generator[None]:
    """Nobody sees what is done here, and it leaves no trace in tensors."""
    with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
        yield


# ---------------------------------------------------------------------- shared by runs

_shared: ContextVar[Contents | None] = ContextVar("contents that runs share", default=None)


def shared() -> Contents | None:
    """What was noted for all the runs that are made now; None where each notes for itself."""
    return _shared.get()


@contextmanager
def noted_once(digest: Digest) -> Generator[None]:
    """Within the block, runs share what was noted of their models, which nobody else may change meanwhile.

    Raises:
        CaptureError: afterwards, something has changed that was too large to be copied.
    """
    contents = Contents(digest)
    with undone(partial(_shared.set, _shared.get())):
        _shared.set(contents)
        yield
    contents.put_back(thoroughly=True, digests=True)
