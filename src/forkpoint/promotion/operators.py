"""What the registry of operators says about a call."""

from __future__ import annotations

from typing import Any

import torch
from torch._C import _jit_resolve_packet

from forkpoint.promotion.arguments import Args, Kwargs, tensors
from forkpoint.promotion.dtypes import WIDE
from forkpoint.promotion.kinds import name_of

ArgumentKey = int | str
"""An argument: its index, or its name where it is given by name."""

_KEYS = {"cpu": torch._C.DispatchKey.CPU, "cuda": torch._C.DispatchKey.CUDA}


def overload_of(function: Any, args: Args, kwargs: Kwargs) -> torch._ops.OpOverload:
    """The overload that a call takes, of an operator or of a built-in function of the same name."""
    if isinstance(function, torch._ops.OpOverload):
        return function
    packet = function
    if not isinstance(function, torch._ops.OpOverloadPacket):
        packet = getattr(torch.ops.aten, name_of(function))
    names = packet.overloads()
    if len(names) > 1:
        try:
            return getattr(
                packet, _jit_resolve_packet(packet._qualified_op_name, *args, **kwargs) or "default"
            )
        except RuntimeError:  # no overload takes these arguments: the call will say so
            pass
    return getattr(packet, names[0])


def written_by(overload: torch._ops.OpOverload, kwargs: Kwargs) -> frozenset[ArgumentKey]:
    """The arguments of a call that the operator writes to."""
    return frozenset(
        argument.name if argument.name in kwargs else place
        for place, argument in enumerate(overload._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def kernel_keys(args: Args, kwargs: Kwargs) -> torch._C.DispatchKeySet | None:
    """Where the kernel for a call's tensors is registered; None if it can't be called alone."""
    for tensor in tensors((args, kwargs)):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            return None
        key = _KEYS.get(tensor.device.type)
        return None if key is None else torch._C.DispatchKeySet(key)
    return None


def native_dtypes(arguments: Any, native: torch.dtype | None) -> list[torch.dtype]:
    """In which dtypes to try a call that refuses float64: first those that its own arguments have."""
    own = [tensor.dtype for tensor in tensors(arguments) if WIDE.get(tensor.dtype) is torch.float64]
    tried = [*own, native, torch.float32, torch.bfloat16, torch.float16]
    return list(dict.fromkeys(dtype for dtype in tried if dtype is not None))


def first_narrow(result: Any) -> torch.dtype | None:
    """The dtype of the first tensor of a result that is not in float64."""
    return next((tensor.dtype for tensor in tensors(result) if tensor.dtype in WIDE), None)
