"""Two traces compared: op by op, without the models. What only they could tell is said to be unknown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.capture.recorder import Recorder
from forkpoint.capture.trace import Op
from forkpoint.explain import impact
from forkpoint.explain.columns import input_rows
from forkpoint.explain.locate import differing_rows, unmatched_before
from forkpoint.explain.results import ResultComparison, compare_results
from forkpoint.explain.session import Session, Traced, plain
from forkpoint.explain.untraced import UNNAMED, held_against, name_of_lone
from forkpoint.match import Join, Joined, Shared
from forkpoint.match.align import gap, index_of, pair_elements, scalar
from forkpoint.match.distance import ulps
from forkpoint.probes.inputs import differing_weights
from forkpoint.result import (
    ArgumentComparison,
    Divergence,
    NotCompared,
    ProbeResult,
    Result,
    RunSummary,
    Verdict,
    VerdictKind,
)
from forkpoint.runs.batches import paired
from forkpoint.runs.masks import states_layout
from forkpoint.runs.randomness import RandomState
from forkpoint.runs.run import Run
from forkpoint.support.progress import SILENT, Progress
from forkpoint.traces.again import again
from forkpoint.traces.matching import match
from forkpoint.traces.reading import TraceFolder, read
from forkpoint.traces.renaming import matched_modules, renamed
from forkpoint.traces.slices import Regrouped, is_transposed, regrouped
from forkpoint.traces.telling import Told


def compare_traces(
    a: str | Path, b: str | Path, *, rename: Mapping[str, str] | None = None, progress: Progress = SILENT
) -> Result:
    """Compare two traces: the first op at which they part ways, and by how much what the models returned differs.

    The models are not needed, nor the machine. Ops meet by module, function and place in the source; where lines have
    moved or modules were renamed, by what `renamed` finds, and a note says so. Whether a difference is rounding can't be
    told without running the models again: the verdict is then `undetermined`, and the advice says what to run.

    Args:
        a, b: folders that `record` wrote, or where fsspec finds them.
        rename: begins of module paths of run B, each with what run A has in its place.
        progress: is told of each stage as it begins.

    Raises:
        InputError: a folder is no trace, of another version of the format, or damaged.
        LayoutError: the runs share no sample.
    """
    progress.begin("reading the traces")
    one = read(a, "A")
    try:
        other = read(b, "B")
        try:
            return _compared((a, one), (b, other), rename or {}, progress)
        finally:
            other.close()
    finally:
        one.close()


def _compared(
    a: tuple[str | Path, TraceFolder],
    b: tuple[str | Path, TraceFolder],
    rename: Mapping[str, str],
    progress: Progress,
) -> Result:
    """What `compare_traces` says of two traces that were read, each with the folder that it was asked for."""
    (_, one), (_, other) = a, b
    for folder, recorded in (a, b):
        recorded.run.name = os.path.basename(os.path.normpath(str(folder))) or recorded.run.name
    notes = [*_ends_early("A", one), *_ends_early("B", other)]
    recorded = other.trace.ops
    modules, said = renamed(one, other, rename)
    pieces = regrouped(one, other)
    said += _named_alike(one, other)
    run_a, run_b, pairing, remarks = paired(one.run, other.run)
    progress.begin("comparing digests")
    shared = Shared(one.trace.table, other.trace.table, pairing)
    matches = match(one.trace, other.trace, recorded, shared)
    notes += [*said, *pieces.note(), *matches.notes()]
    join = Join(one.trace, other.trace, shared, progress)
    session = Session(_traced(run_a, one), _traced(run_b, other), shared, join)
    compared = compare_results(session)
    rows = sorted(session.join.rows, key=lambda r: (r.status == "only in b", r.order))
    told = Told(one, other, matches, modules)
    first = _first(session, one, other, told)
    return Result(
        a=_summary(one, session.a), b=_summary(other, session.b), first=first,
        verdict=_verdict(session, compared, one, other, first, pieces),
        impact=impact.measure(session, compared), ops=tuple(map(told.row, rows)),
        not_compared=_not_compared(rows, one, other), drift=(), replaced_modules=(),
        configuration=_configuration(one, other), notes=(*notes, *remarks), call="fp.compare_traces(a, b)",
        matches=(*matched_modules(modules), *pieces.matches(one, other)),
        versions={str(k): str(v) for r in (other, one) for k, v in r.manifest["versions"].items()},
    )  # fmt: skip


def _named_alike(one: TraceFolder, other: TraceFolder) -> list[str]:
    """Give what one run returns without a name the name that the other has for the one tensor of this shape."""
    both = (one, other)
    for mine in (0, 1):
        name = name_of_lone(plain(both[mine].results), plain(both[1 - mine].results))
        if name is not None:
            both[mine].results = [{name: call[UNNAMED]} for call in both[mine].results]
            return [held_against(mine, name)]
    return []


def _ends_early(name: str, recorded: TraceFolder) -> list[str]:
    """What a recording lacks, as notes."""
    notes = [f"call {call} of run {name} ended in an error: {said}" for call, said in recorded.failed.items()]
    if not recorded.complete:
        notes.append(
            f"the recording of run {name} did not come to its end: compared as far as it was written"
        )
    return notes


def _traced(run: Run, recorded: TraceFolder) -> Traced:
    """What a comparison knows of a run that it has traced; it can't be made again."""
    recorder = Recorder(run.layout, None, labels=recorded.labels)
    return Traced(run, recorded.trace, recorded.results, RandomState.take(), recorder)


