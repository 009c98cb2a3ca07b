"""What the ports written by hand share: parameters that are copied, and how their references are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def copied(value: Tensor) -> nn.Parameter:
    """A parameter of a port with the values of its reference's."""
    return nn.Parameter(value.detach().clone())


def embedding(weight: Tensor) -> nn.Embedding:
    """An embedding of a port with the rows of its reference's."""
    module = nn.Embedding(*weight.shape)
    module.weight = copied(weight)
    return module


def rotary(theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


def common() -> dict[str, Any]:
    return {
        "num_hidden_layers": 2,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
        "use_cache": False,
    }


def trained(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights as training leaves them: no bias of zeros, no norm of ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()
