"""How exactly float32 is multiplied is read whichever way it was set."""

from collections.abc import Generator

import pytest
import torch

from forkpoint.scene.format.flags import SETTINGS
from forkpoint.support.precision import allows_tf32, float32_matmul_precision
from forkpoint.traces.ran import settings


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("asked", "precision"), [("tf32", "high"), ("ieee", "highest")])
def test_a_backends_own_setting(asked, precision):
    torch.backends.cuda.matmul.fp32_precision = asked
    assert float32_matmul_precision() == precision
    assert allows_tf32() is (asked == "tf32")
    assert settings()["float32_matmul_precision"] == precision
    assert {one.name: one.get() for one in SETTINGS}["float32_matmul_precision"] == precision


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_setting_of_all(precision):
    torch.set_float32_matmul_precision(precision)
    assert float32_matmul_precision() == precision
    assert allows_tf32() is (precision != "highest")
