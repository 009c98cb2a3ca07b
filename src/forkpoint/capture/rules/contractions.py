"""Contractions: an elementwise product, and then a sum over what both operands share."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from forkpoint.capture.coordinates import Ids
from forkpoint.capture.labels import Label
from forkpoint.capture.rules.call import (
    Call,
    UnknownMovementError,
)
from forkpoint.capture.rules.registry import rule


@rule("linear")
def _linear(call: Call) -> Label | None:
    source = call.arg(0, "input")
    label = call.label(source)
    if label is None:
        weight = call.label(call.arg(1, "weight"))
        if weight is None:
            return None
        return _product(call, source, call.arg(1, "weight").mT)
    return call.labels.reduce(label, [source.dim() - 1], keepdim=True)


@rule("embedding")
def _embedding(call: Call) -> Label | None:
    first, second = call.arg(0, "input"), call.arg(1, "weight")
    indices = second if first.is_floating_point() else first
    return call.labels.apply(call.label(indices), lambda ids: ids[..., None])


@rule("one_hot")
def _one_hot(call: Call) -> Label | None:
    return call.labels.apply(call.label(call.arg(0, "input", "self")), lambda ids: ids[..., None])


@rule("matmul", "bmm", "mm", "mv", "dot")
def _matmul(call: Call) -> Label | None:
    return _product(call, call.arg(0, "input", "self"), call.arg(1, "other", "mat2", "vec", "tensor"))


@rule("rmatmul")
def _rmatmul(call: Call) -> Label | None:
    return _product(call, call.args[1], call.args[0])


@rule("linalg_solve_triangular", "triangular_solve")
def _solved(call: Call) -> list[Label | None]:
    """X of A X = B, A triangular over the tokens of a chunk: row by row that of B, of which it is made."""
    right = call.label(call.arg(1, "B")) if call.name.startswith("linalg") else call.label(call.args[0])
    return [right if index == 0 else None for index, _ in enumerate(call.outputs)]


@rule("addmm", "addbmm", "baddbmm", "addmv", "baddbmm_", "addmm_")
def _addmm(call: Call) -> Label | None:
    product = _product(call, call.arg(1, "batch1", "mat1", "mat"), call.arg(2, "batch2", "mat2", "vec"))
    if call.name == "addbmm":
        raise UnknownMovementError("addbmm sums over the batch")
    return call.labels.merge([product, call.label(call.arg(0, "input", "self"))], call.outputs[0].dim())


def _product(call: Call, x: Tensor, y: Tensor) -> Label | None:
    """X [..., n, m] @ y [..., m, p]: elementwise over [..., n, m, p], then summed over m."""
    if call.label(x) is None and call.label(y) is None:
        return None
    lx, ly = call.label(x), call.label(y)
    if x.dim() == 1:
        lx = call.labels.apply(lx, lambda ids: ids[None, :])
    if y.dim() == 1:
        ly = call.labels.apply(ly, lambda ids: ids[:, None])
    has_keys = lx is not None and lx.k is not None
    lx = call.labels.apply(lx, lambda ids: ids[..., :, :, None])
    ly = call.labels.apply(ly, lambda ids: ids[..., None, :, :])
    ndim = max(x.dim(), y.dim(), 2) + 1
    table = _query_key_table(call, lx, ly, ndim)
    merged = table or call.labels.merge([lx, ly], ndim)
    merged = call.labels.reduce(merged, [ndim - 2], keepdim=False)
    if merged is not None and has_keys and merged.k is not None:
        merged = call.labels.make(merged.q)  # weights @ values: the keys are summed over
    elif (
        merged is not None
        and lx is not None
        and ly is not None
        and merged.k is None
        and _one_by_one(x, y)
        and _scores(call, lx, ly)
    ):
        merged = _met_once(call, merged, lx, ly)
    if merged is not None and x.dim() == 1:
        merged = call.labels.apply(merged, lambda ids: np.squeeze(ids, -2))
    if merged is not None and y.dim() == 1:
        merged = call.labels.apply(merged, lambda ids: np.squeeze(ids, -1))
    return merged


def _met_once(call: Call, merged: Label, x: Label, y: Label) -> Label | None:
    """The label of the score of a single query and its own, single key: of one token, or of a text and an image."""
    images = call.labels.table.are_images
    if images(x.q) == images(y.q):
        return call.labels.make(merged.q, merged.q)
    return call.labels.make(np.squeeze(x.q, -2), np.squeeze(y.q, -2))


def _query_key_table(call: Call, x: Label | None, y: Label | None, ndim: int) -> Label | None:
    """The label of q @ k.T: rows of one operand's tokens meet columns of the other's, none being summed over."""
    if x is None or y is None or x.k is not None or y.k is not None or np.array_equal(x.q, y.q):
        return None
    table = call.labels.table
    if not (table.is_slot(x.q).any() and table.is_slot(y.q).any()) or x.q.shape[-2] > 1 or y.q.shape[-2] > 1:
        return None
    if x.q.shape[-3] == 1 and y.q.shape[-1] == 1:
        return None  # one token a row on both sides: a state and the token that reads it
    q, k = (ids.reshape((1,) * (ndim - ids.ndim) + ids.shape) for ids in (x.q, y.q))
    return call.labels.make(q, k)


def _one_by_one(x: Tensor, y: Tensor) -> bool:
    """Whether x @ y has one row and one column; the rows of a state that one token reads are its features."""
    return (x.dim() == 1 or x.shape[-2] == 1) and (y.dim() == 1 or y.shape[-1] == 1)


def _scores(call: Call, x: Label, y: Label) -> bool:
    table = call.labels.table
    return (
        x.k is None
        and y.k is None
        and len(np.unique(x.q)) <= table.rows
        and bool(table.is_slot(x.q).all() and table.is_slot(y.q).all())
        and x.q.shape[-2:] == (1, 1)
        and y.q.shape[-3] == y.q.shape[-2] == 1
        and x.q.shape[-3] == y.q.shape[-1] == 1
    )


@rule("einsum")
def _einsum(call: Call) -> Label | None:
    equation, operands = call.args[0], list(call.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or "." in equation:
        raise UnknownMovementError("an einsum with an ellipsis")
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = [c for c in left if c != ","]
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    summed = sorted(set("".join(terms)) - set(right))
    axes = [*right, *summed]
    labels: list[Label | None] = []
    for term, operand in zip(terms, operands, strict=True):
        if len(set(term)) != len(term):
            raise UnknownMovementError("an einsum with a diagonal")
        order = [term.index(c) for c in axes if c in term]
        shape = [c in term for c in axes]
        labels.append(call.labels.apply(call.label(operand), lambda ids, o=order, s=shape: _place(ids, o, s)))
    merged = call.labels.merge(labels, len(axes))
    return call.labels.reduce(merged, list(range(len(right), len(axes))), keepdim=False)


def _place(ids: Ids, order: list[int], present: list[bool]) -> Ids:
    sizes = iter(np.transpose(ids, order).shape)
    return np.transpose(ids, order).reshape([next(sizes) if here else 1 for here in present])


@rule("scaled_dot_product_attention", "flex_attention", "_scaled_dot_product_attention_math")
def _attention(call: Call) -> Label | None:
    query = call.arg(0, "query")
    label = call.label(query)
    if label is None:
        return None
    return call.labels.make(label.q if label.q.shape[-1] == 1 else label.q[..., :1])


@rule("_grouped_mm", "grouped_mm", "aten._grouped_mm")
def _grouped_mm(call: Call) -> Label | None:
    first = call.args[0]
    return call.labels.reduce(call.label(first), [first.dim() - 1], keepdim=True)
