"""The examples of docs/testing.md run as they stand there, on a small model (which has one token for all words) in place of the demo."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tests.pytest_plugin.projects import PLUGIN, make

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
FILES = re.findall(
    r"^<!-- file: (\w+\.py)(?:, ([^>]*?))? -->\n```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE
)
SMALL = """
    import pytest
    from tests.architectures import ARCHITECTURES
    from tests.questions.words import word_tokenizer

    import forkpoint as fp

    @pytest.fixture(autouse=True, scope="module")
    def small():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fp, "load", lambda name: (ARCHITECTURES["llama"].build(), word_tokenizer()))
            yield
"""


def test_the_examples_run(pytester, monkeypatch):
    make(pytester, monkeypatch, "")
    pytester.makeconftest(SMALL)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    for name, _, text in FILES:
        (pytester.path / name).write_text(text)
    found = pytester.runpytest_subprocess(
        *PLUGIN, "--forkpoint-update", "--forkpoint-report=pages", "--strict-markers"
    )
    tests = sum(text.count("\ndef test_") for _, _, text in FILES)
    failed = sum(int(found) for _, how, _ in FILES for found in re.findall(r"failed: (\d+)", how))
    found.assert_outcomes(passed=tests - failed, failed=failed)
    assert re.search(r"DifferenceError: <Result: semantic \(\w+\) at model\.layers\.0\.mlp/mean, largest gap \S+>, where identical, rounding is allowed", str(found.stdout))  # fmt: skip
    written = (pytester.path / "forkpoint-baselines/test_refactoring/test_nothing_changed.txt").read_text()
    [shown] = re.findall(r"^<!-- baseline -->\n```text\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert _without_values(shown) == _without_values(written)
    assert len(list(pytester.path.glob("pages/*.html"))) == failed + 1


def _without_values(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{16}$|(?<=# made with ).*", "…", text, flags=re.MULTILINE)


def test_every_option_is_in_the_table(pytester, monkeypatch):
    make(pytester, monkeypatch, "")
    said = str(pytester.runpytest_inprocess(*PLUGIN, "--help").stdout)
    rows = re.findall(r"^\| (?:`(--forkpoint-[^`]*)`)? ?\| ?(?:`(\w+)`)? ?\|", TEXT, re.MULTILINE)
    assert {option.split("=")[0] for option, _ in rows if option} == set(
        re.findall(r"^\s+(--forkpoint-\w+)", said, re.MULTILINE)
    )
    assert {twin for _, twin in rows if twin} == set(
        re.findall(r"^\s+(forkpoint_\w+) \(", said, re.MULTILINE)
    )


@pytest.mark.parametrize("name", [name for name, _, _ in FILES])
def test_a_file_of_the_page_is_a_test(name):
    assert name.startswith("test_")
