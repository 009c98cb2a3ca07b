"""Which elements of an op's inputs and outputs are the same in both runs, as a scene keeps it."""

from __future__ import annotations

from torch import Tensor

from forkpoint.capture.recorder import CopiedCall
from forkpoint.errors import SceneError
from forkpoint.explain.session import Session
from forkpoint.match import Joined
from forkpoint.match.align import pair_elements
from forkpoint.scene.format.sharing import Sharing


def share_output(session: Session, row: Joined, a: CopiedCall, b: CopiedCall, output: int) -> Sharing:
    """Which elements of an output are the same in both runs.

    Raises:
        SceneError: none are.
    """
    value_a, value_b = a.outputs[output], b.outputs[output]
    pairs = pair_elements(value_a, a.output_labels[output], value_b, b.output_labels[output], session.shared)
    if not len(pairs):
        sample = row.difference.sample if row.difference is not None else None
        shapes = tuple(value_a.shape), tuple(value_b.shape)
        pairs = session.join.pair_open(sample, (a.op, a.call), (b.op, b.call), *shapes)
    if not len(pairs):
        raise SceneError(f"the outputs of {row.op.name} share no element", pairs.reason or "shared tokens")
    return Sharing.of(pairs)


def share_input(session: Session, a: CopiedCall, mine: Tensor, b: CopiedCall, theirs: Tensor) -> Sharing:
    """Which elements of an input are the same in both runs.

    Keys and values may have fewer heads in one run, each standing for several in the other (grouped heads against
    heads that were repeated before).
    """
    label_a, label_b = a.input_labels.get(id(mine)), b.input_labels.get(id(theirs))
    pairs = pair_elements(mine, label_a, theirs, label_b, session.shared)
    heads = _grouped(a.op.function, mine, theirs)
    if len(pairs) or heads is None:
        return Sharing.of(pairs)
    few, many = (mine, theirs) if heads > 0 else (theirs, mine)
    wide = few.repeat_interleave(abs(heads), -3)
    repeat = (few.dim() - 3, many.shape[-3] // few.shape[-3])
    if heads > 0:
        return Sharing.of(pair_elements(wide, label_a, theirs, label_b, session.shared), repeat_a=repeat)
    return Sharing.of(pair_elements(mine, label_a, wide, label_b, session.shared), repeat_b=repeat)


def _grouped(function: str, a: Tensor, b: Tensor) -> int | None:
    """How many heads of B one head of A stands for; negative where it is the other way round."""
    if function != "scaled_dot_product_attention" or a.dim() != b.dim() or a.dim() < 3:
        return None
    mine, theirs = a.shape[-3], b.shape[-3]
    if mine == theirs or not mine or not theirs or max(mine, theirs) % min(mine, theirs):
        return None
    return theirs // mine if mine < theirs else -(mine // theirs)
