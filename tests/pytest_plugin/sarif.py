"""A check of what of SARIF 2.1.0 is written, after the tables of the standard (sections 3.13 to 3.52).

The schema of OASIS itself is no part of this repository; every object here allows the properties that it allows for
those that are used, and no other.
"""

from __future__ import annotations

import re
from typing import Any

Form = Any
"""A type; a set of allowed values; a pattern; a list with the form of its items; or a mapping from the names of
properties, with `!` behind those that are required, to their forms."""

_TEXT = {"text!": str}
_LOG: Form = {
    "$schema": re.compile(r"https://\S+/sarif-schema-2\.1\.0\.json"),
    "version!": {"2.1.0"},
    "runs!": [
        {
            "tool!": {
                "driver!": {
                    "name!": str,
                    "version": str,
                    "informationUri": str,
                    "rules": [{"id!": str, "name": str, "shortDescription": _TEXT, "fullDescription": _TEXT}],
                }
            },
            "columnKind": {"utf16CodeUnits", "unicodeCodePoints"},
            "results": [
                {
                    "ruleId": str,
                    "ruleIndex": int,
                    "level": {"none", "note", "warning", "error"},
                    "message!": {"text": str, "markdown": str},
                    "locations": [
                        {
                            "physicalLocation": {
                                "artifactLocation": {
                                    "uri": re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+"),
                                    "uriBaseId": str,
                                },
                                "region": {"startLine": int, "startColumn": int},
                            },
                            "logicalLocations": [{"name": str, "fullyQualifiedName": str, "kind": str}],
                        }
                    ],
                    "partialFingerprints": dict,
                }
            ],
        }
    ],
}


def check(log: Any, form: Form = _LOG, place: str = "log") -> None:
    """Fail unless a log has the form, and its rules are those that its results name."""
    if isinstance(form, type):
        assert isinstance(log, form), f"{place} is {log!r}"
    elif isinstance(form, set):
        assert log in form, f"{place} is {log!r}"
    elif isinstance(form, re.Pattern):
        assert form.fullmatch(log), f"{place} is {log!r}"
    elif isinstance(form, list):
        assert isinstance(log, list), place
        for index, item in enumerate(log):
            check(item, form[0], f"{place}[{index}]")
    else:
        known = {name.rstrip("!"): kind for name, kind in form.items()}
        assert isinstance(log, dict), place
        assert log.keys() <= known.keys(), f"{place} has {log.keys() - known.keys()}"
        required = {name[:-1] for name in form if name.endswith("!")}
        assert required <= log.keys(), f"{place} lacks {required - log.keys()}"
        for name, value in log.items():
            check(value, known[name], f"{place}.{name}")
    if form is _LOG:
        for run in log["runs"]:  # pyright: ignore[reportArgumentType, reportCallIssue]
            for result in run["results"]:
                assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
                for location in result["locations"]:
                    assert location["physicalLocation"]["region"]["startLine"] >= 1
