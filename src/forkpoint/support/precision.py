"""How exactly torch multiplies float32, in whichever of its two ways that was asked for."""

from __future__ import annotations

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
