"""Which models can run layout-invariantly: the others are refused before anything runs."""

from __future__ import annotations

from typing import Any

import torch

from forkpoint.errors import InvarianceError

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(model: torch.nn.Module) -> None:
    """Check that a model can run layout-invariantly.

    Raises:
        InvarianceError: it can't, with the reason.
    """
    name = type(model).__name__
    why = _why_not(model)
    if why is not None:
        raise InvarianceError(f"a {name} {why[0]}", *why[1:])


def check_call(model: torch.nn.Module) -> None:
    """Check what may have changed since the block began.

    Raises:
        InvarianceError: the model is in training mode, or under autocast.
    """
    if model.training:
        raise InvarianceError(
            f"a {type(model).__name__} in training mode", "one in evaluation mode", "model.eval()"
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise InvarianceError(f"a {type(model).__name__} under autocast", "a model of one dtype")


def _why_not(model: torch.nn.Module) -> tuple[str, ...] | None:
    from torch.distributed.tensor import DTensor

    if any(module.training for module in model.modules()):
        return "in training mode", "one in evaluation mode", "model.eval()"
    if any(_is_compiled(module) for module in model.modules()):
        return ("that is compiled", "one that is not")
    devices: set[torch.device] = set()
    for parameter in (*model.parameters(), *model.buffers()):
        if isinstance(parameter, DTensor):
            return ("that is sharded", "one that is whole on one device")
        if type(parameter.data) is not torch.Tensor:
            return "whose parameters are quantised", "one of float32, bfloat16 or float16"
        devices.add(parameter.device)
    for parameter in model.parameters():
        if parameter.dtype not in _DTYPES:
            return (
                f"with parameters of {parameter.dtype}, as after quantisation",
                "float32, bfloat16 or float16",
            )
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        return "that is quantised", "one of float32, bfloat16 or float16"
    if len(devices) > 1:
        return "on " + ", ".join(sorted(map(str, devices))), "one that is whole on one device"
    for device in devices:
        if device.type not in ("cpu", "cuda"):
            return f"on {device}", "one on a CPU or a CUDA device"
    if any(getattr(_config(module), "attention_chunk_size", None) for module in model.modules()):
        return "with chunked attention", "causal, full or sliding-window attention"
    return None


def _is_compiled(module: Any) -> bool:
    return (
        isinstance(module, torch._dynamo.OptimizedModule)
        or module._compiled_call_impl is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    )


def _config(module: torch.nn.Module) -> Any:
    return getattr(module, "config", None)
