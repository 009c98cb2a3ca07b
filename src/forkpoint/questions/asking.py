"""What all questions have in common: their options, and how the answer comes about."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from forkpoint.comparison import compare
from forkpoint.errors import InputError
from forkpoint.questions.learning import with_labels
from forkpoint.questions.limits import tried
from forkpoint.questions.prompts import together, tokenise
from forkpoint.support.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkpoint.questions.choices import PositionIds
    from forkpoint.result import Result
    from forkpoint.runs.run import Run
    from forkpoint.support.progress import Progress


class Options(TypedDict, total=False):
    """What every question takes besides its own arguments.

    Attributes:
        position_ids: `mask` (the default) makes position ids from the mask as the architecture does in `generate`;
            `none` leaves them to the model.
        chat_template: put each prompt through the tokenizer's chat template as a user's message.
        probes: False to compare only, without looking for the cause.
        backward: whether to compare gradients, too, with the tokens that both runs have as labels; see `with_labels`.
        sources, max_memory, progress: as in `compare`.
    """

    position_ids: PositionIds
    chat_template: bool
    probes: bool
    sources: bool
    backward: bool
    max_memory: int | str | None
    progress: Progress


@dataclass(frozen=True)
class Question:
    """Two runs that should give the same, and what a report should say besides.

    Attributes:
        a, b: the runs.
        notes: choices that were made for the reader, one sentence each.
    """

    a: Run
    b: Run
    notes: tuple[str, ...] = ()

    def answer(self, tokenizer: Any, options: Options) -> Result:
        """Compare the runs."""
        backward = options.get("backward", False)
        a, b = with_labels(self.a, self.b) if backward else (self.a, self.b)
        result = compare(
            a,
            b,
            backward=backward,
            probes=options.get("probes", True),
            sources=options.get("sources", False),
            tokenizer=tokenizer,
            max_memory=options.get("max_memory"),
            progress=options.get("progress", SILENT),
        )
        return replace(result, notes=self.notes + result.notes)


def rows_of(model: Any, tokenizer: Any, prompts: str | Sequence[str], options: Options) -> list[list[int]]:
    """Token ids of each prompt; see `tokenise`."""
    return tokenise(model, tokenizer, prompts, chat_template=options.get("chat_template", False))


def two_models(
    model: Any, other: Any, tokenizer: Any, prompts: str | Sequence[str], names: tuple[str, str], options: Options,
    notes: tuple[str, ...] = (),
) -> Result:  # fmt: skip
    """Compare the same prompts, `[prompts, longest]`, through two models.

    Raises:
        InputError: the second model can't run: it was made here, of another dtype, kind or device.
    """
    rows = rows_of(model, tokenizer, prompts, options)
    a, b = (
        together(one, tokenizer, rows, position_ids=positions_of(options), name=name)
        for one, name in zip((model, other), names, strict=True)
    )
    tried(b, f"a {type(other).__name__} {names[1]}, which can't run here", "a model that can be changed so")
    return Question(a, b, notes).answer(tokenizer, options)


def positions_of(options: Options) -> PositionIds:
    """The option `position_ids`.

    Raises:
        InputError: it is neither `mask` nor `none`.
    """
    chosen = options.get("position_ids", "mask")
    if chosen not in ("mask", "none"):
        raise InputError(f"position_ids {chosen!r}", "mask or none")
    return chosen


def one_of(what: str, given: str, choices: Sequence[str]) -> str:
    """A choice by name.

    Raises:
        InputError: it is none of them.
    """
    if given not in choices:
        raise InputError(f"{what} {given!r}", "one of " + ", ".join(choices))
    return given


def copied(model: Any, what: str) -> Any:
    """A second model with the same weights, that can be changed.

    Raises:
        InputError: it can't be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"a {type(model).__name__} that can't be copied ({type(error).__name__}: {error}), which {what} needs",
            "a model that copy.deepcopy copies",
        ) from error
