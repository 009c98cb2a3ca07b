"""Work in other threads: what they change of the interpreter is put back, and an import is as good as any other."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import pytest

from forkpoint.support.background import at_work, importing


def test_threads_at_work_hand_over_sooner_until_the_last_is_done():
    before = sys.getswitchinterval()
    go_on, done = threading.Event(), threading.Event()

    def work() -> None:
        with at_work():
            done.set()
            go_on.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert done.wait(10)
    with at_work():
        assert sys.getswitchinterval() == pytest.approx(1e-4)
    assert sys.getswitchinterval() == pytest.approx(1e-4)
    go_on.set()
    thread.join()
    assert sys.getswitchinterval() == before


def test_an_interval_that_is_shorter_stays():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with at_work():
            assert sys.getswitchinterval() == pytest.approx(1e-5)
        assert sys.getswitchinterval() == pytest.approx(1e-5)
    finally:
        sys.setswitchinterval(before)


def test_the_interval_is_put_back_after_an_error():
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), at_work():
        raise KeyError
    assert sys.getswitchinterval() == before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_module_is_imported_meanwhile(package: Path):
    text = "import test_background_gate as gate, threading\ngate.meanwhile.wait(10)\nby = threading.current_thread().name\n"
    (package / "test_background_gate.py").write_text("import threading\nmeanwhile = threading.Event()\n")
    (package / "slowly_made.py").write_text(text)
    gate = importlib.import_module("test_background_gate")
    with importing("slowly_made"):
        gate.meanwhile.set()  # which the import waits for
    assert importlib.import_module("slowly_made").by == "import slowly_made"
    with importing("slowly_made"):
        assert "import slowly_made" not in [thread.name for thread in threading.enumerate()]


def test_an_error_is_left_to_whoever_needs_the_module(package: Path):
    (package / "broken_one.py").write_text("raise ValueError('as ever')\n")
    with importing("broken_one"):
        pass
    with pytest.raises(ValueError, match="as ever"):
        importlib.import_module("broken_one")


def test_the_import_is_over_when_what_is_done_meanwhile_fails(package: Path):
    (package / "made_anyway.py").write_text("import time\ntime.sleep(0.05)\n")
    with pytest.raises(KeyError), importing("made_anyway"):
        raise KeyError
    assert "made_anyway" in sys.modules
