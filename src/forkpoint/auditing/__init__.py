"""Is something layout-invariant? An audit looks for a layout that refutes it: for a function, a module, a model, or an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from forkpoint.auditing.functions import CuttableFunction, audit_function
from forkpoint.auditing.layouts import audit_engine, audit_model
from forkpoint.auditing.record import Accuracy, Audit, Break
from forkpoint.auditing.sizes import Deadline
from forkpoint.errors import InputError

__all__ = ["Accuracy", "Audit", "Break", "audit"]


def audit(
    subject: Callable[..., Any],
    *arguments: Any,
    cut: Mapping[int, int] | None = None,
    out: int | None = None,
    sizes: Sequence[int] | None = None,
    reference: Callable[..., Any] | None = None,
    prompts: Sequence[Any] | None = None,
    longest: int = 130,
    seconds: float = 300.0,
    seed: int = 0,
) -> Audit:
    """Look for layouts in which the same rows or tokens get other bits, at the sizes where kernels change.

    - A function or a module with `arguments`: it is called on fewer and fewer of their rows.
    - A language model without: rows of random tokens alone, padded on either side, in batches, and from a cache.
    - Anything with `prompts`: `subject(prompts)` returns a result for each; alone, in batches, in another order, again.

    Args:
        subject: what is audited.
        arguments: its positional arguments, for as many rows as are to be tried at most.
        cut: by the place of an argument, the dimension along which it is cut; by default `{0: 0}`, the rows of the first.
        out: the dimension of the result that follows; by default that of the first argument that is cut.
        sizes: numbers of rows to try; by default those at which kernels change.
        reference: what is as exact as it should be, called on the same arguments.
        prompts: what an engine is given.
        longest: most tokens of a model's row.
        seconds: the time after which nothing more is tried.
        seed: of a model's random tokens.

    Raises:
        InputError: what there is to cut has no rows, nothing that is returned can be compared, or a model is none of language.

    >>> weight = torch.randn(8, 16)
    >>> audit(lambda x: x * 2, torch.randn(50, 16)).holds
    True
    """
    deadline = Deadline(seconds)
    name = getattr(subject, "__name__", type(subject).__name__)
    if prompts is not None:
        return audit_engine(name, subject, prompts, deadline)
    if arguments:
        places = {0: 0} if cut is None else dict(cut)
        follows = next(iter(places.values())) if out is None else out
        function = CuttableFunction(subject, arguments, places, follows)
        return audit_function(name, function, reference=reference, sizes=sizes, deadline=deadline)
    if not isinstance(subject, torch.nn.Module) or not hasattr(subject, "get_input_embeddings"):
        raise InputError(f"{name} without arguments", "a language model, or arguments, or prompts")
    return audit_model(name, subject, longest=longest, deadline=deadline, seed=seed)
