"""Ten planted leaks fail a test that is written with the plugin, with the op in its message; without them it passes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tests.pytest_plugin.leaks import LEAKS
from tests.pytest_plugin.projects import PLUGIN, make

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
TESTS = """
    import pytest
    from tests.pytest_plugin.leaks import LEAKS
    from tests.questions.words import word_tokenizer

    import forkpoint as fp

    PROMPT = "w5 w6 w7 w8 w9 w10 w11"

    @pytest.mark.parametrize("sound", [False, True], ids=["leak", "sound"])
    @pytest.mark.parametrize("leak", LEAKS, ids=[leak.name.replace(" ", "-") for leak in LEAKS])
    def test_it(leak, sound):
        check = getattr(fp.testing, f"assert_{leak.assertion}")
        check(leak.model(sound=sound), word_tokenizer(), PROMPT, **leak.options)
"""


def test_ten_leaks_each_fail_with_their_op(pytester, monkeypatch):
    make(pytester, monkeypatch, TESTS)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("COLUMNS", "400")
    found = pytester.runpytest_subprocess(*PLUGIN, "--forkpoint-report=out")
    said = str(found.stdout)
    messages = dict(re.findall(r"^FAILED \S+\[(\S+)\] - \S*DifferenceError: (.*)$", said, re.MULTILINE))
    expected = {f"{leak.name.replace(' ', '-')}-leak": leak for leak in LEAKS}
    assert messages.keys() == expected.keys()
    for name, leak in expected.items():
        assert re.match(rf"<Result: semantic.* at {re.escape(leak.path)}[./]", messages[name]), messages[name]
    found.assert_outcomes(failed=len(LEAKS), passed=len(LEAKS))
    assert len(list((pytester.path / "out").glob("*.html"))) == len(LEAKS) + 1
    assert {leak.assertion for leak in LEAKS} == {"padding_invariant", "batch_invariant", "cache_consistent"}
    assert len({leak.architecture for leak in LEAKS}) == 10


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
