# ruff: noqa: ANN001, ANN201, ANN202, N803
# pyright: reportInvalidTypeForm=false, reportMissingParameterType=false, reportMissingImports=false
"""What runs on the GPU, in Triton's Python: matrix products and attention, each with one order of its sums.

Names in capitals are known when a kernel is compiled, all others when it runs. No order depends on the number of rows, of
queries or of keys: `gpu` says what the arguments are.
"""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # doctest reads this module where there is no Triton; `gpu` never does
    triton: Any = None
    tl: Any = None

_jit: Any = triton.jit if triton else lambda function: function
_jit_for_any_rows: Any = triton.jit(do_not_specialize=["rows"]) if triton else lambda function: function


@_jit_for_any_rows
def product(
    x, weight, bias, out, rows, columns, inner, x_row, weight_inner, weight_column, out_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, BIAS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`x @ weight + bias`, over `inner` from the first to the last."""
    index = tl.program_id(0)
    row_blocks = tl.cdiv(rows, ROWS)
    column_blocks = tl.cdiv(columns, COLUMNS)
    group = index // (GROUP * column_blocks)
    in_group = min(row_blocks - group * GROUP, GROUP)
    row_block = group * GROUP + (index % (GROUP * column_blocks)) % in_group
    column_block = (index % (GROUP * column_blocks)) // in_group
    row = row_block * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    step = tl.arange(0, INNER)
    # What lies outside is read from the first row and column, and never written.
    x_at = x + (row % rows).to(tl.int64)[:, None] * x_row + step[None, :]
    weight_at = (
        weight + step[:, None] * weight_inner + (column % columns).to(tl.int64)[None, :] * weight_column
    )
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, inner, INNER):
        left = tl.load(x_at, mask=step[None, :] < inner - start, other=0.0)
        right = tl.load(weight_at, mask=step[:, None] < inner - start, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
        x_at += INNER
        weight_at += INNER * weight_inner
    if BIAS:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    out_at = out + row.to(tl.int64)[:, None] * out_row + column[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


@_jit
def _tanh(x):
    """The hyperbolic tangent of float32, near zero by a polynomial (Cephes' `tanhf`), as exact there as elsewhere."""
    square = x * x
    near = -5.70498872745e-3 * square + 2.06390887954e-2
    near = near * square - 5.37397155531e-2
    near = near * square + 1.33314422036e-1
    near = near * square - 3.33332819422e-1
    far = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return tl.where(tl.abs(x) < 0.625, near * square * x + x, far)


@_jit
def _weight(difference):
    """`exp` of a difference of scores: of a small one the error is small, as it would not be of each score by itself."""
    return tl.exp2(difference * 1.4426950408889634)


@_jit
def _seen_block(
    query, key, value, key_row, value_row, largest, total, result, column, scale, softcap,
    SIZE: tl.constexpr, VALUES: tl.constexpr, SIZE_BLOCK: tl.constexpr, VALUES_BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """The largest score, the sum of the weights and the weighted sum, with a block of keys that every query sees."""
    size = tl.arange(0, SIZE_BLOCK)
    values = tl.arange(0, VALUES_BLOCK)
    k_at = key + column.to(tl.int64)[None, :] * key_row + size[:, None]
    v_at = value + column.to(tl.int64)[:, None] * value_row + values[None, :]
    k = tl.load(k_at) if SIZE == SIZE_BLOCK else tl.load(k_at, mask=(size < SIZE)[:, None], other=0.0)
    v = tl.load(v_at) if VALUES == VALUES_BLOCK else tl.load(v_at, mask=(values < VALUES)[None, :], other=0.0)
    score = tl.dot(query, k, input_precision="ieee") * scale
    if SOFTCAP:
        score = softcap * _tanh(score / softcap)
    larger = tl.maximum(largest, tl.max(score, 1))
    weights = _weight(score - larger[:, None])
    before = _weight(largest - larger)
    total = total * before + tl.sum(weights, 1)
    result = result * before[:, None]
    result = tl.dot(weights.to(v.dtype), v, result, input_precision="ieee")
    return larger, total, result


@_jit
def _chunk(
    query, key, value, key_row, value_row, bias, bias_row, seen, seen_row, query_rows, there, first, last, seen_by_all,
    key_position, keys, position, window, scale, softcap,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr, SIZE_BLOCK: tl.constexpr,
    VALUES_BLOCK: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
    SEEN: tl.constexpr,
):  # fmt: skip
    """The largest score, the sum of the weights and the weighted sum of the values, over keys `first` to `last`.

    Every query sees the keys up to `seen_by_all`: for whole blocks of these the same sums are made without asking.
    """
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    result = tl.zeros((ROWS, VALUES_BLOCK), dtype=tl.float32)
    size = tl.arange(0, SIZE_BLOCK)
    values = tl.arange(0, VALUES_BLOCK)
    if not (BIAS or SEEN or WINDOW):
        whole = first
        if first >= key_position:
            whole = first + tl.maximum(tl.minimum(last, seen_by_all) - first, 0) // KEYS * KEYS
        for start in range(first, whole, KEYS):
            column = start + tl.arange(0, KEYS) - key_position
            largest, total, result = _seen_block(
                query, key, value, key_row, value_row, largest, total, result, column, scale, softcap,
                SIZE, VALUES, SIZE_BLOCK, VALUES_BLOCK, SOFTCAP,
            )  # fmt: skip
        first = whole
    for start in range(first, last, KEYS):
        at = start + tl.arange(0, KEYS)
        column = at - key_position
        inside = (column >= 0) & (column < keys)
        k = tl.load(
            key + column.to(tl.int64)[None, :] * key_row + size[:, None],
            mask=inside[None, :] & (size < SIZE)[:, None],
            other=0.0,
        )
        score = tl.dot(query, k, input_precision="ieee") * scale
        if SOFTCAP:
            score = softcap * _tanh(score / softcap)
        if BIAS:
            at_bias = bias + query_rows.to(tl.int64)[:, None] * bias_row + column[None, :]
            score += tl.load(at_bias, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        sees = inside[None, :] & there[:, None]
        if CAUSAL:
            sees = sees & (at[None, :] <= position[:, None])
        if WINDOW:
            sees = sees & (at[None, :] > position[:, None] - window)
        if SEEN:
            at_seen = seen + query_rows.to(tl.int64)[:, None] * seen_row + column[None, :]
            sees = sees & (tl.load(at_seen, mask=sees, other=0) != 0)
        score = tl.where(sees, score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        safe = tl.where(larger == float("-inf"), 0.0, larger)
        weights = _weight(score - safe[:, None])
        before = _weight(largest - safe)
        total = total * before + tl.sum(weights, 1)
        v = tl.load(
            value + column.to(tl.int64)[:, None] * value_row + values[None, :],
            mask=inside[:, None] & (values < VALUES)[None, :],
            other=0.0,
        )
        result = result * before[:, None]
        result = tl.dot(weights.to(v.dtype), v, result, input_precision="ieee")
        largest = larger
    return largest, total, result


@_jit
def _merged(largest, total, result, more_largest, more_total, more_result):
    """Two parts of an attention as one, in this order."""
    larger = tl.maximum(largest, more_largest)
    safe = tl.where(larger == float("-inf"), 0.0, larger)
    before = _weight(largest - safe)
    after = _weight(more_largest - safe)
    total = total * before + more_total * after
    result = result * before[:, None] + more_result * after[:, None]
    return larger, total, result


@_jit
def _finished(largest, total, result, sinks, head, SINKS: tl.constexpr):
    """The weighted mean; a sink takes weight and has no value."""
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        larger = tl.maximum(largest, sink)
        before = _weight(largest - larger)
        total = total * before + _weight(sink - larger)
        result = result * before[:, None]
    return result / tl.where(total == 0.0, 1.0, total)[:, None]


@_jit
def attention(
    query, key, value, bias, seen, sinks, out, partial, sums, sequences, blocks,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    bias_batch, bias_head, bias_row, seen_row, out_batch, out_row, out_head, heads, groups, chunks, scale, softcap, window,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr,
    SIZE_BLOCK: tl.constexpr, VALUES_BLOCK: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SEEN: tl.constexpr, SINKS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Attention of one block of queries and one head, chunk by chunk of the keys; or, split, one chunk of it.

    `sequences` has a row for each sequence: row of the batch, first query, queries, first key, keys, position of the first
    query, position of the first key. `blocks` has one for each block: sequence, first query within it.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.load(blocks + 2 * block)
    start = tl.load(blocks + 2 * block + 1)
    told = sequences + 7 * sequence
    row = tl.load(told).to(tl.int64)
    first_query, queries = tl.load(told + 1), tl.load(told + 2)
    first_key, keys = tl.load(told + 3), tl.load(told + 4)
    position, key_position = tl.load(told + 5), tl.load(told + 6)
    rows = start + tl.arange(0, ROWS)
    there = rows < queries
    size = tl.arange(0, SIZE_BLOCK)
    values = tl.arange(0, VALUES_BLOCK)
    query_at = (
        query + row * query_batch + head * query_head + (first_query + rows).to(tl.int64)[:, None] * query_row
    )
    q = tl.load(query_at + size[None, :], mask=there[:, None] & (size < SIZE)[None, :], other=0.0)
    key += row * key_batch + (head // groups) * key_head + first_key.to(tl.int64) * key_row
    value += row * value_batch + (head // groups) * value_head + first_key.to(tl.int64) * value_row
    if BIAS:
        bias += row * bias_batch + head * bias_head + first_query.to(tl.int64) * bias_row + first_key
    positions = position + rows
    begin = key_position
    if WINDOW:
        begin = tl.maximum(begin, position + start - window + 1)
    end = key_position + keys
    seen_by_all = end
    if CAUSAL:
        end = tl.minimum(end, position + start + ROWS)
        seen_by_all = tl.minimum(seen_by_all, position + start + 1)
    from_chunk, to_chunk = begin // CHUNK, tl.cdiv(end, CHUNK)
    if SPLIT:
        from_chunk = begin // CHUNK + tl.program_id(2)
        to_chunk = tl.minimum(from_chunk + 1, to_chunk)
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    result = tl.zeros((ROWS, VALUES_BLOCK), dtype=tl.float32)
    for chunk in range(from_chunk, to_chunk):
        first = tl.maximum(chunk * CHUNK, begin // KEYS * KEYS)
        last = tl.minimum((chunk + 1) * CHUNK, end)
        more_largest, more_total, more_result = _chunk(
            q, key, value, key_row, value_row, bias, bias_row, seen, seen_row, rows, there, first, last, seen_by_all,
            key_position, keys, positions, window, scale, softcap,
            ROWS, KEYS, SIZE, VALUES, SIZE_BLOCK, VALUES_BLOCK, CAUSAL, WINDOW, SOFTCAP, BIAS, SEEN,
        )  # fmt: skip
        largest, total, result = _merged(largest, total, result, more_largest, more_total, more_result)
    if SPLIT:
        place = (block * heads + head) * chunks + tl.program_id(2)
        tl.store(sums + (place * 2) * ROWS + tl.arange(0, ROWS), largest)
        tl.store(sums + (place * 2 + 1) * ROWS + tl.arange(0, ROWS), total)
        at = (
            partial
            + (place.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None] * VALUES_BLOCK
            + values[None, :]
        )
        tl.store(at, result, mask=there[:, None])
    else:
        made = _finished(largest, total, result, sinks, head, SINKS)
        out_at = (
            out + row * out_batch + head * out_head + (first_query + rows).to(tl.int64)[:, None] * out_row
        )
        tl.store(
            out_at + values[None, :],
            made.to(out.dtype.element_ty),
            mask=there[:, None] & (values < VALUES)[None, :],
        )


@_jit
def joined(
    partial, sums, sinks, out, sequences, blocks, out_batch, out_row, out_head, heads, chunks,
    ROWS: tl.constexpr, VALUES: tl.constexpr, VALUES_BLOCK: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """The chunks of a split attention as one, in order."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.load(blocks + 2 * block)
    start = tl.load(blocks + 2 * block + 1)
    told = sequences + 7 * sequence
    row = tl.load(told).to(tl.int64)
    first_query, queries = tl.load(told + 1), tl.load(told + 2)
    rows = start + tl.arange(0, ROWS)
    there = rows < queries
    values = tl.arange(0, VALUES_BLOCK)
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    result = tl.zeros((ROWS, VALUES_BLOCK), dtype=tl.float32)
    for chunk in range(chunks):
        place = (block * heads + head) * chunks + chunk
        more_largest = tl.load(sums + (place * 2) * ROWS + tl.arange(0, ROWS))
        more_total = tl.load(sums + (place * 2 + 1) * ROWS + tl.arange(0, ROWS))
        at = (
            partial
            + (place.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None] * VALUES_BLOCK
            + values[None, :]
        )
        more_result = tl.load(at, mask=there[:, None], other=0.0)
        largest, total, result = _merged(largest, total, result, more_largest, more_total, more_result)
    made = _finished(largest, total, result, sinks, head, SINKS)
    out_at = out + row * out_batch + head * out_head + (first_query + rows).to(tl.int64)[:, None] * out_row
    tl.store(
        out_at + values[None, :],
        made.to(out.dtype.element_ty),
        mask=there[:, None] & (values < VALUES)[None, :],
    )
