"""How each torch function moves tokens: from the labels of its inputs to the label of its output.

Four families cover what models do. *Movements* (view, transpose, getitem, cat) are replayed on the
coordinate ids themselves. *Elementwise* functions, the default where the output has the broadcast
shape of the inputs, merge labels. *Reductions* make sets of tokens. *Contractions* (linear, matmul,
einsum) are an elementwise product followed by a reduction. A function that fits none of them is
asked directly, by running it on meta tensors whose token dimensions have other sizes; if that
fails its values count as not compared, with the reason.

A new rule is a function under `@rule("its_name")` in the file of its family. It takes a `Call` and returns the label of
the output, a list where the outputs have different ones, or None where no token is in them; an operator of a library
goes into `library` by its full name. A line for it in a table of `tests/capture/test_rules.py` (`OTHERS` for movements,
`WRITES`, `TOKENWISE`, `POOLED`, `CAUSAL`) has its answer checked against what really depends on which token.
"""

from forkpoint.capture.rules import (
    contractions,
    creation,
    indexing,
    library,
    movements,
    recurrent,
    reductions,
    windows,
    writes,
)
from forkpoint.capture.rules.call import Call, UnknownMovementError, tensors_in
from forkpoint.capture.rules.defaults import by_shape, propagate
from forkpoint.capture.rules.indexing import take
from forkpoint.capture.rules.opaque import through_module
from forkpoint.capture.rules.registry import RULES, rule

FAMILIES = (creation, movements, indexing, writes, reductions, contractions, windows, recurrent, library)
"""Each module puts its rules in the table as it is imported."""

__all__ = [
    "FAMILIES",
    "RULES",
    "Call",
    "UnknownMovementError",
    "by_shape",
    "propagate",
    "rule",
    "take",
    "tensors_in",
    "through_module",
]
