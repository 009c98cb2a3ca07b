"""The op that makes NaN or infinity, as the origin of a difference: its values in native precision.

It need not make them of a token that both runs have: a row of padding whose keys are all masked is NaN there, and what
the next layer reads of it makes NaN of all else. Then the two runs agree at the op, wherever both have something, and
what is shown is the one run's value.
"""

from __future__ import annotations

from typing import Any

import torch

from forkpoint.capture.recorder import CopiedCall
from forkpoint.capture.trace import Op
from forkpoint.explain.locate import Located, Tokens, compare_inputs, describe_values, fetch_op, place_of
from forkpoint.explain.session import Session
from forkpoint.match.align import index_of, scalar
from forkpoint.match.finite import is_finite
from forkpoint.probes.nonfinite import Unfinite
from forkpoint.result import Divergence


def maker(session: Session, made: Unfinite, tokens: Tokens) -> tuple[Divergence | None, Located | None]:
    """The op to speak of, and its calls in both runs if a shared coordinate is NaN or infinite there.

    None where it can't be fetched again.
    """
    if made.worst is None:
        return None, None
    run, _ = made.worst
    op, event = made.places[run]
    a, b = (
        made.call(name, op, event) or fetch_op(traced, op, event, look=session.look)
        for name, traced in (("A", session.a), ("B", session.b))
    )
    output = 0 if op.is_boundary else op.output
    if a is not None and b is not None:
        divergence = describe_values(session, op, output, a, b, tokens)
        if divergence is not None and (divergence.nonfinite_a or divergence.nonfinite_b):
            row = next(
                (r for r in session.join.rows if r.op.key == op.key and r.difference is not None), None
            )
            return divergence, None if row is None else Located(row, divergence, a, b)
    mine = a if run == "A" else b
    return None if mine is None else _alone(session, op, output, run, mine, a, b), None


def _alone(
    session: Session,
    op: Op,
    output: int,
    run: str,
    mine: CopiedCall,
    a: CopiedCall | None,
    b: CopiedCall | None,
) -> Divergence:
    """Its first element that is not finite, where the other run has nothing to compare it with."""
    value = mine.outputs[output]
    wrong = ~is_finite(value.reshape(-1))
    fault = value.isnan().reshape(-1) if bool(value.isnan().any()) else wrong
    flat = int(fault.to(torch.uint8).argmax())
    index, number, dtype = (
        index_of(flat, tuple(value.shape)),
        scalar(value, flat),
        str(value.dtype).removeprefix("torch."),
    )
    in_a = run == "A"
    sides: dict[str, Any] = {
        "index_a": index if in_a else (), "index_b": () if in_a else index,
        "value_a": number if in_a else None, "value_b": None if in_a else number,
        "dtype_a": dtype if in_a else None, "dtype_b": None if in_a else dtype,
        "shape_a": tuple(value.shape) if in_a else None, "shape_b": None if in_a else tuple(value.shape),
        "inputs": compare_inputs(session, a, b) if a is not None and b is not None else (),
    }  # fmt: skip
    return Divergence(
        **place_of(session, op), sample=None, position=None, token=None, ulps=None, max_abs=None, max_rel=None,
        differing=0, compared=0, call=mine.call, **sides,
        note=f"it makes {'NaN' if number != number else 'infinity'} of what run {run} alone has: padding, another row or a later token",
    )  # fmt: skip
