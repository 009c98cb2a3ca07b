"""Looks into an op that is fused or composite: which part of it gives the two runs other bits.

It compares two kinds of values between the runs, at the coordinates that both have: the outputs of the ATen operators that
the call comes down to (`below`), and those of a decomposition of the op into plain functions (`decompositions`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.functions import ALWAYS_VIEWS
from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import CopiedCall
from forkpoint.capture.rules import tensors_in
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.session import Session, Traced
from forkpoint.match.align import gap, pair_elements
from forkpoint.scene.format.flags import Flags, in_force
from forkpoint.scene.format.parts import Inside, PartComparison
from forkpoint.scene.saving import decompositions
from forkpoint.scene.saving.follow import AtenCall, Following, Labelling, Steps
from forkpoint.support.equality import same_bits

FUSED = frozenset(
    {*decompositions.DECOMPOSITIONS, "multi_head_attention_forward", "group_norm", "batch_norm", "grouped_mm"}
)
"""Functions that are worth looking into, by public name; any other of several ATen operators is, too."""
_ARRANGING = ALWAYS_VIEWS | frozenset(
    [
        "scalar_tensor",
        "where",
        "_to_copy",
        "copy_",
        "fill_",
        "full",
        "ones",
        "zeros",
        "zeros_like",
        "empty",
        "empty_like",
        "clone",
        "slice",
        "_unsafe_view",
        "reshape",
        "tril",
        "masked_fill",
        "logical_not",
        "repeat_interleave",
    ]
)
"""Operators that move elements or prepare a mask: no arithmetic whose order could differ."""
SHOWN_ELEMENTS = 1 << 26
"""Values with more elements than this are not compared part by part."""


# ---------------------------------------------------------------------- looking


def look_inside(
    session: Session, a: CopiedCall, b: CopiedCall, flags_a: Flags, flags_b: Flags
) -> Inside | None:
    """Look into an op that both runs called; None where it is one plain operator.

    Args:
        session: the two traced runs, with the tokens that both have.
        a, b: the call in each run, with the labels of what went in.
        flags_a, flags_b: the settings under which each ran.
    """
    steps_a, same_a = _below(session.a, a, flags_a)
    steps_b, same_b = _below(session.b, b, flags_b)
    computing_a, computing_b = _computing(steps_a), _computing(steps_b)
    names_a, names_b = tuple(s.name for s in computing_a), tuple(s.name for s in computing_b)
    if a.op.function not in FUSED and len(names_a) < 2 and names_a == names_b:
        return None
    below = tuple(_compare_steps(session, computing_a, computing_b)) if same_a and same_b else ()
    parts = tuple(_compare_decompositions(session, a, b, flags_a, flags_b))
    backend_a, backend_b = _backend(a), _backend(b)
    arguments = tuple(_arguments(a, b))
    summary = _summary(names_a, names_b, below, parts, (backend_a, backend_b), arguments)
    return Inside(summary, names_a, names_b, below, parts, backend_a, backend_b, arguments)


def _below(traced: Traced, call: CopiedCall, flags: Flags) -> tuple[list[AtenCall], bool]:
    """The operators below a call, and whether it gave the recorded bits while they were watched."""
    args, kwargs, labels = _copies(call)
    steps = Steps(Labelling(traced.recorder.labels, labels))
    try:
        with torch.no_grad(), in_force(flags, _device(call)), steps:
            result = call.func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reraise_out_of_memory(error)
        return [], False
    outputs = tensors_in((result,)) or [args[0]]
    same = len(outputs) == len(call.outputs) and all(map(same_bits, outputs, call.outputs))
    return steps.steps, same


def _copies(call: CopiedCall) -> tuple[tuple[Any, ...], dict[str, Any], dict[int, Label | None]]:
    """Copies of a call's arguments, since the op may write to them (running statistics), and the labels of the copies."""
    labels: dict[int, Label | None] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            copied = value.clone()
            labels[id(copied)] = call.input_labels.get(id(value))
            return copied
        if isinstance(value, tuple) and not isinstance(value, torch.Size):
            return tuple([copy(item) for item in value])
        if isinstance(value, list):
            return [copy(item) for item in value]
        if isinstance(value, dict):
            return {key: copy(item) for key, item in value.items()}
        return value

    return copy(call.args), copy(call.kwargs), labels


def _device(call: CopiedCall) -> torch.device:
    return call.outputs[0].device


def _computing(steps: Sequence[AtenCall]) -> list[AtenCall]:
    return [s for s in steps if s.name.partition("::")[2] not in _ARRANGING and s.outputs]


def _compare_steps(session: Session, a: Sequence[AtenCall], b: Sequence[AtenCall]) -> list[PartComparison]:
    names_a, names_b = [s.name for s in a], [s.name for s in b]
    matcher = difflib.SequenceMatcher(a=names_a, b=names_b, autojunk=False)
    comparisons: list[PartComparison] = []
    for block in matcher.get_matching_blocks():
        for mine, theirs in zip(
            a[block.a : block.a + block.size], b[block.b : block.b + block.size], strict=True
        ):
            comparisons.append(
                _compare(
                    session,
                    mine.name,
                    "",
                    mine.outputs[0],
                    mine.labels[0],
                    theirs.outputs[0],
                    theirs.labels[0],
                )
            )
    return comparisons


