"""The plugin's options, on the command line and in the ini file, and the mark."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from forkpoint.result import MECHANISMS, VerdictKind
from forkpoint.support.expectation import USUAL, names
from forkpoint.support.language import Lang, of_locale

BASELINES = "forkpoint-baselines"
"""Folder of the baselines, beside the file with the tests."""
_RELAYED = "forkpoint_paths"
"""Under which xdist's workers are told where the controller writes."""
_FILES = {
    "report": "a folder for a page of HTML for each comparison that fails a test, and an index of them",
    "sarif": "a file for what failed, in SARIF 2.1.0",
}


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        report: folder of the pages.
        sarif: file for SARIF.
        github: whether to write the summary of a step of GitHub Actions, and annotations.
        junit: whether pytest writes JUnit XML, which has properties of tests.
        update: whether baselines are written rather than held against.
        baselines: their folder, relative to the file with the tests.
        allow: what comparisons may differ by, unless a mark or a call says otherwise.
        lang: language of what is written.
    """

    report: Path | None = None
    sarif: Path | None = None
    github: bool = False
    junit: bool = False
    update: bool = False
    baselines: str = BASELINES
    allow: frozenset[str] = USUAL
    lang: Lang = "en"

    @property
    def reports(self) -> bool:
        """Whether anybody wants to know what became of the tests."""
        return self.report is not None or self.sarif is not None or self.github or self.junit

    @classmethod
    def of(cls, config: pytest.Config) -> Settings:
        """What the command line says, else the ini file; a worker of xdist writes where its controller does.

        Raises:
            UsageError: something in the ini file can't be understood.
        """
        relayed: dict[str, str | None] = getattr(config, "workerinput", {}).get(_RELAYED, {})
        paths = {name: _path(config, name, relayed) for name in _FILES}
        try:
            allow = valid(names(config.getini("forkpoint_allow"))) or USUAL
        except ValueError as error:
            raise pytest.UsageError(f"forkpoint_allow: {error}") from None
        return cls(
            report=paths["report"],
            sarif=paths["sarif"],
            github=bool(config.getoption("forkpoint_github") or config.getini("forkpoint_github")),
            junit=bool(config.getoption("xmlpath", None)),
            update=bool(config.getoption("forkpoint_update")),
            baselines=config.getoption("forkpoint_baselines")
            or config.getini("forkpoint_baselines")
            or BASELINES,
            allow=allow,
            lang=_lang(config),
        )

    def relay(self, workerinput: dict[str, object]) -> None:
        """Tell a worker of xdist, whose folder may be another."""
        workerinput[_RELAYED] = {
            name: None if (path := getattr(self, name)) is None else str(path) for name in _FILES
        }


def _path(config: pytest.Config, name: str, relayed: dict[str, str | None]) -> Path | None:
    if name in relayed:
        return None if relayed[name] is None else Path(str(relayed[name]))
    if option := config.getoption(f"forkpoint_{name}"):
        return config.invocation_params.dir / str(option)
    written = config.getini(f"forkpoint_{name}")
    return config.rootpath / str(written) if written else None


def _lang(config: pytest.Config) -> Lang:
    lang = config.getoption("forkpoint_lang") or config.getini("forkpoint_lang") or of_locale(os.environ)
    if lang not in ("en", "zh"):
        raise pytest.UsageError(f"forkpoint_lang: language {lang!r}; expected one of en, zh")
    return lang


def add_options(parser: pytest.Parser) -> None:
    """Options, each with a twin in the ini file but for `--forkpoint-update`, which is asked for each time."""
    group = parser.getgroup("forkpoint", "runs of models that should be the same (forkpoint)")
    for name, text in _FILES.items():
        metavar = "DIR" if name == "report" else "FILE"
        group.addoption(f"--forkpoint-{name}", metavar=metavar, help=text)
        parser.addini(f"forkpoint_{name}", text, default="")
    text = "write the summary of a step of GitHub Actions, and an annotation for each failure"
    group.addoption("--forkpoint-github", action="store_true", help=text)
    parser.addini("forkpoint_github", text, type="bool", default=False)
    text = f"folder of the baselines, beside the file with the tests (default: {BASELINES})"
    group.addoption("--forkpoint-baselines", metavar="DIR", help=text)
    parser.addini("forkpoint_baselines", text, default="")
    text = "language of what is written, en or zh (default: the locale's)"
    group.addoption("--forkpoint-lang", choices=("en", "zh"), help=text)
    parser.addini("forkpoint_lang", text, default="")
    text = "write the baselines of the tests that run, rather than hold their runs against them"
    group.addoption("--forkpoint-update", action="store_true", help=text)
    text = "what comparisons may differ by unless a mark says otherwise, kinds of verdicts or mechanisms (default: rounding)"
    parser.addini("forkpoint_allow", text, type="args", default=[])


def allowed_by(mark: pytest.Mark) -> frozenset[str]:
    """What a mark allows.

    Raises:
        ValueError: it says anything else, or nothing.
    """
    if mark.args or set(mark.kwargs) != {"allow"}:
        raise ValueError(
            "the mark forkpoint takes allow='…' alone, a kind of verdict or a mechanism, or several"
        )
    return valid(names(mark.kwargs["allow"]))


def valid(allow: frozenset[str]) -> frozenset[str]:
    """The same, if there are such kinds of verdicts and mechanisms.

    Raises:
        ValueError: there is no such thing.
    """
    for name in sorted(allow):
        if name not in (*VerdictKind, *MECHANISMS):
            raise ValueError(
                f"{name!r} is neither a kind of verdict ({', '.join(sorted(VerdictKind))}) nor a mechanism"
            )
    return allow
