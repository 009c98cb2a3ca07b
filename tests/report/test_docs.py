"""The documents say what the code does."""

from __future__ import annotations

import ast
import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from tests.report import samples
from tests.report.test_gold import GOLD

from forkpoint import result as records
from forkpoint import sweeps
from forkpoint.questions import answers

DOCS = Path(__file__).parents[2] / "docs"

RECORDS = {
    "Run": records.RunSummary,
    "InputRow": records.InputRow,
    "Divergence": records.Divergence,
    "Backward": records.Backward,
    "ParameterGradient": records.ParameterGradient,
    "Argument": records.ArgumentComparison,
    "NameMatch": records.NameMatch,
    "Input": records.InputComparison,
    "NonFinite": records.NonFinite,
    "Verdict": records.Verdict,
    "Probe": records.ProbeResult,
    "Impact": records.Impact,
    "NearTie": records.NearTie,
    "Op": records.OpRow,
    "NotCompared": records.NotCompared,
    "LayerDrift": records.LayerDrift,
    "ReplacedModule": records.ReplacedModule,
    "FactorRow": answers.FactorRow,
    "Generation": answers.Generation,
    "SweepRow": sweeps.SweepRow,
}


def documented(heading: str) -> list[str]:
    text = (DOCS / "json-schema.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    return re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)


def test_every_key_of_a_result_is_documented() -> None:
    assert sorted(documented("Result")) == sorted(samples.semantic().to_dict())


def test_every_key_of_factors_is_documented() -> None:
    run = samples.semantic().a
    found = answers.Factors(run, run, (answers.FactorRow("none", "as it is"),))
    assert sorted(documented("Factors")) == sorted(found.to_dict())


def test_every_key_of_a_sweep_is_documented() -> None:
    assert sorted(documented("Sweep")) == sorted(sweeps.Sweep("out", (), 0).to_dict())


@pytest.mark.parametrize("heading", RECORDS)
def test_every_key_of_a_record_is_documented(heading: str) -> None:
    assert documented(heading) == [field.name for field in fields(RECORDS[heading])]


def test_what_the_site_imports_is_there() -> None:
    """The site is built by hand alone: what it takes from here may move meanwhile."""
    tree = ast.parse((DOCS / "site" / "hooks.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 0]
    ours = [node for node in imports if (node.module or "").partition(".")[0] in ("forkpoint", "tests")]
    for node in ours:
        module = importlib.import_module(node.module or "")
        assert all(hasattr(module, name.name) for name in node.names)
    assert len(ours) > 2


def test_every_name_of_a_probe_is_documented() -> None:
    """Those that stand in the source where results of probes are made; the others are made by names in a table."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (DOCS.parent / "src" / "forkpoint").rglob("*.py")
    )
    made = set(re.findall(r'ProbeResult\(\s*"(\w+)"', source))
    text = (DOCS / "json-schema.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| `name` \| string \| (`nan`.*) \|$", text, re.MULTILINE)
    assert made <= set(re.findall(r"`(\w+)`", row))
    assert len(made) > 20


def test_the_schema_has_its_version() -> None:
    assert f"**schema version {records.SCHEMA_VERSION}**" in (DOCS / "json-schema.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("case", ["rounding", "semantic", "int8", "decode", "unprobed"])
def test_a_result_is_plain_json(case: str) -> None:
    data = getattr(samples, case)().to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data


EXAMPLES = [
    (path.name, *found)
    for path in (*sorted(DOCS.rglob("*.md")), *sorted(DOCS.parent.glob("*.md")))
    for found in re.findall(
        r"<!-- gold: (\S+) -->\n```text\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL
    )
]


def test_there_are_examples() -> None:
    assert {page for page, _, _ in EXAMPLES} >= {"reading-the-report.md", "README.md", "README.zh.md"}


@pytest.mark.parametrize(("page", "gold", "shown"), EXAMPLES)
def test_what_a_page_shows_is_a_report_of_this_version(page: str, gold: str, shown: str) -> None:
    assert shown == (GOLD / f"{gold}.txt").read_text(encoding="utf-8")
