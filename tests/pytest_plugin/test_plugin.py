"""The plugin in projects of other people: what it writes, and that it does nothing unless asked."""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree as ET

import pytest
from tests.pytest_plugin.projects import LEAK, ONE_WORKER, PLUGIN, XDIST, make
from tests.report import samples

pytest_plugins = ["pytester"]
ORIGIN = samples.semantic().origin


@pytest.fixture
def project(pytester, monkeypatch):
    make(pytester, monkeypatch)
    return pytester


def test_a_mark_allows(project):
    found = project.runpytest_inprocess(*PLUGIN)
    found.assert_outcomes(passed=2, failed=1, xfailed=1)


def test_a_failure_shows_the_line_of_the_test_and_the_op_alone(project):
    said = str(project.runpytest_inprocess(*PLUGIN).stdout)
    assert ORIGIN is not None
    assert f"test_model.py:{LEAK}: DifferenceError" in said
    assert f"at {ORIGIN.op}" in said
    assert "def check(" not in said


@pytest.mark.parametrize("extra", [(), XDIST], ids=["alone", "xdist"])
def test_a_page_for_each_failure_and_an_index(project, extra):
    found = project.runpytest_inprocess(*PLUGIN, *extra, "--forkpoint-report=out/pages")
    folder = project.path / "out" / "pages"
    index = (folder / "index.html").read_text()
    pages = sorted(path.name for path in folder.glob("*.html"))
    assert len(pages) == 2  # an expected failure is none
    assert re.findall('href="(.*?)"', index) == [pages[1]]
    assert "1 failure in 4 tests" in index
    assert ORIGIN is not None
    assert ORIGIN.op in index
    assert f"test_model.py:{LEAK}" in index
    assert ORIGIN.op in (folder / pages[1]).read_text()
    found.stdout.fnmatch_lines([f"1 report: *{folder / 'index.html'}"])


def test_ids_of_tests_and_ops_are_no_markup(pytester, monkeypatch):
    make(
        pytester,
        monkeypatch,
        """
        import pytest
        from pathlib import Path
        import forkpoint as fp

        @pytest.mark.parametrize("text", ["<script>alert(1)</script>", "../../x", "x" * 300])
        def test_it(text):
            fp.Result.from_json(Path(__file__).with_name("semantic.json")).check()
        """,
    )
    pytester.runpytest_inprocess(*PLUGIN, "--forkpoint-report=out").assert_outcomes(failed=3)
    index = (pytester.path / "out" / "index.html").read_text()
    assert "<script" not in index
    assert "&lt;script&gt;" in index
    assert len(list((pytester.path / "out").glob("*.html"))) == 4
    assert not list(pytester.path.glob("*.html"))


def test_all_passing_is_an_index_too(project):
    project.runpytest_inprocess(*PLUGIN, "-k", "same", "--forkpoint-report=out").assert_outcomes(
        passed=1, deselected=3
    )
    assert "No failure in 1 test<" in (project.path / "out" / "index.html").read_text()


@pytest.mark.parametrize("extra", [(), ONE_WORKER], ids=["alone", "xdist"])
def test_properties_in_junit_xml(project, extra):
    project.runpytest_inprocess(*PLUGIN, *extra, "--forkpoint-report=out", "--junitxml=tests.xml")
    cases = {
        case.get("name"): [(p.get("name"), p.get("value")) for p in case.iter("property")]
        for case in ET.parse(project.path / "tests.xml").iter("testcase")
    }
    assert cases["test_same"] == [("forkpoint_comparisons", "1 identical, 1 rounding")]
    assert cases["test_allowed"] == [("forkpoint_comparisons", "1 semantic")]
    assert ORIGIN is not None
    verdict = samples.semantic().verdict
    leak = dict(cases["test_leak"])
    page = leak.pop("forkpoint_page")
    assert (project.path / "out" / str(page)).is_file()
    assert leak == {
        "forkpoint_comparisons": "1 semantic",
        "forkpoint_cause": f"semantic ({verdict.mechanism})",
        "forkpoint_op": ORIGIN.op,
        "forkpoint_source": ORIGIN.source,
    }


@pytest.mark.parametrize("form", ["pytest.ini", "pyproject.toml"])
def test_the_ini_file_says_the_same(project, form):
    lines = {
        "pytest.ini": "[pytest]\nforkpoint_report = out\nforkpoint_sarif = it.sarif\nforkpoint_allow = rounding semantic\n",
        "pyproject.toml": "[tool.pytest.ini_options]\nforkpoint_report = 'out'\nforkpoint_sarif = 'it.sarif'\n"
        "forkpoint_allow = ['rounding', 'semantic']\n",
    }
    (project.path / form).write_text(lines[form])
    project.runpytest_inprocess(*PLUGIN, "-k", "leak or same").assert_outcomes(passed=2, deselected=2)
    assert (project.path / "out" / "index.html").is_file()
    assert (project.path / "it.sarif").is_file()


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("allow='roundng'", "'roundng' is neither a kind of verdict"),
        ("'rounding'", "takes allow="),
        ("alow='rounding'", "takes allow="),
        ("", "takes allow="),
    ],
)
def test_a_mark_that_says_nothing_known_is_an_error(pytester, monkeypatch, mark, said):
    make(pytester, monkeypatch, f"import pytest\n@pytest.mark.forkpoint({mark})\ndef test_it(): pass\n")
    found = pytester.runpytest_inprocess(*PLUGIN)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    assert said in str(found.stderr)
    assert "test_model.py::test_it" in str(found.stderr)


