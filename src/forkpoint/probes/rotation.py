"""The rotation probe: is what changes with the length of a row a table of angles by which queries and keys are turned?

A cosine and a sine prove nothing: an encoding that is added has both, and so has a window. What is
looked for is what a rotation *does*: two tables whose squares add up to one number everywhere (or one
of complex numbers of one size), by position; content multiplied by both; and what comes of it as long
as it was, though not the same. It ends in a product of what was turned with what was turned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor

from forkpoint.errors import reraise_out_of_memory
from forkpoint.probes.bench import Bench
from forkpoint.probes.length import changed, shorter, with_columns
from forkpoint.probes.watchers import Snapshot
from forkpoint.result import ProbeResult

_EQUAL = 1e-9
"""Relative to the largest value: up to which two are one."""
_TURNED = 1e-6
"""Relative to the largest value: from which something was turned at all."""
_ON_LINE = 1e-6
"""Relative to the largest value: how far positions, which may have been made in float32, lie from a line."""
_STEPS, _FOLLOWING = 3, 24
"""How far behind a product what is turned is looked for, and how many values after it for what comes of it."""


@dataclass(frozen=True)
class Product:
    """Content multiplied by a value of the layout: their events, and the product's."""

    event: int
    content: int
    table: int


def rotary_by_length(a: Bench, b: Bench, shown: ProbeResult) -> ProbeResult | None:
    """Show that the origin makes a rotary table, and that this changes at the same positions in a longer row.

    Args:
        a, b: the runs at the origin.
        shown: that the origin changes with the length of a row.
    """
    short, columns = shorter(a, b), max(a.columns_so_far, b.columns_so_far)
    table = rotary_table(short)
    if table is None:  # short rows may do without: the code decides by the length
        longer = b if short is a else a
        table = _same_op(longer, rotary_table(longer), short)
    if table is None:
        return None
    if _moves_positions(short, b if short is a else a, table):
        return None
    here, before = short.at(table), short.store.snapshots[table].value
    after = with_columns(here, columns, real=True)
    by = 0.0 if after is None else changed(before, after.value)
    if not by:
        return None
    text = (
        f"{shown.text}; it makes a table of angles by position, which turns content without making it longer before "
        f"queries meet keys, and which changes at the same positions by {by:.2g}{_between(here, before, columns)}"
    )
    return ProbeResult("coupling", "coupled", by, text)


def _moves_positions(short: Bench, longer: Bench, table: int) -> bool:
    """Whether it is the positions, or all angles by one factor, that depend on the length: no table is chosen then."""
    snapshots = short.store.snapshots
    for event in sorted(e for e in short.store.reached([short.root]) if e <= table and e in snapshots):
        other = _same_op(short, event, longer)
        if other is not None and _by_one_factor(snapshots[event].value, longer.store.snapshots[other].value):
            return True
    return False


def _by_one_factor(one: Tensor, other: Tensor) -> bool:
    """Whether values at equal distances by position become others by one factor and one number for all."""
    if one.dim() != other.dim() or one.dtype == torch.bool or one.is_complex():
        return False
    for d in range(one.dim()):
        size = min(one.shape[d], other.shape[d])
        one, other = one.narrow(d, 0, size), other.narrow(d, 0, size)
    x, y = one.double(), other.double()
    if not any(_at_equal_distances(x, d) for d in range(x.dim())) or not changed(one, other):
        return False
    x, y = x - x.mean(), y - y.mean()
    factor = (x * y).sum() / (x * x).sum()
    return bool((factor * x - y).abs().max() <= _ON_LINE * y.abs().max())


def _at_equal_distances(value: Tensor, dim: int) -> bool:
    if value.shape[dim] < 3:  # two are always on a line
        return False
    steps = value.diff(dim=dim)
    apart = (steps - steps.narrow(dim, 0, 1)).abs().max()
    return bool(steps.any() and apart <= _ON_LINE * value.abs().max())


def _same_op(one: Bench, event: int | None, other: Bench) -> int | None:
    """The event of another run, in the call of its origin, at the op of this one's event."""
    if event is None:
        return None
    key = one.store.ops[event][0].key
    of_call = (
        e
        for e, (op, record) in sorted(other.store.ops.items())
        if op.key == key and record.call == other.call
    )
    return next((e for e in of_call if e in other.store.snapshots), None)


def _between(table: Bench, before: Tensor, columns: int) -> str:
    """Whether rows of a length between the two share a table with one of them."""
    middle = (table.columns_so_far + columns) // 2
    middle_value = with_columns(table, middle, real=True) if middle > table.columns_so_far else None
    if middle_value is None:
        return ""
    share = f"{table.columns_so_far} and {middle}" if not changed(before, middle_value.value) else None
    return (
        f"; rows of {share} columns share one table"
        if share
        else f"; with rows of {middle} columns it is another one"
    )


