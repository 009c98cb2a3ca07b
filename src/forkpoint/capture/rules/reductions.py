"""Reductions: values made of several tokens, whose coordinate is a set of them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from forkpoint.capture.coordinates import Ids
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.rules.call import Call, UnknownMovementError, check_written, tensors_in
from forkpoint.capture.rules.defaults import default
from forkpoint.capture.rules.registry import nothing, rule


@rule(
    "sum", "mean", "prod", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all", "std", "var", "norm",
    "logsumexp", "median", "nanmean", "nansum", "std_mean", "var_mean", "vector_norm", "linalg_vector_norm",
    "linalg_norm", "count_nonzero", "aminmax", "nanmedian", "mode", "quantile",
)  # fmt: skip
def _reduction(call: Call) -> Label | None | list[Label | None]:
    source = call.arg(0, "input", "self", "x")
    at = 2 if "norm" in call.name or call.name == "quantile" else 1
    dim = call.arg(at, "dim", "axis")
    if isinstance(dim, Tensor) or "other" in call.kwargs:
        return default(call)
    label, ndim = call.label(source), source.dim()
    if isinstance(dim, bool):
        dim = None
    dims = list(range(ndim)) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
    dims = sorted(d % max(ndim, 1) for d in dims) if ndim else []
    keep = call.outputs[0].dim() == ndim
    return call.labels.reduce(label, dims, keep)


@rule("topk", "sort", "kthvalue", "argsort", "msort")
def _sorted(call: Call) -> Label | None:
    source = call.arg(0, "input", "self")
    label = call.label(source)
    if label is None:
        return None
    at = 2 if call.name in ("topk", "kthvalue") else 1
    dim = call.arg(at, "dim", default=-1)
    d = (dim if isinstance(dim, int) and not isinstance(dim, bool) else -1) % max(source.dim(), 1)
    if source.dim() == 0:
        return label

    def move(ids: Ids) -> Ids:
        if ids.shape[d] > 1:
            check_written(tuple(source.shape))
            order = call.values(call.outputs[-1])
            if order.ndim == ids.ndim - 1:
                order = np.expand_dims(order, d)
            moved = np.take_along_axis(spread(ids, tuple(source.shape)), order, axis=d)
            return moved if call.outputs[-1].dim() == source.dim() else np.squeeze(moved, d)
        return ids if call.outputs[-1].dim() == source.dim() else np.squeeze(ids, d)

    return call.labels.apply(label, move)


@rule(
    "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "binary_cross_entropy", "kl_div", "smooth_l1_loss",
    "binary_cross_entropy_with_logits", "cosine_embedding_loss", "huber_loss", "poisson_nll_loss", "gaussian_nll_loss",
    "soft_margin_loss", "multilabel_soft_margin_loss", "multi_margin_loss", "hinge_embedding_loss", "margin_ranking_loss",
)  # fmt: skip
def _loss(call: Call) -> Label | None:
    source, target = call.arg(0, "input"), call.arg(1, "target")
    if call.outputs[0].dim():
        label = call.label(target)
        return label if label is not None else default(call)[0]
    ids = [label.q.reshape(-1) for t in (source, target) if (label := call.label(t)) is not None]
    if not ids:
        return None
    return call.labels.make(np.full((), call.labels.table.union(np.concatenate(ids)), dtype=np.int32))


@rule("ctc_loss")
def _of_alignments(call: Call) -> Label | None:
    """From log-probabilities [frames, rows, classes] a loss for each row, or one."""
    source, label = call.arg(0, "log_probs"), call.label(call.arg(0, "log_probs"))
    rows = source.dim() == 3 and call.outputs[0].dim() == 1
    return call.labels.reduce(label, [0, 2] if rows else list(range(source.dim())), False)


@rule("bincount", "histc", "unique", "unique_consecutive", "_unique2", "histogram")
def _counts(call: Call) -> Label | None | list[Label | None]:
    label = call.label(call.arg(0, "input", "self"))
    if label is None:
        return nothing(call)
    table = call.labels.table
    union = table.mixed if table.has_padding(label.q) else table.union(label.q.reshape(-1))
    return [call.labels.make(np.full((1,) * o.dim(), union, dtype=np.int32)) for o in call.outputs]


@rule("grad")
def _gradient(call: Call) -> list[Label | None]:
    """The gradient of something belongs to the tokens which that has, of all of them where it has none (a weight)."""
    of, by = (tensors_in(call.arg(index, name)) for index, name in ((0, "outputs"), (1, "inputs")))
    if len(by) != len(call.outputs):  # one that is not used has none
        raise UnknownMovementError("not every input has a gradient")
    ids = [label.q.reshape(-1) for value in of if (label := call.label(value)) is not None]
    if not ids:
        return nothing(call)
    table, held = call.labels.table, np.concatenate(ids)
    union = table.mixed if table.has_padding(held) else table.union(held)
    labels: list[Label | None] = []
    for value, gradient in zip(by, call.outputs, strict=True):
        label = call.label(value)
        whole = np.full((1,) * gradient.dim(), union, dtype=np.int32)
        labels.append(call.labels.make(whole) if label is None else label)
    return labels
