"""How a float64 rewriting says that it does not cover a call, and which errors are nobody's refusal."""

from __future__ import annotations

from forkpoint.errors import reraise_out_of_memory


class CannotRewriteError(Exception):
    """This call of a rewritten operation has a form that its rewriting doesn't cover."""


def reraise_others(error: Exception) -> None:
    """Raise an error again that is none of an operator: memory is short, or a checkpoint has recomputed all that it needs."""
    reraise_out_of_memory(error)
    if type(error).__module__ == "torch.utils.checkpoint":
        raise error
