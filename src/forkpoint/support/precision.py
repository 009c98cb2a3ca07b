"""How exactly torch multiplies float32, in whichever of its two ways that was precisions for."""

from __future__ import annotations

from typing import Any

import torch


def float32_matmul_precision() -> str:
    """`highest`, `high` or `medium`, as of `torch.get_float32_matmul_precision`.

    That raises an error once a backend's own `fp32_precision` was set otherwise; what the backends say counts then.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        mkldnn: str = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
        precisions = {torch.backends.cuda.matmul.fp32_precision, mkldnn}
        return "medium" if "bf16" in precisions else "high" if "tf32" in precisions else "highest"


def allows_tf32() -> bool:
    """Whether a GPU may round factors of float32 to TF32, as of `torch.backends.cuda.matmul.allow_tf32`."""
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def float32_epsilon_on_cpu() -> float:
    """The epsilon of what a CPU may round factors of float32 to, in products, convolutions and recurrent layers; 0 where to nothing.

    Only some processors do, and only for some sizes: one row is multiplied in float32 where several are in bfloat16.
    """
    of: Any = torch.backends.mkldnn
    precisions = {of.matmul.fp32_precision, of.conv.fp32_precision, of.rnn.fp32_precision}
    return 2.0**-7 if "bf16" in precisions else 2.0**-10 if "tf32" in precisions else 0.0
