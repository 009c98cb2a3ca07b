"""Modules that no tap looks into."""

from __future__ import annotations

from collections.abc import Sequence

from forkpoint.capture.labels import Label, Labels, Shape, compress


def through_module(
    labels: Labels, inputs: Sequence[tuple[Label | None, Shape]], shape: Shape
) -> Label | None:
    """The label of a value that a module made where no tap saw it: that of an input it is shaped like.

    The token dimensions keep their places in every layer that works token by token; an input whose
    token dimensions have other sizes in the output says nothing.
    """
    for label, source in inputs:
        if label is None:
            continue
        ids = label.q
        fits = all(
            size == 1 or (d < len(shape) and shape[d] == source[d]) for d, size in enumerate(ids.shape)
        )
        if fits:
            leading = ids.shape[: len(shape)]
            if any(size > 1 for size in ids.shape[len(shape) :]):
                continue
            return labels.make(compress(ids.reshape(leading + (1,) * (len(shape) - len(leading)))))
    return None
