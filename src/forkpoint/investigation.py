"""What `compare` does with two runs once they were made without tracing: `investigate` is the list of its stages.

Records of other files that it hands on: a `Session` is both traced runs with their join, which can also make either once more.
A `Joined` (a row of `join.rows`) is one op and how its values compare. A `Located` is the first op that differs, with its values
of both runs. A `Judgement` is the verdict with the origins, the ops where something other than rounding enters. `Tokens` gives
the text of the token at (sample, position).
"""

from __future__ import annotations

import platform
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint import scene
from forkpoint.backward.comparing import Plain, compare_backward
from forkpoint.capture.shortcuts import note_of_shortcuts
from forkpoint.errors import SceneError
from forkpoint.explain import drift, impact
from forkpoint.explain.arguments import compare_configurations
from forkpoint.explain.columns import input_digest, input_rows
from forkpoint.explain.locate import Located, Tokens, locate
from forkpoint.explain.replaced import replaced_modules
from forkpoint.explain.results import ResultComparison, compare_results
from forkpoint.explain.rows import op_row
from forkpoint.explain.session import Session, Traced, trace_faithfully
from forkpoint.explain.untraced import Untraced
from forkpoint.explain.values import fetch_value
from forkpoint.match import Join, Joined, Shared
from forkpoint.ports.explaining import explain_port, is_port
from forkpoint.ports.mapping import Mapping
from forkpoint.probes.sources import sources as find_sources
from forkpoint.result import NotCompared, Result, RunSummary, VerdictKind
from forkpoint.runs.modules import attribute_of, wrappings
from forkpoint.runs.pairing import Pairing
from forkpoint.runs.run import Run, token_ids
from forkpoint.support.files import check_writable, is_file
from forkpoint.support.memory import Memory
from forkpoint.support.progress import Progress
from forkpoint.support.readable import sizes_of
from forkpoint.support.restoring import alone, by_itself, restored
from forkpoint.support.version import VERSION
from forkpoint.verdict import Judgement, judge, locate_meeting, without_probes


def investigate(
    a: Run,
    b: Run,
    untraced: list[Untraced],
    pairing: Pairing,
    memory: Memory,
    *,
    probes: bool,
    sources: bool,
    tokenizer: Any,
    notes: Sequence[str],
    progress: Progress,
    mapping: Mapping | None = None,
    backward: tuple[Plain, Plain] | None = None,
) -> Result:
    """Find the first operation at which two runs part ways, and say why.

    Args:
        a, b: the runs.
        untraced: both as they were made without tracing: a trace has to give the same bits. The list is emptied, so that each
            run's results can go as soon as its trace is compared with them.
        pairing: which of their coordinates belong together.
        memory: limits what is kept of them.
        probes, sources, tokenizer, notes, progress, mapping: as `compare` takes them.
        backward: the backward pass of each, made without tracing, if gradients are to be compared.
    """
    # Digests of every op's outputs, in both runs; then op by op whether they are equal at the tokens that both runs have.
    # The session is both traced runs with their join: all that follows asks it, or has it make a run once more.
    traced_a, traced_b = _trace(a, b, untraced, memory, progress)
    session = _join(traced_a, traced_b, pairing, memory, progress)
    tokens = _token_texts(a, tokenizer)
    # What the models returned, value by value.
    progress.begin("comparing results")
    compared = compare_results(session)
    # The values of the first op that differs, by making both runs again; the outputs of the layers are fetched by the way,
    # unless the results are identical: no gap grows then.
    layers = drift.LayerOutputs(session)
    progress.begin("fetching the first divergence")
    beside = ((), ()) if compared.identical else layers.fetches  # of run A, of run B
    located = locate(session, tokens, beside)
    # Experiments, until they prove a kind of difference: a verdict, with the origins where it enters. Without them only what
    # the digests show can be said: that the results are identical, or nothing.
    judged = (
        judge(session, compared, located, tokens)
        if probes
        else Judgement(replace(without_probes(compared), probed=False))
    )
    if probes and is_port(session):  # two implementations, few of whose ops have the same names
        judged, port_notes = _of_a_port(session, judged, mapping)
        notes = (*notes, *port_notes)
    # All of that as one record, which can also make either run again: for a scene, a script, a single value.
    texts = tokens, _token_texts(b, tokenizer)  # of A, of B
    result = _assemble(session, located, compared, layers, judged, notes, texts)
    if backward is not None:
        # The same once more, of gradients: traced, joined and judged.
        gradients = compare_backward(session, backward, tokens, probes=probes)
        result = replace(result, backward=gradients)
    return _with_sources(result, session, tokens) if sources else result


