"""What failed in SARIF 2.1.0, the format in which code scanning takes what tools find.

The format is that of OASIS, https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from forkpoint.report.words import Words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkpoint.pytest_plugin.finding import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def to_sarif(findings: Sequence[Finding], lang: str = "en") -> dict[str, Any]:
    """A log of one run; each kind of verdict, with its mechanism, is a rule."""
    from forkpoint import __version__

    rules = sorted({_rule(one) for one in findings})
    driver = {
        "name": "forkpoint",
        "version": __version__,
        "rules": [
            {"id": rule, "shortDescription": {"text": _described(rule, Words(lang))}} for rule in rules
        ],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(one, rules) for one in findings],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(one: Finding) -> str:
    return f"{one.kind}/{one.mechanism}" if one.mechanism else one.kind


def _described(rule: str, words: Words) -> str:
    kind, _, mechanism = rule.partition("/")
    meaning = words.find(f"meaning.{kind}") or words("tests.baseline")
    return meaning + words("colon") + words.name("mechanism", mechanism) if mechanism else meaning


def _result(one: Finding, rules: list[str]) -> dict[str, Any]:
    rule = _rule(one)
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(one.file), "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": one.line},
        }
    }
    if one.op:
        location["logicalLocations"] = [{"fullyQualifiedName": one.op, "kind": "function"}]
    fingerprint = hashlib.sha256(
        f"{one.test}\n{rule}\n{one.op}".encode(errors="backslashreplace")
    ).hexdigest()
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "level": "error",
        "message": {"text": f"{one.test}: {one.message}" + (f" ({one.source})" if one.source else "")},
        "locations": [location],
        "partialFingerprints": {"testAndOp/v1": fingerprint},
    }