def rotary_table(bench: Bench) -> int | None:
    """The event of a table, made from the origin, by which content is turned before queries meet keys; None if none is."""
    turned: dict[int, int] = {}
    for one, other in _turning(list(_products(bench))):
        for event in _turned(bench, one, other):
            turned[event] = one.table
    reached = bench.store.reached(turned)
    return next((turned[event] for event in sorted(turned) if _meets(bench, event, reached)), None)


def _products(bench: Bench) -> Iterator[tuple[Product, Tensor]]:
    """Where content is multiplied by what the origin makes and no content enters, with a row for each position."""
    store, snapshots = bench.store, bench.store.snapshots
    op = store.ops[bench.root][0]  # queries and keys may be turned by two passes of one line
    reached = store.reached([event for event, (other, _) in store.ops.items() if other.key == op.key])
    for event in sorted(reached & bench.content):
        sources = [s for s in store.sources.get(event, ()) if s in snapshots]
        tables = [s for s in sources if s in reached and bench.of_layout(s) and not snapshots[s].op.is_input]
        contents = [s for s in sources if s in bench.content and s not in reached]
        if event in snapshots and len(tables) == len(contents) == 1:
            table, content = snapshots[tables[0]].value, snapshots[contents[0]]
            if _by_position(content, table) and _same(snapshots[event].value, content.value, table):
                yield Product(event, contents[0], tables[0]), table


def _by_position(content: Snapshot, table: Tensor) -> bool:
    """Whether a table, multiplied with content, has other numbers for other tokens of a row."""
    label, value = content.label, content.value
    if label is None or table.dim() > value.dim():
        return False
    aligned = table.reshape(*[1] * (value.dim() - table.dim()), *table.shape)
    along = [d for d, size in enumerate(label.q.shape) if size > 1 and aligned.shape[d] > 1]
    return any(bool((aligned != aligned.narrow(d, 0, 1)).any()) for d in along)


def _same(product: Tensor, content: Tensor, table: Tensor) -> bool:
    try:
        expected = content * table
    except RuntimeError as error:  # sizes that do not broadcast: no product of the two
        reraise_out_of_memory(error)
        return False
    return product.shape == expected.shape and bool(
        torch.isclose(product, expected, rtol=_EQUAL, atol=0.0).all()
    )


def _turning(products: list[tuple[Product, Tensor]]) -> Iterator[tuple[Product, Product]]:
    """Products with two tables whose squares add up to one number everywhere, or with one of complex numbers of one size."""
    for product, table in products:
        if table.is_complex() and _constant(table.abs()):
            yield product, product
    real = [(product, table) for product, table in products if not table.is_complex()]
    for (one, cosine), (other, sine) in combinations(real, 2):
        if cosine.shape == sine.shape and _constant(cosine.double() ** 2 + sine.double() ** 2):
            yield one, other


def _constant(values: Tensor) -> bool:
    return (
        bool(values.numel())
        and bool(values.max() - values.min() <= _EQUAL * values.abs().max())
        and bool(values.max())
    )


def _turned(bench: Bench, one: Product, other: Product) -> Iterator[int]:
    """What is made of both products and is as long, for every token, as content that went into them was."""
    store = bench.store
    both = store.reached([one.event]) & store.reached([other.event])
    before = {one.content, other.content}
    for _ in range(_STEPS):
        before |= {s for event in before for s in store.sources.get(event, ()) if s in bench.content}
    origins = [
        store.snapshots[event].value for event in sorted(before, reverse=True) if event in store.snapshots
    ]
    for event in islice(sorted(both), _FOLLOWING):
        if event in store.snapshots and any(
            _as_long(store.snapshots[event].value, value) for value in origins
        ):
            yield event
            return


def _as_long(after: Tensor, before: Tensor) -> bool:
    """Whether vectors were turned: each keeps its length but for one factor, and not all stay what they were."""
    if (
        after.shape != before.shape
        or not before.dim()
        or not before.numel()
        or before.is_complex() != after.is_complex()
    ):
        return False
    if not (before.is_floating_point() or before.is_complex()):
        return False
    was, now = (v.abs() if v.is_complex() else v.double().norm(dim=-1) for v in (before, after))
    there = was > 0  # padding may be nothing
    if bool(now[~there].any()) or not _constant(now[there] / was[there]):
        return False
    factor = (now[there] / was[there]).mean()
    return bool((after - factor * before).abs().max() > _TURNED * before.abs().max())


def _meets(bench: Bench, event: int, reached: set[int]) -> bool:
    """Whether what was turned goes into a product of queries and keys, both of which were."""
    store = bench.store
    for following in sorted(store.reached([event])):
        snapshot = store.snapshots.get(following)
        scores = snapshot is not None and snapshot.label is not None and snapshot.label.k is not None
        if (
            scores
            or "attention" in store.ops[following][0].function
            or "attn" in store.ops[following][0].function
        ):
            return len([s for s in store.sources.get(following, ())[:2] if s in reached]) == 2
    return False