def _compare_decompositions(
    session: Session, a: CopiedCall, b: CopiedCall, flags_a: Flags, flags_b: Flags
) -> list[PartComparison]:
    values_a, values_b = _decomposed(session.a, a, flags_a), _decomposed(session.b, b, flags_b)
    comparisons: list[PartComparison] = []
    for name, (formula, value, label) in values_a.items():
        if name in values_b:
            _, other, other_label = values_b[name]
            comparisons.append(_compare(session, name, formula, value, label, other, other_label))
        else:
            comparisons.append(PartComparison(name, formula, "not compared", reason="only run A has it"))
    for name, (formula, _, _) in values_b.items():
        if name not in values_a:
            comparisons.append(PartComparison(name, formula, "not compared", reason="only run B has it"))
    return comparisons


def _decomposed(
    traced: Traced, call: CopiedCall, flags: Flags
) -> dict[str, tuple[str, Tensor, Label | None]]:
    args, kwargs, labels = _copies(call)
    labelling = Labelling(traced.recorder.labels, labels)
    values: dict[str, tuple[str, Tensor, Label | None]] = {}
    try:
        with torch.no_grad(), in_force(flags, _device(call)), Following(labelling):
            for name, formula, value in decompositions.decompose(call.op.function, args, kwargs):
                values[name] = (formula, value, labelling.of(value))
    except (RuntimeError, NotImplementedError, TypeError, IndexError) as error:
        reraise_out_of_memory(error)
        return values
    return values


def _compare(
    session: Session,
    name: str,
    formula: str,
    a: Tensor,
    label_a: Label | None,
    b: Tensor,
    label_b: Label | None,
) -> PartComparison:
    if max(a.numel(), b.numel()) > SHOWN_ELEMENTS:
        return PartComparison(
            name, formula, "not compared", reason=f"{max(a.numel(), b.numel()):,} elements are too many"
        )
    pairs = pair_elements(a, label_a, b, label_b, session.shared)
    if not len(pairs):
        return PartComparison(name, formula, "not compared", reason=pairs.reason or "nothing in it is shared")
    difference = gap(a, b, pairs)
    status = "differs" if difference.differing else "equal"
    return PartComparison(
        name, formula, status, difference.compared, difference.differing, difference.max_abs
    )


# ---------------------------------------------------------------------- kernels and arguments


def _backend(call: CopiedCall) -> str:
    """Which implementation of attention torch picks for these inputs."""
    if call.op.function != "scaled_dot_product_attention":
        return ""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments: dict[str, Any] = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    try:
        choice = torch._fused_sdp_choice(
            arguments["query"], arguments["key"], arguments["value"], arguments.get("attn_mask"), arguments.get("dropout_p", 0.0),
            arguments.get("is_causal", False), scale=arguments.get("scale"), enable_gqa=arguments.get("enable_gqa", False),
        )  # fmt: skip
        return torch.nn.attention.SDPBackend(choice).name.lower()
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError):
        return ""


def _arguments(a: CopiedCall, b: CopiedCall) -> list[str]:
    """Arguments other than values that the runs don't have in common."""
    mine, theirs = _described(a), _described(b)
    differences: list[str] = []
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        left, right = mine.get(name, "not given"), theirs.get(name, "not given")
        if left != right:
            differences.append(f"{name} {left} in A, {right} in B")
    return differences


def _described(call: CopiedCall) -> dict[str, str]:
    from forkpoint.capture.functions import parameter_names

    names = parameter_names(call.op.function, len(call.args), call.func, call.args)
    arguments = {**dict(zip(names, call.args, strict=True)), **call.kwargs}
    return {name: _word(value) for name, value in arguments.items()}


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of {value.dim()} dimensions"
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return f"{len(value)} tensors"
    return repr(value)[:60]


# ---------------------------------------------------------------------- in words


def _summary(
    a: tuple[str, ...], b: tuple[str, ...], below: Sequence[PartComparison], parts: Sequence[PartComparison],
    backends: tuple[str, str], arguments: Sequence[str],
) -> str:  # fmt: skip
    sentences: list[str] = []
    if a != b:
        only_a, only_b = _apart(a, b)
        sentences.append(f"The two runs chose different kernels: A ran {only_a}, B ran {only_b}.")
    elif backends[0] != backends[1]:
        sentences.append(f"The two runs chose different backends: {backends[0]} in A, {backends[1]} in B.")
    elif len(below) > 1 and (first := _first(below)) is not None:
        sentences.append(
            f"Of the {len(below)} operators below it, {first.name} is the first whose values differ."
        )
    if parts:
        sentences.append(_summary_of_decompositions(parts))
    if not sentences:
        one = a[0] if a else "one kernel"
        how = ", called with other arguments" if arguments else ""
        sentences.append(f"Both runs ran {one}{how}.")
    return " ".join(sentences)


def _apart(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, str]:
    only_a = [name for name in dict.fromkeys(a) if a.count(name) != b.count(name)]
    only_b = [name for name in dict.fromkeys(b) if a.count(name) != b.count(name)]
    return ", ".join(only_a) or ", ".join(a) or "none", ", ".join(only_b) or ", ".join(b) or "none"


def _first(parts: Sequence[PartComparison]) -> PartComparison | None:
    return next((part for part in parts if part.status == "differs"), None)


def _summary_of_decompositions(parts: Sequence[PartComparison]) -> str:
    first = _first(parts)
    if first is not None:
        before = [part.name for part in parts[: parts.index(first)] if part.status == "equal"]
        equal = f" ({', '.join(before)} equal)" if before else ""
        return f"Spelt out step by step, the runs part ways at: {first.name}{equal}."
    if any(part.status == "not compared" for part in parts):
        return "Spelt out step by step, no part that could be compared differs."
    return (
        "Spelt out step by step, the runs agree in every bit: the difference is made inside the fused kernel, "
        "by the order in which it adds up."
    )
