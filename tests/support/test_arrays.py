"""NumPy's arrays as tensors, whether they may be written or not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch

from forkpoint.support.arrays import tensor_of


def test_memory_that_may_be_written_is_shared():
    array = np.arange(3)
    tensor_of(array)[0] = 7
    assert array.tolist() == [7, 1, 2]


def test_what_may_not_be_written_is_copied():
    array = np.broadcast_to(np.arange(3), (2, 3))
    value = tensor_of(array)
    value[0, 0] = 7
    assert array.tolist() == [[0, 1, 2]] * 2
    assert value.dtype == torch.int64


def test_torch_warns_of_neither():
    """In a process of its own: torch warns of it once."""
    code = (
        "import numpy as np\n"
        "from forkpoint.support.arrays import tensor_of\n"
        "tensor_of(np.broadcast_to(np.arange(3), (2, 3)))\n"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)