def _of_a_port(
    session: Session, judged: Judgement, mapping: Mapping | None
) -> tuple[Judgement, tuple[str, ...]]:
    """A judgement of runs whose ops do not meet by name: the origin is where their values part.

    Most ops have no counterpart by name, so the origin that `judge` came upon need not be the first. Only its verdict stays,
    and its origin if that is a compiled module (`by_module`), which is known by its path.

    Returns:
        The judgement, and notes for the report.
    """
    agree = judged.verdict.kind in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING)
    port = explain_port(session, mapping, parts=not agree)
    if judged.verdict.kind is not VerdictKind.SEMANTIC or judged.by_module:
        return judged, port.notes
    origins = () if port.origin is None else (port.origin,)
    # `origin`, which the scene would be made of, is the one that `judge` came upon.
    return replace(judged, origins=origins, origin=None), port.notes


def _trace(
    a: Run, b: Run, untraced: list[Untraced], memory: Memory, progress: Progress
) -> tuple[Traced, Traced]:
    """Trace A, then B; each trace is checked against the run without tracing, which is let go of."""
    traced_a = trace_faithfully(a, untraced.pop(0), memory=memory, progress=progress, name="A")
    like = traced_a.trace  # about as long: it says how far B is
    return traced_a, trace_faithfully(
        b, untraced.pop(0), memory=memory, progress=progress, name="B", like=like
    )


def _join(a: Traced, b: Traced, pairing: Pairing, memory: Memory, progress: Progress) -> Session:
    """Join the traces: number the coordinates that both runs have, and compare the digests of each op there."""
    progress.begin("comparing digests")
    # If one model holds the other in a wrapper (an adapter, a compiled model), ops meet by their paths below it.
    a.trace.wrapping, b.trace.wrapping = wrappings(a.run.modules, b.run.modules)
    shared = Shared(a.trace.table, b.trace.table, pairing)
    join = Join(a.trace, b.trace, shared, progress)
    for traced in (a, b):
        traced.trace.close()  # digests that lie in files are not needed any more
    # `scene.look` notes of each call that a later pass keeps what a scene needs besides its values (settings, memory layout).
    return Session(a, b, shared, join, memory, progress, scene.look)


def _token_texts(run: Run, tokenizer: Any) -> Tokens:
    """A function that gives the text of a run's token at (sample, position); None where it isn't known."""
    ids = token_ids(run)

    @cache
    def decoded(token: int) -> str | None:
        try:
            return str(tokenizer.decode([token]))
        except Exception:  # noqa: BLE001  an id that it doesn't know is no reason to lose the comparison
            return None

    def text(sample: int, position: int) -> str | None:
        token = ids.get((sample, position))
        return None if token is None or tokenizer is None else decoded(token)

    return text


# ---------------------------------------------------------------------- the result


def _with_sources(result: Result, session: Session, tokens: Tokens) -> Result:
    """The result with every op that parts ways on equal inputs."""
    every = find_sources(session, tokens)
    left = (
        ()
        if every.complete
        else ("Not all values were kept: sources behind those that were are not listed.",)
    )
    return replace(result, sources=every.divergences, notes=(*result.notes, *left))


