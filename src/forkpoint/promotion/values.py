"""The float64 value of every tensor of a run.

A tensor that the run makes is float64 already. The others (parameters, buffers, inputs, caches) stay narrow
and are cast when they are read; the cast is dropped after the call, so that the weights never exist twice.

Once the run *writes* to a narrow tensor, that is no longer enough: the written value has more digits than
the tensor can hold. From then on its whole storage has a float64 **twin** with the same layout, so that every
view of it, taken earlier or later, reads and writes the same elements. The narrow tensor itself is never
written: after the run it is as it was before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from forkpoint.promotion.dtypes import READABLE, WIDE


@dataclass
class _Twin:
    narrow: torch.Tensor
    """Every element of the narrow storage, in order; kept so that the storage's identity isn't given to
    another one meanwhile."""
    wide: torch.Tensor
    """The same elements in float64."""
    version: int
    """Of the narrow storage when the twin last agreed with it."""


class Values:
    """Reads and writes of narrow tensors in float64. Call it with torch functions disabled."""

    def __init__(self) -> None:
        self._twins: dict[int, _Twin] = {}
        self._twinned: dict[int, torch.dtype] = {}
        """By the storage of a twin, the dtype of what it is the twin of."""
        self._cache: dict[int, tuple[torch.Tensor, int, int, torch.Tensor]] = {}
        self._cache_bytes_left = 0
        self.on_cast: Callable[[torch.Tensor, torch.Tensor], None] | None = None
        """Told of each cast through which gradients lead back: the narrow tensor, and the cast."""
        self.native: torch.dtype | None = None
        """The dtype of the last narrow parameter read: what the model computes in without promotion."""

    def keep_casts(self, up_to: int) -> None:
        """Keeps casts of parameters from now on, as many as fit into so many bytes."""
        self._cache_bytes_left = up_to

    def forget_casts(self) -> None:
        """Casts what is read from now on each time."""
        self._cache.clear()
        self._cache_bytes_left = 0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The float64 value, for reading; the tensor itself if it needs no promotion."""
        wide_dtype = READABLE.get(tensor.dtype)
        if wide_dtype is None:
            return tensor
        if self._twins:
            twin = self._twin_view(tensor)
            if twin is not None:
                return twin
        if isinstance(tensor, torch.nn.Parameter):
            self.native = tensor.dtype
            if self._cache_bytes_left > 0 or self._cache:
                return self._cached(tensor, wide_dtype)
        wide = cast_tensor(tensor, wide_dtype)
        if self.on_cast is not None and wide.requires_grad:
            self.on_cast(tensor, wide)
        return wide

    def as_is(self, tensor: torch.Tensor) -> torch.Tensor:
        """The twin where there is one, else the tensor, narrow or not: for what needs no arithmetic."""
        if self._twins and tensor.dtype in WIDE:
            twin = self._twin_view(tensor)
            if twin is not None:
                return twin
        return tensor

    def writable(self, tensor: torch.Tensor) -> torch.Tensor:
        """A float64 tensor to write into instead of this one; the tensor itself if it is wide already.

        A quantised dtype (float8) is written as it is, see `dtypes.QUANTISED`.
        """
        if tensor.dtype not in WIDE or storage_id(tensor) == 0:
            return tensor
        twin = self._twin_view(tensor)
        if twin is None:
            self._make_twin(tensor)
            twin = self._twin_view(tensor)
        assert twin is not None
        return twin

    def dtype_from_before(self, tensor: torch.Tensor) -> torch.dtype | None:
        """The narrow dtype of a tensor from before the run, or of the one that this is a twin's view of."""
        if tensor.dtype in WIDE:
            return tensor.dtype
        return self._twinned.get(storage_id(tensor)) if self._twinned else None

    @property
    def has_twins(self) -> bool:
        """Whether anything narrow has been written at all."""
        return bool(self._twins)

    def has_twin(self, tensor: torch.Tensor) -> bool:
        return bool(self._twins) and self._twin_view(tensor) is not None

    def keeps(self, tensor: torch.Tensor) -> bool:
        """Whether the float64 value of this tensor exists, or will exist, for longer than one call."""
        if self.has_twin(tensor) or id(tensor) in self._cache:
            return True
        return isinstance(tensor, torch.nn.Parameter) and 8 * tensor.numel() <= self._cache_bytes_left

    def keeps_copies(self) -> bool:
        """Whether `of` may give out a twin or a kept cast, which a caller must not take for his own."""
        return bool(self._twins or self._cache)

    def acknowledge(self, tensor: torch.Tensor) -> None:
        """A change of this tensor's form has counted as a write, but has changed no value."""
        twin = self._twins.get(storage_id(tensor)) if self._twins else None
        if twin is not None:
            twin.version = version_of(twin.narrow)

    def set_data(self, tensor: torch.Tensor, data: torch.Tensor, assign: Callable[..., object]) -> None:
        """``tensor.data = data`` for a narrow tensor: it keeps its dtype, and its twin has the exact value."""
        value = self.of(data)
        narrow = value.to(tensor.dtype)
        assign(tensor, narrow)
        self.writable(tensor).copy_(value)

    def _cached(self, tensor: torch.Tensor, wide_dtype: torch.dtype) -> torch.Tensor:
        entry = self._cache.get(id(tensor))
        if entry is not None:
            owner, version, pointer, wide = entry
            if owner is tensor and version == version_of(tensor) and pointer == tensor.data_ptr():
                return wide
            self._cache_bytes_left += wide.nbytes
            del self._cache[id(tensor)]
        wide = cast_tensor(tensor, wide_dtype)
        # The first that fit stay: a forward pass reads its weights in the same order each time, and evicting
        # the oldest would then evict each one just before it is needed.
        if wide.nbytes <= self._cache_bytes_left:
            self._cache_bytes_left -= wide.nbytes
            self._cache[id(tensor)] = (tensor, version_of(tensor), tensor.data_ptr(), wide)
        return wide

    def _twin_view(self, tensor: torch.Tensor) -> torch.Tensor | None:
        twin = self._twins.get(storage_id(tensor))
        if twin is None or twin.narrow.dtype != tensor.dtype:
            return None
        version = version_of(twin.narrow)
        if version != twin.version:  # something that no mode sees has written to it: all of it is read anew
            with torch.no_grad():
                twin.wide.copy_(twin.narrow)
            twin.version = version
        return twin.wide.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def _make_twin(self, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            # A view over the whole storage that shares the tensor's version counter, as `set_` would not.
            count = tensor.untyped_storage().nbytes() // tensor.element_size()
            narrow = tensor.detach().as_strided((count,), (1,), 0)
            wide = narrow.to(WIDE[tensor.dtype], copy=True)
        self._twins[storage_id(tensor)] = _Twin(narrow, wide, version_of(narrow))
        self._twinned[storage_id(wide)] = tensor.dtype


def cast_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in another dtype; elements that an `expand` repeats are cast once and repeated again."""
    if tensor.layout is torch.strided and 0 in tensor.stride() and tensor.numel() > 0:
        once = tensor
        for dim, step in enumerate(tensor.stride()):
            if step == 0:
                once = once.narrow(dim, 0, 1)
        return once.to(dtype).expand(tensor.size())
    return tensor.to(dtype)


def storage_id(tensor: torch.Tensor) -> int:
    """Identifies the memory behind a tensor; 0 where it has none of its own (sparse, functorch's wrappers)."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return 0


def is_alias(a: torch.Tensor, b: torch.Tensor) -> bool:
    identity = storage_id(a)
    return identity != 0 and identity == storage_id(b)


def version_of(tensor: torch.Tensor) -> int:
    """Counts the writes to a tensor; always 0 in inference mode, which does not count them."""
    return 0 if tensor.is_inference() else tensor._version
