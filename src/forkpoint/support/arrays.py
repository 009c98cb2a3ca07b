"""NumPy's arrays as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor with an array's memory; with a copy of it where the array may not be written, of which torch warns.

    torch warns once in a process: with warnings as errors, what happened to come first would fail.
    """
    return torch.from_numpy(array if array.flags.writeable else array.copy())