# ---------------------------------------------------------------------- the first divergence


def _first(session: Session, one: TraceFolder, other: TraceFolder, told: Told) -> Divergence | None:
    """The first op whose digests differ, with values where both traces have kept them."""
    row = next(iter(differing_rows(session)), None)
    if row is None or row.difference is None:
        return None
    difference = row.difference
    event = one.trace.events[difference.event_a]
    theirs = other.trace.events[difference.event_b]
    divergence = Divergence(
        **_place(row.op), sample=_name(session, difference.sample), position=difference.position, token=None,
        index_a=(), index_b=(), value_a=None, value_b=None, ulps=None, max_abs=None, max_rel=None,
        differing=row.differing, compared=row.compared, call=event.call, dtype_a=event.dtype, dtype_b=theirs.dtype,
        shape_a=event.shape, shape_b=theirs.shape,
        note="its values were not recorded: coordinates are counted, not elements", **told.place_in_b(row),
    )  # fmt: skip
    hidden = unmatched_before(session, row)
    divergence = replace(divergence, between=tuple(f"{run}: {op.place}" for run, op in hidden))
    return _with_values(session, divergence, row, one, other)


def _with_values(
    session: Session, divergence: Divergence, row: Joined, one: TraceFolder, other: TraceFolder
) -> Divergence:
    difference = row.difference
    assert difference is not None
    mine, theirs = one.value(difference.event_a), other.value(difference.event_b)
    if mine is None or theirs is None:
        return divergence
    pairs = pair_elements(*mine, *theirs, session.shared)
    if not len(pairs):
        return divergence
    apart = gap(mine[0], theirs[0], pairs)
    if not apart.differing:
        return divergence
    at_a, at_b = pairs.at(apart.first)
    value_a, value_b = scalar(mine[0], at_a), scalar(theirs[0], at_b)
    numbers = isinstance(value_a, float) and isinstance(value_b, float)
    return replace(
        divergence, index_a=index_of(at_a, tuple(mine[0].shape)), index_b=index_of(at_b, tuple(theirs[0].shape)),
        value_a=value_a, value_b=value_b, max_abs=apart.max_abs, max_rel=apart.max_rel, differing=apart.differing,
        compared=apart.compared, note="",
        ulps=ulps(value_a, value_b, mine[0].dtype, theirs[0].dtype) if numbers else None,
    )  # fmt: skip


def _place(op: Op) -> dict[str, Any]:
    if op.is_boundary:
        name = op.module or "(model)"
        return {
            "op": name,
            "module": op.module,
            "function": None,
            "source": "?",
            "code": "",
            "variable": None,
        }
    return {
        "op": op.name, "module": op.module, "function": op.function, "source": op.site.short,
        "code": op.site.code, "variable": op.site.variable,
    }  # fmt: skip


