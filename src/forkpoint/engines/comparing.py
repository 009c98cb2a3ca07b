"""An engine held against a reference of transformers: the question, the table of ops, the verdict, the cost, the switch."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from forkpoint.engines.answer import Check, EngineComparison, EngineOp
from forkpoint.engines.cost import cost, free_logits, logits_point, reported
from forkpoint.engines.plan import Plan, plan
from forkpoint.engines.question import question_checks, token_ids
from forkpoint.engines.recording import Recording, read_recording
from forkpoint.engines.table import TIMES, Table, block_of, listed
from forkpoint.result import VerdictKind
from forkpoint.runs.state import kept_state
from forkpoint.screening import Screening
from forkpoint.support.progress import SILENT, Progress


def compare_engine(
    model: nn.Module,
    recording: str | Path,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    rename: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
) -> EngineComparison:
    """Hold what an engine computed against a model of transformers: the first op that is more than rounding apart.

        llm = vllm.LLM(path, enforce_eager=True)
        fp.record_engine(llm, [[1, 2, 3]], "recorded")
        print(fp.compare_engine(model, "recorded"))

    Each op of the reference is computed in float64 and in its own dtype from the very values that the engine's op was given,
    so that an error shows at its own op and at no other (docs/engines.md).

    Args:
        model: the reference, a causal model in eval mode, with `sdpa` attention.
        recording: a folder that `record_engine` or `record(…, values=["*"])` wrote.
        prompts: token ids of each prompt that the engine was to be asked, in the order of the recording's samples; by
            default as the recording says.
        rename: paths of the engine's modules, or their ends or beginnings, each with the reference's in its place.
        progress: is told of each stage as it begins.

    Raises:
        InputError: the folder holds no such recording, or nothing in it can be compared.
    """
    progress.begin("reading the recording")
    read = read_recording(recording)
    try:
        with kept_state(model):
            return _Comparison(read, model, prompts, rename or {}, progress).answer()
    finally:
        read.recorded.close()


@dataclass
class _Conclusion:
    """A verdict in the making."""

    kind: VerdictKind
    mechanism: str | None
    summary: str
    switch: str = ""


class _Comparison:
    def __init__(
        self,
        recording: Recording,
        model: nn.Module,
        prompts: Sequence[Sequence[int]] | None,
        rename: Mapping[str, str],
        progress: Progress,
    ) -> None:
        self.recording, self.model, self.progress = recording, model, progress
        self.plan: Plan = plan(recording, model, rename)
        self.whole = token_ids(recording, prompts)
        progress.begin("asking whether both were asked the same")
        self.checks, self.mechanism = question_checks(recording, model, self.whole)
        self.notes: list[str] = []

    def answer(self) -> EngineComparison:
        base = EngineComparison(
            engine=self.recording.name, version=self.recording.facts.version, reference=type(self.model).__name__,
            verdict=VerdictKind.UNDETERMINED, mechanism=None, summary="", question=self.checks, ops=(), first=None,
            cost=None, reported=None, settings=self.recording.facts.settings, versions=_versions(self.recording),
        )  # fmt: skip
        if self.mechanism == "token_ids":
            check = next(c for c in self.checks if c.name == "token_ids")
            switch = "Record the engine while it answers the prompt, and give both the same token ids."
            return replace(
                base, verdict=VerdictKind.INPUTS, mechanism="token_ids", summary=check.text, switch=switch
            )
        ids = {sample: whole[: self._length(sample)] for sample, whole in self.whole.items()}
        self.progress.begin("computing each op on the engine's inputs")
        table = Table(self.recording, self.model, self.plan, ids)
        table, rows = self._relabelled(table)
        self.progress.begin("counting the cost")
        point = logits_point(self.plan, self.model)
        free = free_logits(self.model, ids)
        first = next((row for row in rows if row.status == "differs"), None)
        screening, check = reported(self.recording, point, free, table.dtype)
        checks = (*self.checks, *((check,) if check else ()))
        conclusion = self._conclude(table, first, screening, checks, point is not None)
        missed = tuple(
            EngineOp(
                p.boundary.name,
                "",
                p.name,
                "",
                p.how,
                "not compared",
                reason="the reference has no such value here",
            )
            for p in table.missed
        )
        return replace(
            base, verdict=conclusion.kind, mechanism=conclusion.mechanism, summary=conclusion.summary, switch=conclusion.switch, question=checks,
            ops=(*rows, *missed), first=first, cost=cost(point, free, self.whole), reported=screening,
            listed=listed(self.recording, table), notes=tuple(self.notes),
        )  # fmt: skip

    def _length(self, sample: int) -> int:
        """As many tokens as the engine computed, with those before that it found in its cache."""
        last = max(
            int(c.position[c.sample == sample].max())
            for c in self.recording.grids
            if bool((c.sample == sample).any())
        )
        return last + 1

    def _relabelled(self, table: Table) -> tuple[Table, list[EngineOp]]:
        """The rows, those that hold the value of another op apart from the rest.

        Such a row is a mistake of the recording only where all else in its block agrees without it: an engine that swaps two
        values computes on with them.
        """
        aside: dict[str, EngineOp] = {}
        for _ in range(_MOST_ASIDE):
            row = next((row for row in table.rows if row.status == "differs"), None)
            other = None if row is None else table.mislabelled(row)
            if row is None or other is None:
                break
            points = [p for p in table.plan.points if p.name != row.reference]
            without = Table(self.recording, self.model, Plan(points, self.plan.unmatched), table.ids)
            block = block_of(row.reference)
            if any(r.status == "differs" for r in without.rows if block_of(r.reference) == block):
                break
            reason = f"what was recorded there is the value of {other}"
            aside[row.reference] = replace(row, status="mislabelled", reason=reason)
            self.notes.append(f"what was recorded as {row.reference} is the value of {other}")
            table = without
        return table, [*table.rows, *aside.values()]

    def _conclude(
        self,
        table: Table,
        first: EngineOp | None,
        screening: Screening | None,
        checks: tuple[Check, ...],
        logits: bool,
    ) -> _Conclusion:
        texts = {check.name: check for check in checks}
        if self.mechanism == "parameters":
            switch = (
                "Load or sync the weights again on both sides, and clear the engine's prefix cache after it."
            )
            return _Conclusion(VerdictKind.INPUTS, "parameters", texts["weights"].text, switch)
        if self.mechanism == "position_ids":
            return _Conclusion(
                VerdictKind.SEMANTIC,
                "position_ids",
                texts["positions"].text,
                "Count positions from 0 on both sides.",
            )
        if first is not None and self._is_stale(table, first):
            text = (
                f"the prefix cache is stale: of the tokens that were found in it, {first.differing} have other values at "
                f"{first.op} than the weights of now give"
            )
            return _Conclusion(VerdictKind.SEMANTIC, "cache_state", text, _SWITCH_PREFIX)
        if first is not None:
            return _Conclusion(VerdictKind.SEMANTIC, None, _blamed(first))
        if texts["sampling"].outcome == "differs" or _says_sampling(screening):
            return self._sampling(texts["sampling"], screening)
        elsewhere = texts.get("reported_elsewhere")
        if elsewhere is not None and elsewhere.outcome == "differs":
            return _Conclusion(VerdictKind.SEMANTIC, "cache_state", elsewhere.text, _SWITCH_PREFIX)
        returned = texts.get("reported")
        if returned is not None and returned.outcome == "differs":
            return _Conclusion(VerdictKind.SEMANTIC, None, returned.text)
        if not (logits and table.rows):
            text = "the engine's logits were not recorded: what lies between the last op that was compared and them is unknown"
            return _Conclusion(VerdictKind.UNDETERMINED, None, text)
        if table.missed:
            self.notes.append(
                f"{len(table.missed)} values of the engine have no counterpart that the reference computes"
            )
        worst = max(table.rows, key=lambda row: row.times or 0.0)
        if all(row.status == "identical" for row in table.rows):
            return _Conclusion(
                VerdictKind.IDENTICAL, None, "every op gives the same bits, given the same inputs"
            )
        text = (
            f"every op is as near to float64 as rounding takes it, given the same inputs: {worst.op} is farthest, "
            f"{worst.times:.3g} times"
        )
        return _Conclusion(
            VerdictKind.ROUNDING, None, text, _SWITCH_ROUNDING if table.dtype != "float32" else ""
        )

    def _sampling(self, check: Check, screening: Screening | None) -> _Conclusion:
        # what the engine was told comes before what its numbers look like
        setting = next((name for name in ("temperature", "top_p", "top_k") if f"{name}=" in check.text), None)
        cause = setting if check.outcome == "differs" else None
        if cause is None and screening is not None and _says_sampling(screening):
            cause = screening.cause
        text = check.text if check.outcome == "differs" else ""
        text = text or (screening.summary if screening is not None else "")
        switch = "Report log-probabilities of the plain distribution (logprobs_mode='raw_logprobs'), or apply the same on both sides."
        return _Conclusion(VerdictKind.INPUTS, cause, text, switch)

    def _is_stale(self, table: Table, first: EngineOp) -> bool:
        """Whether all that differs at the first op are keys or values that were in the cache before."""
        point = next(p for p in self.plan.points if p.name == first.reference)
        parts = table.measured[point.key]
        beyond = {s: m.position[m.beyond] for s, m in parts.items()}
        return bool(point.cached) and all(bool((p < point.cached.get(s, 0)).all()) for s, p in beyond.items())


_MOST_ASIDE = 8
"""Values under another op's name that are looked for."""
_SWITCH_PREFIX = (
    "Call llm.reset_prefix_cache() after each sync of the weights, or set enable_prefix_caching=False."
)
_SWITCH_ROUNDING = "Rounding goes with the dtype: --dtype float32 on both sides makes it smaller."


def _blamed(first: EngineOp) -> str:
    """Which of both is far from float64, at an op that is more than rounding apart."""
    assert first.times is not None and first.reference_times is not None
    if first.times <= TIMES:
        return (
            f"given the same inputs, {first.reference} of the reference, and not the engine, is {first.reference_times:.3g} times "
            f"as far from float64 as rounding takes it, at {first.differing} of {first.compared} tokens"
        )
    return (
        f"given the same inputs, {first.op} is {first.times:.3g} times as far from float64 as rounding takes it, at "
        f"{first.differing} of {first.compared} tokens"
    )


def _says_sampling(screening: Screening | None) -> bool:
    return screening is not None and screening.cause in ("temperature", "top_p", "top_k")


def _versions(recording: Recording) -> dict[str, str]:
    import transformers

    theirs = {f"engine.{k}": str(v) for k, v in recording.recorded.manifest["versions"].items()}
    mine = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
    return {**mine, **theirs}