def _assemble(
    session: Session, located: Located | None, compared: ResultComparison, layers: drift.LayerOutputs,
    judged: Judgement, notes: Sequence[str], texts: tuple[Tokens, Tokens],
) -> Result:  # fmt: skip
    """The record of all that the stages came to; impact and drift are measured here."""
    session.progress.begin("measuring the impact")
    # As A ran, then what B alone has, as B ran.
    rows = sorted(session.join.rows, key=lambda r: (r.status == "only in b", r.order))
    ops = tuple(op_row(row) for row in rows)
    integers = [r for r in rows if r.difference is not None and not r.floating and not r.op.is_boundary]
    first_integer = min(integers, key=lambda r: r.difference.event_a if r.difference else 0, default=None)
    return Result(
        a=_summary(session.a, "A", texts[0]),
        b=_summary(session.b, "B", texts[1]),
        first=located.divergence if located is not None else None,
        verdict=judged.verdict,
        configuration=compare_configurations(session.a.run.modules, session.b.run.modules),
        origin=next(iter(judged.origins), None),
        origins=judged.origins,
        first_nonfinite_a=judged.unfinite.a if judged.unfinite is not None else None,
        first_nonfinite_b=judged.unfinite.b if judged.unfinite is not None else None,
        impact=impact.measure(session, compared),
        ops=ops,
        not_compared=_not_compared(session, rows, compared),
        drift=drift.measure(session, compared, layers) if not compared.identical else (),
        replaced_modules=replaced_modules(session.b.run.modules) or replaced_modules(session.a.run.modules),
        first_integer=op_row(first_integer) if first_integer is not None else None,
        notes=(*notes, *_pairing_notes(session), *filter(None, [note_of_shortcuts()])),
        versions=versions(),
        _save=lambda directory, confirm=None: _save_scene(session, located, judged, directory, confirm),
        _write=lambda path, synthetic: _write_script(session, located, judged, path, synthetic=synthetic),
        _fetch=lambda module, name, **where: fetch_value(session, module, name, **where),
    )


# Users call these two after the comparison is over, so each is fenced as `compare` is (`comparison`).


@alone
@restored
@by_itself
def _save_scene(
    session: Session, located: Located | None, judged: Judgement, directory: Any, confirm: Any
) -> None:
    """The scene of the origin where the verdict is semantic, else of the first divergence."""
    if judged.located is not None:
        located = judged.located
    elif judged.origin is not None:  # found in float64: fetch its op in the precision of the runs
        located = locate_meeting(session, judged.origin.seen) or located
    if located is None:
        raise SceneError("no op differs between the runs", "two runs that part ways somewhere")
    scene.save(session, located, directory, versions=versions(), confirm=confirm)


@alone
@restored
@by_itself
def _write_script(
    session: Session, located: Located | None, judged: Judgement, path: Path, *, synthetic: bool
) -> None:
    """The script of the scene, which it lies next to; or of random data, and then the scene is not kept."""
    check_writable(path)
    if synthetic:
        with tempfile.TemporaryDirectory(prefix="forkpoint-") as folder:
            _save_scene(session, located, judged, Path(folder) / "scene", None)
            scene.write_script(Path(folder) / "scene", path, synthetic=True)
        return
    if not is_file(path):
        raise SceneError(f"{path} is no file that its scene could lie next to", "a file, or synthetic data")
    directory = Path(f"{path}.scene")
    _save_scene(session, located, judged, directory, None)
    scene.write_script(directory, path)


def _not_compared(
    session: Session, rows: list[Joined], compared: ResultComparison
) -> tuple[NotCompared, ...]:
    """What was not compared and why: ops, results, and returned objects that have no value to compare (`others`)."""
    entries = [
        NotCompared(row.op.name, "" if row.op.is_boundary else row.op.site.short, row.reason, row.floating)
        for row in rows
        if (row.status == "not compared" or row.left_out) and row.reason
    ]
    entries += [NotCompared(f"result {name}", "", reason, True) for name, reason in compared.left_out]
    others = {**session.b.others, **session.a.others}
    entries += [
        NotCompared(f"result {name}", "", f"{kind}: no value", False) for name, kind in others.items()
    ]
    return tuple(entries)