def _name(session: Session, sample: int | None) -> Any:
    return None if sample is None else session.a.run.layout.name(sample)


# ---------------------------------------------------------------------- the verdict


def _verdict(
    session: Session,
    compared: ResultComparison,
    one: TraceFolder,
    other: TraceFolder,
    first: Divergence | None,
    pieces: Regrouped,
) -> Verdict:
    checks = (_of_inputs(session), _of_weights(one, other, pieces))
    evidence = tuple(check for check, _ in checks)
    for check, mechanism in checks:
        if check.outcome == "differs":
            return Verdict(VerdictKind.INPUTS, mechanism, None, check.text, evidence, _ADVICE_INPUTS)
    if any(g.gap.nan_in_one for g in compared.floating):
        text = "one run returns NaN where the other has numbers"
        return Verdict(VerdictKind.SEMANTIC, "nan", False, text, evidence)
    returned = [r for r in session.join.rows if not r.op.module and r.op.function == "output"]
    differ = compared.differs or any(r.status == "differs" for r in returned)
    whole = one.complete and other.complete and not (one.failed or other.failed)
    left_open = [r for r in returned if r.status not in ("equal", "differs") or r.left_out]
    if returned and whole and not (differ or left_open or compared.displaced or compared.missing):
        return Verdict(VerdictKind.IDENTICAL, None, None, "every result is the same, bit for bit", evidence)
    if differ or first is not None:
        missing = "the runs differ; whether that is rounding can't be told from what was recorded"
    elif one.failed or other.failed:
        missing = "a call ended in an error; as far as both go, they are the same"
    elif not whole:
        missing = "a recording did not come to its end; as far as both go, they are the same"
    else:
        missing = "not all that the models return could be compared"
    return Verdict(VerdictKind.UNDETERMINED, None, None, missing, evidence, _advice(first, one, other))


_ADVICE_INPUTS = "Give both runs the same inputs and weights, then record them again."


def _advice(first: Divergence | None, one: TraceFolder, other: TraceFolder) -> str:
    """What the experiments need that a trace has not, as commands for the environment of each run."""
    if first is None:
        return ""
    parts: list[str] = []
    if first.value_a is None:
        commands = (
            again(str(r.run.name), r.manifest, op)
            for r, op in ((one, first.op), (other, first.op_b or first.op))
        )
        parts.append(
            "To see its values, record both again and compare these: run A by `{}`, run B by `{}`.".format(
                *commands
            )
        )
    if one.manifest["versions"] == other.manifest["versions"]:
        parts.append(
            "To tell rounding from a real difference, run both models in one process with fp.compare."
        )
    else:
        parts.append(
            "To tell rounding from a real difference, record both again with the models in float64 (`model.double()`) and "
            "compare these: a gap of rounding falls to some 1e-13 of the values."
        )
    return " ".join(parts)


Check = tuple[ProbeResult, str | None]
"""What was seen, and the mechanism where it differs."""


def _of_weights(one: TraceFolder, other: TraceFolder, pieces: Regrouped) -> Check:
    """Whether both runs have the same parameters and buffers, of those that have one name in both, or the same rows."""
    common = [(w, other.weights[n]) for n, w in one.weights.items() if n in other.weights]
    if not common and not pieces.names:
        text = "no parameter has one name in both runs"
        return ProbeResult("inputs", "unknown", None, text), None
    dtypes = [(x, y) for x, y in common if x.dtype != y.dtype]
    read = [
        (x, y) for x, y in common if x.dtype == y.dtype and x.digests is not None and y.digests is not None
    ]
    other_way = {*pieces.transposed}
    differing = [
        x
        for x, y in read
        if x.name not in other_way and not np.array_equal(x.digests, y.digests)  # type: ignore[arg-type]
    ]
    alone = len((one.weights.keys() ^ other.weights.keys()) - pieces.names)
    if differing:
        parameters = [w for w in differing if w.kind == "parameter"]
        kind, counted = ("parameters", parameters) if parameters else ("buffers", differing)
        first = counted[0]
        text = differing_weights(kind, [w.name for w in counted])
        if is_transposed(first, other.weights[first.name]):
            text += ": it is that of the other run, transposed"
        return ProbeResult("inputs", "differs", float(len(counted)), text), kind
    if dtypes:
        x, y = dtypes[0]
        text = f"{len(dtypes)} weights have another dtype, {x.name} first: {x.dtype} in A, {y.dtype} in B"
        return ProbeResult("inputs", "unknown", float(len(dtypes)), text), None
    if alone or len(read) < len(common):
        text = (
            f"{len(read)} parameters and buffers are the same in both runs; {alone} are in one alone, {len(common) - len(read)} "
            "could not be read"
        )
        return ProbeResult("inputs", "unknown", float(alone + len(common) - len(read)), text), None
    text = f"{len(common)} parameters and buffers are the same in both runs"
    if pieces.names:
        text += f"; {len(pieces.names)} more have the same rows in other pieces"
    if pieces.transposed:
        text += f"; of these {len(pieces.transposed)} are transposed in one run"
    return ProbeResult("inputs", "same", 0.0, text), None


