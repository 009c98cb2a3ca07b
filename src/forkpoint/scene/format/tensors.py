"""Tensors as they lie in memory: storages, and the views of them that the op was given.

A kernel may be chosen by strides, by alignment, or because two inputs share memory; so what is kept is the
stretch of memory that the tensors of a call cover, once, and for each tensor its shape, strides and offset.
Elements of that stretch that no tensor reaches are written as zeros.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.scene.format.arguments import short
from forkpoint.support.arrays import tensor_of

ALIGNMENT = {"cpu": 64, "cuda": 256}
"""Bytes to which fresh memory is aligned, by device; the place within them is kept."""
MAX_ELEMENTS = 1 << 40
"""Most elements that a tensor of a scene may have, expanded dimensions counted."""
_SAFE = frozenset(
    [
        "bool",
        "uint8",
        "int8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "float8_e4m3fn",
        "float8_e5m2",
        "complex64",
    ]
)
"""Dtypes that safetensors can hold; others are written as bytes."""


@dataclass(frozen=True)
class TensorLayout:
    """One tensor of a scene: a view of a storage."""

    storage: int
    """Number of the storage."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In elements, as `Tensor.stride()`."""
    offset: int
    """Of its first element, in elements."""
    device: str = "cpu"
    """Type of the device on which it was."""
    alignment: int = 0
    """Where its storage began, in bytes after an aligned address."""
    parameter: str | None = None
    """Full name of the model's parameter or buffer, if it is one."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Storage:
    """A stretch of memory: one entry of a safetensors file."""

    file: str
    """`tensors.safetensors`, or `weights/HASH.safetensors`."""
    key: str
    dtype: torch.dtype
    elements: int

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Placement:
    """Where a tensor lay when the op ran."""

    storage: int
    """Address of its memory."""
    address: int
    """Of its first element."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def placement(tensor: Tensor) -> Placement | None:
    """Where a tensor lies; None for one that has no plain memory."""
    try:
        return Placement(
            tensor.untyped_storage().data_ptr(),
            tensor.data_ptr(),
            tuple(tensor.shape),
            tuple(tensor.stride()),
        )
    except (RuntimeError, NotImplementedError):
        return None


def check_plain(tensor: Tensor) -> None:
    """Only tensors with plain memory can be kept.

    Raises:
        SceneError: a sparse, quantized or nested tensor, one of a class with its own arithmetic, or one on meta.
    """
    kind = type(tensor)
    custom = getattr(kind, "__torch_dispatch__", None) not in (None, torch._C._disabled_torch_dispatch_impl)
    if custom or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        what = (
            kind.__name__
            if custom
            else f"{str(tensor.layout).removeprefix('torch.')} tensor on {tensor.device}"
        )
        raise SceneError(f"an input of the op is a {what}, which a scene can't hold", "plain dense tensors")


# ---------------------------------------------------------------------- packing


@dataclass
class _Region:
    """A stretch of memory (addresses from `start` to before `stop`) and the indices of the tensors that lie in it."""

    dtype: torch.dtype
    start: int
    stop: int
    members: list[int]


class Packer:
    """Gathers the tensors of a scene into as few storages as their memory needs."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.data: list[Tensor] = []
        self.layouts: list[TensorLayout] = []
        self._by_digest: dict[str, int] = {}

    def add(
        self, tensors: Sequence[Tensor], placements: Sequence[Placement], names: Sequence[str],
        parameters: Sequence[str | None],
    ) -> list[int]:  # fmt: skip
        """Add tensors that may share memory with each other; returns their numbers.

        Args:
            tensors: their values, in any layout.
            placements: where they lay.
            names: what their storages are called, unless they are weights.
            parameters: full names of those that are the model's own.
        """
        for tensor in tensors:
            check_plain(tensor)
        numbers = [-1] * len(tensors)
        for region in _regions(tensors, placements):
            align = ALIGNMENT.get(tensors[region.members[0]].device.type, 64)
            data = _gather(region, tensors, placements)
            owned = any(parameters[i] is not None for i in region.members)
            storage = self._store(data, names[region.members[0]], content_addressed=owned)
            for i in region.members:
                at = placements[i]
                numbers[i] = len(self.layouts)
                self.layouts.append(
                    TensorLayout(
                        storage, at.shape, at.stride, (at.address - region.start) // data.dtype.itemsize,
                        tensors[i].device.type, region.start % align, parameters[i],
                    )
                )  # fmt: skip
        return numbers

    def _store(self, data: Tensor, name: str, *, content_addressed: bool) -> int:
        file, key = "tensors.safetensors", name
        if content_addressed:
            digest = content_hash(data)
            file, key = f"weights/{digest}.safetensors", "data"
            if digest in self._by_digest:
                return self._by_digest[digest]
            self._by_digest[digest] = len(self.storages)
        keys = {s.key for s in self.storages if s.file == file}
        while key in keys:
            key += "_"
        self.storages.append(Storage(file, key, data.dtype, data.numel()))
        self.data.append(data)
        return len(self.storages) - 1


def _regions(tensors: Sequence[Tensor], placements: Sequence[Placement]) -> list[_Region]:
    """Stretches of memory that overlap become one."""
    regions: list[_Region] = []
    order = sorted(range(len(tensors)), key=lambda i: (placements[i].storage, placements[i].address))
    previous: tuple[int, torch.dtype] | None = None
    for i in order:
        at, dtype = placements[i], tensors[i].dtype
        start, stop = at.address, at.address + _extent(at.shape, at.stride) * dtype.itemsize
        last = regions[-1] if regions and previous == (at.storage, dtype) else None
        if last is not None and start < last.stop and (start - last.start) % dtype.itemsize == 0:
            last.stop = max(last.stop, stop)
            last.members.append(i)
        else:
            regions.append(_Region(dtype, start, stop, [i]))
        previous = (at.storage, dtype)
    return sorted(regions, key=lambda r: min(r.members))


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last that a view reaches, both counted."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def _gather(region: _Region, tensors: Sequence[Tensor], placements: Sequence[Placement]) -> Tensor:
    size = region.dtype.itemsize
    data = torch.zeros((region.stop - region.start) // size, dtype=region.dtype)
    for i in region.members:
        at = placements[i]
        value = tensors[i].detach().cpu()
        if not value.numel():
            continue
        if value.is_neg() or value.is_conj():
            value = value.resolve_neg().resolve_conj()
        if tuple(value.shape) != at.shape:
            raise SceneError(f"a tensor of shape {tuple(value.shape)} laid out as {at.shape}", "one shape")
        offset = (at.address - region.start) // size
        if _distinct(at.shape, at.stride):
            data.as_strided(at.shape, at.stride, offset).copy_(value)
        else:
            places = tensor_of(positions(at.shape, at.stride, offset).reshape(-1))
            _indexable(data)[places] = _indexable(value.reshape(-1))
    return data


def _indexable(data: Tensor) -> Tensor:
    """The same memory in a dtype that every kernel takes."""
    same_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return data.view(same_size.get(data.dtype.itemsize, data.dtype))


def _distinct(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether every element surely has a place of its own."""
    reach = 0
    for s, n in sorted((s, n) for n, s in zip(shape, stride, strict=True) if n > 1):
        if s <= reach:
            return False
        reach += s * (n - 1)
    return True