def _summary(traced: Traced, default: str, text: Tokens) -> RunSummary:
    """What a report says of a run; `default` is its name if it has none, `text` gives its tokens their text."""
    run, model = traced.run, traced.run.modules
    tokens = padding = 0
    for call in run.layout.calls:
        for coordinates in call.values():  # of each stream of tokens, as an encoder's and a decoder's
            tokens += int(coordinates.valid.sum())
            padding += int((~coordinates.valid).sum())
    parameter = next(model.parameters(), None) if model is not None else None
    # Of a run without parameters its first input says the dtype and the device.
    first = parameter if parameter is not None else next(
        (v for v in run.calls[0].values() if isinstance(v, Tensor)), None
    )  # fmt: skip
    return RunSummary(
        name=run.name or default,
        calls=tuple({k: sizes_of(v) for k, v in c.items() if isinstance(v, Tensor)} for c in run.calls),
        samples=len(run.layout.samples),
        tokens=tokens,
        padding=padding,
        dtype=_dtype(model, first),
        device=str(first.device) if first is not None else "cpu",
        attention=_attention(model),
        ops=len({op.key for op in traced.trace.ops if not op.is_boundary}),
        notes=traced.remarks,
        rows=input_rows(run, text),
        model=model_name(model),
        digest=input_digest(run),
    )


def model_name(model: nn.Module | None) -> str:
    """The class of a model, and the last part of what it was loaded from."""
    if model is None:
        return ""
    loaded_from = getattr(attribute_of(model, "config"), "_name_or_path", "")
    last = Path(loaded_from).name if isinstance(loaded_from, str) else ""
    return type(model).__name__ + (f" ({last})" if last else "")


def _dtype(model: nn.Module | None, first: Tensor | None) -> str:
    """The dtype that most of the model's floating-point parameters have; without any, that of `first`."""
    counts: dict[torch.dtype, int] = {}
    for parameter in model.parameters() if model is not None else ():
        if parameter.dtype.is_floating_point:
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    dtype = (
        max(counts, key=lambda d: counts[d])
        if counts
        else first.dtype
        if first is not None
        else torch.float32
    )
    return str(dtype).removeprefix("torch.")


def _attention(model: nn.Module | None) -> str | None:
    """The attention implementation that the model's configuration names."""
    config = attribute_of(model, "config")
    value = getattr(config, "_attn_implementation", None)
    return value if isinstance(value, str) else None


def _pairing_notes(session: Session) -> list[str]:
    """What a report says of samples that were paired by their order, or that one run alone has."""
    pairing = session.pairing
    notes: list[str] = []
    if pairing.by_order:
        pairs = ", ".join(f"{a} with {b}" for a, b in pairing.by_order)
        notes.append(f"rows paired by their order, since they hold different things: {pairs}")
    for run, only, layout in (
        ("A", pairing.only_a, session.a.run.layout),
        ("B", pairing.only_b, session.b.run.layout),
    ):
        if only:
            names = ", ".join(str(layout.name(s)) for s in only)
            notes.append(f"batch mates that only run {run} has: {names}")
    return notes


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    by_package = {"python": platform.python_version(), "torch": str(torch.__version__)}
    with suppress(PackageNotFoundError, OSError):  # OSError: what says so can't be read
        by_package["transformers"] = _version("transformers")
    return {**by_package, "forkpoint": VERSION}


def _version(package: str) -> str:
    """The version of an installed package; the first line that says it is read, not all that the package says of itself."""
    installed = Distribution.from_name(package)
    match = re.search(r"^Version: *(\S+)", installed.read_text("METADATA") or "", re.MULTILINE)
    return match[1] if match is not None else installed.version
