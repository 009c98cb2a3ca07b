"""What a function that refuses float64 is given instead, and the list of those that did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from forkpoint.errors import reraise_out_of_memory
from forkpoint.promotion import kinds, operators
from forkpoint.promotion.arguments import Args, Arguments, Kwargs, hidden, widened
from forkpoint.promotion.operators import ArgumentKey
from forkpoint.promotion.refusals import Refusal, refusal
from forkpoint.promotion.values import Values


class Fallback:
    """Calls in native precision where float64 was refused.

    Args:
        values: what tensors hold in float64.
        arguments: reads arguments of `values`.
        refused: gets an entry for each place.
    """

    def __init__(self, values: Values, arguments: Arguments, refused: list[Refusal]) -> None:
        self.values = values
        self.arguments = arguments
        self.refused = refused

    def call(
        self,
        func: Callable[..., Any],
        args: Args,
        kwargs: Kwargs,
        error: Exception,
        written: frozenset[ArgumentKey] = frozenset(),
    ) -> Any:
        """The call in the dtype that the model would have used, since float64 was refused.

        If that fails too, the call is at fault and not the dtype: the model gets the first error.
        """
        with hidden():
            dtypes = operators.native_dtypes((args, kwargs), self.values.native)
        for dtype in dtypes:
            with hidden():
                narrow_args, narrow_kwargs = (
                    self.arguments.narrow(args, dtype),
                    self.arguments.narrow(kwargs, dtype),
                )
            try:
                result = func(*narrow_args, **narrow_kwargs)
            except Exception as other:  # noqa: BLE001 - the next dtype may do, and the first error is kept
                reraise_out_of_memory(other)
                continue
            self.note(func, error, dtype)
            with hidden(), torch.no_grad():
                for place in written:
                    before, after = (
                        (args[place], narrow_args[place])
                        if isinstance(place, int)
                        else (kwargs[place], narrow_kwargs[place])
                    )
                    if isinstance(before, torch.Tensor) and after is not before:
                        self.values.writable(before).copy_(after)
            return widened(result)
        raise error

    def note(self, func: Callable[..., Any], reason: Exception | str, dtype: torch.dtype | None) -> None:
        """Say once for each place that a call was not done in float64, and in which dtype it was."""
        entry = refusal(kinds.name_of(func), reason, dtype)
        if entry not in self.refused:
            self.refused.append(entry)
