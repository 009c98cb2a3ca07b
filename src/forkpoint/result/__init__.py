"""What a comparison returns: `Result`, made of plain, frozen records (`records`), from which every report is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from forkpoint.errors import DifferenceError, InputError, SceneError
from forkpoint.result.records import (
    MECHANISMS,
    ArgumentComparison,
    Backward,
    Divergence,
    Element,
    Impact,
    InputComparison,
    InputRow,
    LayerDrift,
    NameMatch,
    NearTie,
    NonFinite,
    NotCompared,
    OpRow,
    ParameterGradient,
    ProbeResult,
    ReplacedModule,
    RunSummary,
    Verdict,
    VerdictKind,
)
from forkpoint.support.expectation import expected
from forkpoint.support.files import reason, write_atomically
from forkpoint.support.records import JsonRecord

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MAX_BYTES",
    "MECHANISMS",
    "SCHEMA_VERSION",
    "ArgumentComparison",
    "Backward",
    "Divergence",
    "Element",
    "Impact",
    "InputComparison",
    "InputRow",
    "LayerDrift",
    "NameMatch",
    "NearTie",
    "NonFinite",
    "NotCompared",
    "OpRow",
    "ParameterGradient",
    "ProbeResult",
    "ReplacedModule",
    "Result",
    "RunSummary",
    "Verdict",
    "VerdictKind",
    "allowance",
]

MAX_BYTES = 1 << 30
"""Most bytes of a file that is read as a result."""
SCHEMA_VERSION = 1
"""Version of the JSON that `Result.to_json` writes; its history is in docs/json-schema.md."""


@dataclass(frozen=True, repr=False)
class Result(JsonRecord):
    """A comparison of two runs. `print(result)` is the report.

    It is plain data, and can be pickled and written to a file, but for what asks the models again (`value`,
    `save_scene`, `write_script`): a result that was read has its runs no more.
    """

    _derived: ClassVar[tuple[str, ...]] = ("first_backward", "unmatched_a", "unmatched_b")

    a: RunSummary
    b: RunSummary
    first: Divergence | None
    verdict: Verdict
    impact: Impact | None
    ops: tuple[OpRow, ...]
    not_compared: tuple[NotCompared, ...]
    drift: tuple[LayerDrift, ...]
    replaced_modules: tuple[ReplacedModule, ...]
    origin: Divergence | None = None
    """The first of the origins."""
    origins: tuple[Divergence, ...] = ()
    """All ops at which something other than rounding enters independently, in the order of execution."""
    sources: tuple[Divergence, ...] = ()
    """All ops that part ways on equal inputs, in the order of execution; looked for only where that was asked for."""
    first_nonfinite_a: NonFinite | None = None
    """Where the NaN and infinities of run A's results come from; None where there are none, or without probes."""
    first_nonfinite_b: NonFinite | None = None
    configuration: tuple[ArgumentComparison, ...] = ()
    """Entries in which the configurations of two models differ."""
    matches: tuple[NameMatch, ...] = ()
    """Of two traces, modules and parameters that run B calls otherwise, or has in other pieces."""
    first_integer: OpRow | None = None
    """First integer or bool value that differs (masks, `arange`, routing); listed apart."""
    backward: Backward | None = None
    """The gradients; None where they were not asked for."""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict[str, str])
    call: str = ""
    """How it was asked for: `fp.padding(model, tokenizer, prompts, pad_to=50)`, or the command without its prompts."""
    _fetch: Callable[..., Tensor] | None = field(default=None, repr=False, compare=False)
    _save: Callable[..., None] | None = field(default=None, repr=False, compare=False)
    _write: Callable[[Path, bool], None] | None = field(default=None, repr=False, compare=False)

    @property
    def identical(self) -> bool:
        return self.verdict.kind is VerdictKind.IDENTICAL

    @property
    def first_backward(self) -> Divergence | None:
        """The op whose output's gradient differs first, in the order of the backward pass; see `Backward.first`."""
        return None if self.backward is None else self.backward.first

    @property
    def unmatched_a(self) -> tuple[OpRow, ...]:
        """Ops that only run A has."""
        return tuple(row for row in self.ops if row.status == "only in a")

    @property
    def unmatched_b(self) -> tuple[OpRow, ...]:
        """Ops that only run B has."""
        return tuple(row for row in self.ops if row.status == "only in b")

    def value(self, module: str, name: str, *, run: str = "a", call: int = 0, index: int = 0) -> Tensor:
        """One value of either run, fetched by running it again.

        Args:
            module: path of the module, as in `model.layers.0.self_attn`.
            name: a variable of the source (`query_states`), a torch function (`linear`), both
                (`attn_weights/softmax`), `input`, `input:NAME`, `output`, or a parameter (`weight`).
            run: `a` or `b`.
            call: index of the forward call.
            index: which one, where several values of the call have the name, in order of execution.

        Raises:
            InputError: no value has that name, or the result was loaded from a file.
        """
        if self._fetch is None:
            raise InputError(
                "a result without its runs", "the result that fp.compare returned", "compare the runs again"
            )
        return self._fetch(module, name, run=run, call=call, index=index)

    def to_dict(self) -> dict[str, Any]:
        """The whole result as plain JSON types; enums as their values (docs/json-schema.md)."""
        return {"schema": SCHEMA_VERSION, "identical": self.identical, **super().to_dict()}

    def to_text(self, *, details: bool = True, lang: str = "en", width: int = 80) -> str:
        """The report as plain text.

        Args:
            details: all of it; False for the short one, which `print(result)` shows.
            lang: `en` or `zh`.
            width: cells of a line.
        """
        from forkpoint.report.terminal import to_text

        return to_text(self, details=details, lang=lang, width=width)

    def to_html(self, path: str | Path, *, lang: str = "en") -> None:
        """Write the report as one file of HTML that asks nothing of a network.

        Args:
            path: the file to write; it appears whole or not at all.
            lang: `en` or `zh`.
        """
        from forkpoint.report.page import to_html

        write_atomically(Path(path), to_html(self, lang=lang))

    def _repr_html_(self) -> str:
        """What a notebook shows: the page without its map and its table, in a frame that runs no scripts."""
        from forkpoint.report.page import framed

        return framed(self)

    @classmethod
    def from_json(cls, path: str | Path) -> Result:
        """Read what `to_json` wrote. Nothing of the models is needed; what asks them again can't be had.

        Raises:
            InputError: the file can't be read, is no result, or is of another version of the schema.
        """
        try:
            with Path(path).open("rb") as opened:
                data = json.loads(opened.read(MAX_BYTES + 1))
            return cls.from_dict(data)
        except (OSError, ValueError, RecursionError) as error:
            expected = f"a result that to_json wrote, schema version {SCHEMA_VERSION}"
            raise InputError(f"{path}: {reason(error)}", expected) from error

    @classmethod
    def from_dict(cls, data: Any) -> Result:
        """The same, from what `to_dict` returned.

        Raises:
            ValueError: it is no result, or of another version of the schema.
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise ValueError("it is no result")
        if data["schema"] != SCHEMA_VERSION:
            raise ValueError(f"it has schema version {data['schema']!r}")
        return super().from_dict(data)

    def check(self, allow: str | Collection[str] | None = None) -> None:
        """Fail unless the runs are identical, or differ by no more than is allowed.

        Args:
            allow: kinds of verdicts (`rounding`, `semantic`, …) or mechanisms (`int8_outliers`); "identical" allows
                nothing. By default what the test's `@pytest.mark.forkpoint(allow=…)` says, else "rounding".

        Raises:
            DifferenceError: an AssertionError, with the verdict in its first line and the short report behind it.
            InputError: no verdict has such a kind or mechanism.
        """
        __tracebackhide__ = True
        allowed = expected(allowance(allow), self.verdict.kind.value)
        if not self.allowed(allowed):
            from forkpoint.report.terminal import to_text

            report = to_text(self, details=False, width=80)
            permitted = ", ".join(sorted(allowed | {"identical"}))
            raise DifferenceError(f"{self!r}, where {permitted} is allowed\n\n{report}", self)

    def allowed(self, allow: Collection[str]) -> bool:
        """Whether the verdict is `identical`, or its kind or mechanism is among some."""
        verdict = self.verdict
        return self.identical or verdict.kind.value in allow or verdict.mechanism in set(allow)

    def __bool__(self) -> bool:
        raise TypeError(
            "a comparison is neither true nor false: ask result.identical, or call result.check(), which fails unless the "
            "runs differ by rounding alone"
        )

    def __repr__(self) -> str:
        verdict = self.verdict
        cause = f" ({verdict.mechanism})" if verdict.mechanism else ""
        place = ""
        if self.origin is not None:
            place = f" at {self.origin.op}"
        elif self.first is not None and verdict.kind is VerdictKind.SEMANTIC:
            place = f", origin not found, first difference at {self.first.op} (maybe rounding)"
        elif self.first is not None and not self.identical:
            place = f" at {self.first.op}"
        gap = (
            f", largest gap {self.impact.max_abs:.3g}"
            if self.impact is not None and not self.identical
            else ""
        )
        return f"<Result: {verdict.kind.value}{cause}{place}{gap}>"

    def without_runs(self) -> Result:
        """The same without what asks the models again, which keeps them and their traces alive."""
        if self._fetch is None and self._save is None and self._write is None:
            return self
        return replace(self, _fetch=None, _save=None, _write=None)

    def __getstate__(self) -> dict[str, Any]:
        """What asks the models again can't be pickled."""
        return self.without_runs().__dict__

    def save_scene(self, directory: str | Path, *, confirm: Callable[[int], bool] | None = None) -> None:
        """Save all that is needed to replay the first divergent op alone (of the origin, if there is one).

        Args:
            directory: a folder that is new, empty, or a scene to replace.
            confirm: asked with the size in bytes before gigabytes are written; None refuses.

        Raises:
            SceneError: no op differs, or the op can't be replayed, with the reason.
        """
        if self._save is None:
            raise SceneError("a result without its runs", "the result that fp.compare returned")
        self._save(directory, confirm=confirm)

    def write_script(self, path: str | Path, *, synthetic: bool = False) -> None:
        """Write a short script that reproduces the first divergent op alone, next to its scene (`PATH.scene`).

        Args:
            path: the file to write.
            synthetic: random data in place of the recorded one, so that the script needs no scene.

        Raises:
            SceneError: as `save_scene`, or random data that don't show the effect.
        """
        if self._write is None:
            raise SceneError("a result without its runs", "the result that fp.compare returned")
        self._write(Path(path), synthetic)

    def __str__(self) -> str:
        from forkpoint.report.terminal import to_text

        return to_text(self, details=False, width=80)


def allowance(allow: str | Collection[str] | None) -> frozenset[str] | None:
    """What `Result.check` is asked to allow, each a kind of verdict or a mechanism; None if that is not said.

    Raises:
        InputError: no verdict has such a kind or mechanism.
    """
    if allow is None:
        return None
    names: Collection[object] = (
        (allow,) if isinstance(allow, str) or not hasattr(allow, "__iter__") else allow
    )
    for one in names:
        if not isinstance(one, str) or one not in (*VerdictKind, *MECHANISMS):
            raise InputError(
                f"allow={one!r}",
                "a kind of verdict: " + ", ".join(VerdictKind),
                "or a mechanism: " + ", ".join(MECHANISMS),
            )
    return frozenset(map(str, names))