def _of_inputs(session: Session) -> Check:
    """Whether what goes in is the same at the coordinates that both runs have."""
    rows = [r for r in session.join.rows if not r.op.module and r.op.is_input]
    compared = {
        row.op.function.removeprefix("input:"): row for row in rows if row.status in ("equal", "differs")
    }
    compared = {name: row for name, row in compared.items() if not states_layout(name)}
    for name, row in compared.items():
        if row.status == "differs":
            ids = "token_ids" if name in ("input_ids", "decoder_input_ids") else None
            mechanism = "labels" if name.endswith("labels") else ids
            text = (
                f"input {name} differs at {row.differing} of {row.compared} coordinates that both runs have"
            )
            return ProbeResult("inputs", "differs", float(row.differing), text), mechanism
    if not compared:
        return ProbeResult("inputs", "unknown", None, "no input could be compared"), None
    text = f"inputs that are the same at the coordinates that both runs have: {', '.join(compared)}"
    return ProbeResult("inputs", "same", 0.0, text), None


# ---------------------------------------------------------------------- the rest of the result


def _not_compared(rows: Iterable[Joined], one: TraceFolder, other: TraceFolder) -> tuple[NotCompared, ...]:
    values = [
        NotCompared(r.op.name, "" if r.op.is_boundary else r.op.site.short, r.reason, r.floating)
        for r in rows
        if (r.status == "not compared" or r.left_out) and r.reason
    ]
    left_out = {**other.left_out, **one.left_out}
    return (*values, *(NotCompared(f"result {name}", "", reason, True) for name, reason in left_out.items()))


def _configuration(one: TraceFolder, other: TraceFolder) -> tuple[ArgumentComparison, ...]:
    """Entries in which the configurations, the versions and the settings differ."""
    entries: list[ArgumentComparison] = []
    for name, of in (("", _configured), ("versions.", "versions"), ("settings.", "settings")):
        a, b = (of(r.manifest) if callable(of) else r.manifest[of] for r in (one, other))
        for key in dict.fromkeys([*a, *b]):
            if a.get(key) != b.get(key):
                shown = (repr(m[key]) if key in m else "" for m in (a, b))
                entries.append(ArgumentComparison(f"{name}{key}", *shown))
    return tuple(entries)


def _configured(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["models"][0]["configuration"] if manifest["models"] else {}


def _summary(recorded: TraceFolder, traced: Traced) -> RunSummary:
    run = traced.run
    model = next(iter(recorded.manifest["models"]), {})
    coordinates = [c for entry in run.layout.calls for c in entry.values()]
    return RunSummary(
        name=str(run.name),
        calls=tuple({k: tuple(v.shape) for k, v in c.items()} for c in run.calls),
        samples=len(run.layout.samples),
        tokens=sum(int(c.valid.sum()) for c in coordinates),
        padding=sum(int((~c.valid).sum()) for c in coordinates),
        dtype=str(model.get("dtype") or "?"),
        device=str(model.get("device") or "?"),
        attention=str(model["attention"]) if model.get("attention") else None,
        ops=len({op.key for op in recorded.trace.ops if not op.is_boundary}),
        rows=input_rows(run, lambda _, __: None),
        notes=tuple(recorded.remarks),
    )
