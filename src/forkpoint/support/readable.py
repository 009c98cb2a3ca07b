"""Whether a tensor's memory may be read. No address is read, and no value is copied, before that is known.

Not every tensor that says it lies on the CPU does. Subclasses that wrap others (`DTensor`, `MaskedTensor`, `FakeTensor`)
have no memory of their own, and a storage may be let go of or made smaller while a tensor on it is still there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PLAIN: tuple[type[Tensor], type[Tensor]] = (Tensor, nn.Parameter)
"""Classes whose tensors are what they hold."""

storage_of: Callable[[Tensor], torch.UntypedStorage] = Tensor.untyped_storage
address_of: Callable[[Tensor], int] = Tensor.data_ptr
begin_of: Callable[[torch.UntypedStorage], int] = torch.UntypedStorage.data_ptr
size_of: Callable[[torch.UntypedStorage], int] = torch.UntypedStorage.nbytes


def place_of(x: Tensor) -> tuple[int, int]:
    """The address of a tensor's first element, and how many bytes from there on belong to its storage.

    Returns:
        Two zeros for a tensor without memory.
    """
    try:
        storage = storage_of(x)
        if type(x) not in PLAIN and storage.device != x.device:
            return 0, 0  # before it is asked for an address, of which torch warns
        begin = begin_of(storage)
        address = address_of(x)
    except RuntimeError:  # also what torch raises for a tensor without a storage
        return 0, 0
    return (address, max(0, begin + size_of(storage) - address)) if begin else (0, 0)


def extent_of(x: Tensor) -> int:
    """How many bytes lie between a tensor's first element and the end of its last one."""
    if not x.numel():
        return 0
    if x.is_contiguous():
        return x.numel() * x.dtype.itemsize
    steps = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (1 + steps) * x.dtype.itemsize


def bare(x: Tensor) -> Tensor:
    """A tensor without gradients and without a class of its own, on the same memory.

    >>> type(bare(torch.nn.Parameter(torch.ones(2))))
    <class 'torch.Tensor'>
    """
    if type(x) in PLAIN:
        return x.detach()
    # what a class makes of its calls is not asked: it may refuse them, or give its own kind again
    with torch._C.DisableTorchFunctionSubclass(), torch._C._DisableTorchDispatch():
        return x.detach().as_subclass(Tensor)


def sizes_of(x: Tensor) -> tuple[int, ...]:
    """The shape of a tensor; -1 for a dimension of a nested one in which its rows have several sizes.

    >>> sizes_of(torch.nested.nested_tensor([torch.zeros(3, 2), torch.zeros(1, 2)], layout=torch.jagged))
    (2, -1, 2)
    """
    if not x.is_nested:
        return tuple(x.shape)
    shapes = {tuple(row.shape) for row in x.detach().unbind()}
    return x.size(0), *(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))


LET_GO = "its memory was let go of before it could be read"


def why_unreadable(x: Tensor) -> str:
    """Why a tensor's values can't be had from its memory; empty where they can.

    >>> x = torch.zeros(4)
    >>> why_unreadable(x), x.untyped_storage().resize_(8) and why_unreadable(x)
    ('', 'its memory was let go of before it could be read')
    """
    if x.is_meta:
        return "a tensor on the meta device has no values"
    if x.is_nested:
        return "a nested tensor has no rows and columns"
    if x.layout is not torch.strided or extent_of(x) <= place_of(x)[1]:
        return ""
    if type(x) not in PLAIN:
        return f"a {type(x).__name__} has no memory of its own that could be read"
    return LET_GO
