"""Scenes that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt

from forkpoint.runs.run import Run

from .pairs import other_weights
from .sessions import join, save


@pytest.fixture(autouse=True)
def _one_thread():
    """Which bits differ by rounding depends on how a kernel splits its work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def linear_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F.linear with two weights."""
    directory = tmp_path_factory.mktemp("linear") / "scene"
    save(*other_weights("linear"), directory)
    return directory


@pytest.fixture(scope="session")
def padded_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention of a tiny BERT, unpadded and padded: equal inputs, other bits."""
    torch.set_num_threads(1)
    architecture = ARCHITECTURES["bert"]
    model, ids = architecture.build(dtype=torch.float32, attention="sdpa"), prompt(9)
    a = Run(model, architecture.inputs([ids]), name="unpadded")
    b = Run(model, architecture.inputs([ids], pad_to=50), name="padded on the right")
    _, located = join(a, b)
    if located is None:
        pytest.skip("this machine's kernels give equal bits")
    directory = tmp_path_factory.mktemp("padded") / "scene"
    save(a, b, directory)
    return directory