def positions(shape: Sequence[int], stride: Sequence[int], offset: int) -> NDArray[np.int64]:
    """Where each element of a view lies in its storage; of the view's shape.

    >>> positions((2, 3), (1, 2), 4).tolist()
    [[4, 6, 8], [5, 7, 9]]
    """
    indices = np.full((1,) * len(shape), offset, dtype=np.int64)
    for d, (n, s) in enumerate(zip(shape, stride, strict=True)):
        indices = indices + (np.arange(n, dtype=np.int64) * s).reshape((-1,) + (1,) * (len(shape) - d - 1))
    return np.array(np.broadcast_to(indices, tuple(shape)), order="C")


def content_hash(data: Tensor) -> str:
    """The name of a weight: BLAKE2b, 256 bits, of its dtype, its length and its bytes."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(f"{short(data.dtype)} {data.numel()} ".encode())
    if data.numel():
        digest.update(as_bytes(data).numpy().data)
    return digest.hexdigest()


def as_bytes(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.uint8)


def storable(data: Tensor) -> Tensor:
    """A storage as safetensors can hold it."""
    return data if short(data.dtype) in _SAFE else as_bytes(data)


def restored(data: Tensor, dtype: torch.dtype) -> Tensor:
    """A storage from what `storable` made of it."""
    return data if data.dtype == dtype else data.view(dtype)


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of `storable`'s result."""
    return dtype if short(dtype) in _SAFE else torch.uint8


# ---------------------------------------------------------------------- unpacking


def materialise(
    layouts: Sequence[TensorLayout],
    wanted: Iterable[int],
    data: Sequence[Tensor],
    device: torch.device,
    home: str,
) -> dict[int, Tensor]:
    """Fresh tensors on a device, laid out as they were, those that shared memory sharing it again.

    Args:
        layouts: all tensors of the scene.
        wanted: numbers of those to make.
        data: the storages.
        device: where to.
        home: type of the device of the scene; what was elsewhere (a number on the CPU) stays on the CPU.
    """
    storages: dict[tuple[int, int, str], Tensor] = {}
    tensors: dict[int, Tensor] = {}
    for number in wanted:
        layout = layouts[number]
        target = device if layout.device == home else torch.device("cpu")
        source = data[layout.storage]
        key = (layout.storage, layout.alignment, str(target))
        if key not in storages:
            lead = layout.alignment // source.dtype.itemsize
            space = torch.empty(lead + source.numel(), dtype=source.dtype, device=target)
            space[lead:].copy_(source)
            storages[key] = space[lead:]
        base = storages[key]
        tensors[number] = base.as_strided(layout.shape, layout.stride, base.storage_offset() + layout.offset)
    return tensors


def check_layout(layout: TensorLayout, storages: Sequence[Storage]) -> None:
    """A view must lie within its storage.

    Raises:
        SceneError: it doesn't, or it is larger than any tensor is.
    """
    if layout.storage >= len(storages):
        raise SceneError(f"a tensor in storage {layout.storage}", f"one of the {len(storages)} storages")
    if len(layout.shape) != len(layout.stride):
        raise SceneError(
            f"strides {list(layout.stride)} for shape {list(layout.shape)}", "one for each dimension"
        )
    if layout.elements > MAX_ELEMENTS:
        raise SceneError(f"a tensor of shape {list(layout.shape)}", f"at most {MAX_ELEMENTS:,} elements")
    last = layout.offset + _extent(layout.shape, layout.stride)
    if last > storages[layout.storage].elements:
        raise SceneError(
            f"a tensor of shape {list(layout.shape)} that ends at element {last:,} of its storage",
            f"at most the {storages[layout.storage].elements:,} that are there",
        )