def test_a_mark_is_known_to_strict_pytest_and_the_nearest_counts(pytester, monkeypatch):
    make(
        pytester,
        monkeypatch,
        """
        import pytest
        from pathlib import Path
        import forkpoint as fp

        pytestmark = pytest.mark.forkpoint(allow="semantic")

        def test_module():
            fp.Result.from_json(Path(__file__).with_name("semantic.json")).check()

        @pytest.mark.forkpoint(allow="identical")
        def test_own():
            fp.Result.from_json(Path(__file__).with_name("rounding.json")).check()

        def test_the_call_says_otherwise():
            with pytest.raises(fp.DifferenceError):
                fp.Result.from_json(Path(__file__).with_name("semantic.json")).check("rounding")
        """,
    )
    pytester.runpytest_inprocess(*PLUGIN, "--strict-markers").assert_outcomes(passed=2, failed=1)


def test_what_a_run_imports_stays_imported_but_for_its_own_modules(pytester, monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    make(pytester, monkeypatch, "def test_it():\n    import colorsys")
    pytester.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=1)
    assert "colorsys" in sys.modules
    assert "test_model" not in sys.modules


def test_a_folder_that_cannot_be_written_is_an_error_before_any_test(project):
    (project.path / "taken").write_text("")
    found = project.runpytest_inprocess(*PLUGIN, "--forkpoint-report=taken")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    assert "taken" in str(found.stderr)
    found = project.runpytest_inprocess(*PLUGIN, "--forkpoint-sarif=none/it.sarif")
    assert found.ret == pytest.ExitCode.USAGE_ERROR


def test_a_page_that_cannot_be_written_is_named_and_the_rest_goes_on(project, monkeypatch):
    from forkpoint.errors import InputError
    from forkpoint.pytest_plugin import finding

    def full(path, text):
        raise InputError(f"{path} can't be written: No space left on device")

    monkeypatch.setattr(finding, "write_atomically", full)
    found = project.runpytest_inprocess(*PLUGIN, "--forkpoint-report=out")
    found.assert_outcomes(passed=2, failed=1, xfailed=1)
    found.stdout.fnmatch_lines(["forkpoint: *No space left on device*"])
    assert "test_leak" in (project.path / "out" / "index.html").read_text()


def test_a_group_and_a_cause_are_looked_into(pytester, monkeypatch):
    make(
        pytester,
        monkeypatch,
        """
        from pathlib import Path
        import forkpoint as fp

        def check():
            fp.Result.from_json(Path(__file__).with_name("semantic.json")).check()

        def test_group():
            try:
                check()
            except AssertionError as error:
                raise ExceptionGroup("all", [ValueError("x"), error])

        def test_cause():
            try:
                check()
            except AssertionError as error:
                raise RuntimeError("the model is broken") from error
        """,
    )
    pytester.runpytest_inprocess(*PLUGIN, "--forkpoint-report=out").assert_outcomes(failed=2)
    assert len(list((pytester.path / "out").glob("*.html"))) == 3


NOTHING = """
    import sys

    def test_nothing():
        assert "torch" not in sys.modules
        assert "forkpoint.report" not in sys.modules

    def test_fails():
        assert 1 == 2
"""


def test_nothing_happens_unless_asked(pytester, monkeypatch):
    """The same words with the plugin and without, and no part of torch."""
    make(pytester, monkeypatch, NOTHING)
    said = []
    for plugin in (PLUGIN, PLUGIN[2:]):
        found = pytester.runpytest_subprocess(*plugin, "-ra")
        found.assert_outcomes(passed=1, failed=1)
        said.append([re.sub(r"in [0-9.]+s|^plugins: .*", "", line) for line in found.outlines])
    assert said[0] == said[1]
    written = {
        path.name for path in pytester.path.iterdir() if not path.name.startswith(("runpytest-", "__"))
    }
    assert written - {"stdout", "stderr"} == {
        "test_model.py",
        "identical.json",
        "rounding.json",
        "semantic.json",
    }


def test_pytest_knows_the_options(pytester, monkeypatch):
    make(pytester, monkeypatch, NOTHING)
    said = str(pytester.runpytest_inprocess(*PLUGIN, "--help").stdout)
    for option in ("report=DIR", "sarif=FILE", "github", "baselines=DIR", "update"):
        assert f"--forkpoint-{option}" in said
    for twin in ("report", "sarif", "github", "baselines", "allow"):
        assert f"forkpoint_{twin} " in said
    assert "@pytest.mark.forkpoint(allow=" in str(pytester.runpytest_inprocess(*PLUGIN, "--markers").stdout)
