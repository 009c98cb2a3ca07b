"""Runs `every_operation` for some dtypes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_every_operation_computes_what_it_computes_in_float64(
    dtype: str, pytestconfig: pytest.Config
) -> None:
    command = [sys.executable, "-m", "tests.promotion.every_operation", dtype]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count = re.fullmatch(r"(\d+) calls\n", done.stdout)
    assert count is not None, done.stdout
    assert int(count.group(1)) > 1000
