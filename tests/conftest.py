"""What every test shares: no network, no CUDA where there is none, and models small enough to build anew."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is first imported

import pytest
from hypothesis import settings

settings.register_profile("forkpoint", deadline=None)  # the first example pays for imports and compilation
settings.load_profile("forkpoint")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def few_objects() -> Generator[None]:
    """Python looks for garbage in what is made from now on alone: in all that pytest holds that takes a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()
