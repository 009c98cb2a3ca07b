"""An op of two joined traces as a report lists it."""

from __future__ import annotations

from forkpoint.match import Joined
from forkpoint.result import OpRow


def op_row(row: Joined) -> OpRow:
    """What a report lists of an op."""
    op, a, b = row.op, row.first_a, row.first_b
    return OpRow(
        op=op.name, module=op.module, function=op.function,
        variable=None if op.is_boundary else op.site.variable,
        source="" if op.is_boundary else op.site.short, code="" if op.is_boundary else op.site.code,
        output=op.output, shape_a=a.shape if a else None, shape_b=b.shape if b else None,
        dtype_a=a.dtype if a else None, dtype_b=b.dtype if b else None, status=row.status, floating=row.floating,
        compared=row.compared, differing=row.differing, reason=row.reason, passes=row.passes,
    )  # fmt: skip
