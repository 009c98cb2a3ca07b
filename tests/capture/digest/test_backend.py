"""The choice of the implementation: lazy, and quiet or loud about what it can't have."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from forkpoint.capture import digest
from forkpoint.capture.digest import backend, definition, torch_impl

CPU = torch.device("cpu")


@pytest.fixture
def fresh():
    backend.table_implementation.cache_clear()
    yield
    backend.table_implementation.cache_clear()


def run_python(code: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numba_serves_the_cpu():
    assert backend.implementation(CPU).__name__ == "forkpoint.capture.digest.numba_impl"


def test_without_numba_torch_serves(fresh, monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.implementation(CPU) is torch_impl
    batch = digest.DigestBatch()
    batch.add(torch.ones(2, 3), (0,))
    assert batch.results()[0].tolist() == definition.rows(torch.ones(2, 3), (0,))


def test_other_devices_are_served_by_torch():
    assert backend.implementation(torch.device("mps")) is torch_impl


@pytest.mark.parametrize("failure", [RuntimeError("no compiler"), OSError("disk full")])
def test_a_failing_implementation_is_replaced_with_one_warning(fresh, monkeypatch, failure):
    def fail(*_args):
        raise failure

    monkeypatch.setattr(backend, "_try_out", fail)
    with pytest.warns(RuntimeWarning, match=f"numba failed: {type(failure).__name__}: {failure}"):
        assert backend.implementation(CPU) is torch_impl
    assert backend.implementation(CPU) is torch_impl  # warnings are errors here


def test_what_was_looked_for_ahead_is_taken(fresh, monkeypatch):
    device = torch.device("cuda", 7)
    monkeypatch.setattr(backend, "_ahead", {})
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(backend.importlib, "import_module", lambda name: torch_impl)
    monkeypatch.setattr(backend, "_try_out", lambda found, on: None)
    backend.prepare(device)
    ahead = backend._ahead[device]
    backend.prepare(device)
    assert backend._ahead == {device: ahead}
    assert backend.table_implementation(device) is torch_impl


def test_what_failed_ahead_is_told_to_whoever_asks(fresh, monkeypatch):
    device = torch.device("cuda", 7)

    def fail(*_args):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(backend, "_ahead", {})
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(backend.importlib, "import_module", fail)
    backend.prepare(device)
    with pytest.warns(RuntimeWarning, match="triton failed: RuntimeError: no compiler"):
        assert backend.implementation(device) is torch_impl


def test_the_cpu_needs_no_time_to_prepare(monkeypatch):
    monkeypatch.setattr(backend, "_ahead", {})
    backend.prepare(CPU)
    assert not backend._ahead


def test_wrong_digests_are_found_out(fresh, monkeypatch):
    from forkpoint.capture.digest import numba_impl

    monkeypatch.setattr(numba_impl, "rows", lambda x, dims: torch_impl.rows(x, dims) + 1)
    with pytest.warns(RuntimeWarning, match="its digests are wrong"):
        assert backend.implementation(CPU) is torch_impl


def test_numba_is_imported_with_the_first_digest():
    out = run_python("""
        import sys
        import torch
        from forkpoint.capture import digest
        print("numba" in sys.modules)
        digest.rows(torch.ones(2), ())
        print("numba" in sys.modules)
    """)
    assert out.split() == ["False", "True"]


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path):
    """The code is compiled anew, without a word."""
    nowhere = tmp_path / "file"
    nowhere.write_text("not a folder")
    out = run_python(
        """
        import torch
        from forkpoint.capture import digest
        from forkpoint.capture.digest import backend
        print(digest.rows(torch.ones(2), ()).tolist(), backend.implementation(torch.device("cpu")).__name__)
        """,
        NUMBA_CACHE_DIR=str(nowhere / "cache"),
    )
    assert out.split()[-1] == "forkpoint.capture.digest.numba_impl"


def test_switched_off_compilation_is_served_by_torch(tmp_path):
    out = run_python(
        """
        import warnings
        import torch
        from forkpoint.capture.digest import backend
        warnings.simplefilter("ignore")
        print(backend.implementation(torch.device("cpu")).__name__)
        """,
        NUMBA_DISABLE_JIT="1",
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert out.split() == ["forkpoint.capture.digest.torch_impl"]
