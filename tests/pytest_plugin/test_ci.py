"""What CI reads: the summary of a step and annotations of GitHub Actions, SARIF, and the action file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.pytest_plugin import sarif
from tests.pytest_plugin.projects import LEAK, ONE_WORKER, PLUGIN, make
from tests.report import samples

from forkpoint.pytest_plugin import github
from forkpoint.pytest_plugin.finding import BASELINE, Finding
from forkpoint.pytest_plugin.sarif import to_sarif

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
ORIGIN = samples.semantic().origin
ONE = Finding("tests/test_a.py::test_b[x, y: 50%|z]", "tests/test a.py", 7, "semantic\nmore", "semantic", "padding_leak", "layer/add", "m.py:3")  # fmt: skip


@pytest.fixture
def project(pytester, monkeypatch):
    make(pytester, monkeypatch)
    return pytester


@pytest.mark.parametrize("extra", [(), ONE_WORKER], ids=["alone", "xdist"])
def test_the_summary_and_annotations_of_github(project, monkeypatch, extra):
    path = project.path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
    found = project.runpytest_inprocess(*PLUGIN, *extra, "--forkpoint-github")
    assert ORIGIN is not None
    lines = [line for line in found.outlines if line.startswith("::")]
    where = f"file={project.path.name}/test_model.py,line={LEAK},title=forkpoint%3A semantic ("
    assert len(lines) == 1
    assert lines[0].startswith(f"::error {where}")
    assert ORIGIN.op in lines[0]
    text = path.read_text()
    assert text.startswith("before\n## forkpoint: 1 failure in 4 tests\n")
    assert text.count("<details>") == text.count("</details>") == 1
    assert ORIGIN.op.replace("_", r"\_") in text or ORIGIN.op in text
    assert str(project.path) not in text


def test_all_that_is_written_is_in_the_language_asked_for(project, monkeypatch):
    path = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    project.makeini("[pytest]\nforkpoint_lang = zh\n")
    found = project.runpytest_inprocess(
        *PLUGIN, "--forkpoint-github", "--forkpoint-report=out", "--forkpoint-sarif=it.sarif"
    )
    assert any("1 份报告：" in line for line in found.outlines)
    assert "## forkpoint: 4 个测试中有 1 个失败\n\n| 测试 | 结论 | 算子 | 源码 |" in path.read_text()
    index = (project.path / "out" / "index.html").read_text()
    assert '<html lang="zh">' in index
    assert "4 个测试中有 1 个失败" in index
    assert "语义差异" in index
    page = next(one for one in (project.path / "out").glob("*.html") if one.name != "index.html")
    assert "语义差异" in page.read_text()
    [rule] = json.loads((project.path / "it.sarif").read_text())["runs"][0]["tool"]["driver"]["rules"]
    assert "不是舍入" in rule["shortDescription"]["text"]
    found = project.runpytest_inprocess(*PLUGIN, "--forkpoint-github", "--forkpoint-lang=en")
    assert "## forkpoint: 1 failure in 4 tests\n" in path.read_text()


def test_nothing_of_a_prompt_is_in_the_summary(pytester, monkeypatch):
    make(pytester, monkeypatch)
    result = samples.semantic()
    assert result.first is not None
    secret = replace(result, first=replace(result.first, token="SECRET"), notes=("SECRET at /home/SECRET",))
    secret.to_json(pytester.path / "semantic.json")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.runpytest_inprocess(*PLUGIN, "--forkpoint-github")
    assert "SECRET" not in (pytester.path / "summary.md").read_text()


def test_annotations_escape_what_a_workflow_command_would_read():
    assert github.annotation(ONE, Path("/r")) == (
        "::error file=tests/test a.py,line=7,title=forkpoint%3A semantic (padding_leak)::semantic%0Amore (m.py:3)"
    )
    odd = replace(ONE, file="a,b:c%.py")
    assert "file=a%2Cb%3Ac%25.py," in github.annotation(odd, Path("/r"))


def test_a_summary_is_never_too_large_for_github():
    many = [replace(ONE, test=f"test_{n}", issue="x" * 100_000) for n in range(20)]
    text = github.summary(many, 20)
    assert len(text.encode()) < 1 << 20
    assert text.count("<details>") == 8
    assert "12 more would not fit here." in text
    assert text.count("| test_") == 20


def test_a_summary_quotes_ids():
    text = github.summary([replace(ONE, issue="it")], 1)
    assert "test_b\\[x, y: 50%\\|z\\]" in text
    assert "<summary>tests/test_a.py::test_b[x, y: 50%|z]</summary>" in text


@pytest.mark.parametrize("extra", [(), ONE_WORKER], ids=["alone", "xdist"])
def test_sarif_is_written_on_request(project, extra):
    project.runpytest_inprocess(*PLUGIN, *extra, "--forkpoint-sarif=it.sarif")
    log = json.loads((project.path / "it.sarif").read_text())
    sarif.check(log)
    [result] = log["runs"][0]["results"]
    place = result["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "test_model.py"
    assert place["physicalLocation"]["region"]["startLine"] == LEAK
    assert ORIGIN is not None
    assert place["logicalLocations"][0]["fullyQualifiedName"] == ORIGIN.op
    assert ORIGIN.op in result["message"]["text"]


def test_sarif_of_nothing_and_of_much():
    sarif.check(to_sarif([]))
    baseline = Finding("t.py::b", "t.py", 1, "not as in baseline", BASELINE)
    log = to_sarif([ONE, baseline, replace(ONE, test="other")])
    sarif.check(log)
    assert [rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]] == [
        BASELINE,
        "semantic/padding_leak",
    ]
    prints = [result["partialFingerprints"]["testAndOp/v1"] for result in log["runs"][0]["results"]]
    assert len(set(prints)) == 3
    assert (
        log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        == "tests/test%20a.py"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: log.update(version="2.0"),
        lambda log: log["runs"][0].pop("tool"),
        lambda log: log["runs"][0]["results"][0].update(more=1),
        lambda log: log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"].update(startLine=0),
        lambda log: log["runs"][0]["results"][0].update(level="bad"),
        lambda log: log["runs"][0]["results"][0].update(ruleIndex=1),
    ],
)  # fmt: skip
def test_the_check_of_sarif_can_fail(spoil):
    log = to_sarif([ONE])
    spoil(log)
    with pytest.raises((AssertionError, IndexError)):
        sarif.check(log)


# ---------------------------------------------------------------------- the action


def action():
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def test_the_action_names_its_inputs():
    steps = action()["runs"]["steps"]
    used = set(re.findall(r"inputs\.([a-z-]+)", json.dumps(steps)))
    assert used == set(action()["inputs"])
    assert all("description" in each for each in action()["inputs"].values())
    assert action()["runs"]["using"] == "composite"
    assert all("uses" in step or step["shell"] == "bash" for step in steps)


def test_what_the_action_runs_writes_what_it_uploads(project, monkeypatch, tmp_path):
    """The step that tests, as a runner would run it: expressions go in by the environment alone."""
    step = next(step for step in action()["runs"]["steps"] if step.get("id") == "test")
    assert "${{" not in step["run"]
    values = {
        "python": sys.executable,
        "arguments": "-p forkpoint.pytest_plugin -p no:cacheprovider .",
        "report": "pages",
        "sarif": "it.sarif",
    }
    environment = {
        **os.environ,
        **{name: values[re.findall(r"inputs\.(\w+)", given)[0]] for name, given in step["env"].items()},
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]], cwd=project.path, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert (project.path / "pages" / "index.html").is_file()
    sarif.check(json.loads((project.path / "it.sarif").read_text()))
    assert "1 failure in 4 tests" in (tmp_path / "summary.md").read_text()
    assert "::error file=" in done.stdout
