"""A model as it is, or compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor

from forkpoint.explain.drift import layer_paths
from forkpoint.match.distance import compare
from forkpoint.questions.asking import Options, Question, copied, one_of, positions_of, rows_of
from forkpoint.questions.choices import Backend
from forkpoint.questions.limits import tried
from forkpoint.questions.prompts import together
from forkpoint.runs.returned import results_of
from forkpoint.runs.run import Run
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.result import Result


MAX_GRAPHS = 1 << 14
"""Graphs of one piece of code: layers that are alike need one each where they read their own number, and Dynamo stops at 8."""


@says_call
def compiled(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    backend: Backend = "inductor",
    **options: Unpack[Options],
) -> Result:
    """Compare a model with itself, its layers compiled.

        fp.compiled(model, tokenizer, "I've got a lovely bunch of coconuts", backend="aot_eager")

    Both runs are one forward call, `[prompts, longest]`. Run B's model is a copy, of which each layer is compiled by
    itself (the whole model where it has no layers). Nothing can be seen inside a compiled module: its inputs and
    outputs are compared, and the report says so. What Dynamo can't capture of a module runs as it is. A note tells which of the backends up to the one that was asked for is
    the first to change a bit.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        backend: `eager` (Dynamo's capture alone), `aot_eager` (its functionalised graph), or `inductor`.
        options: see `Options`.

    Raises:
        InputError: another backend, or one that can't compile here.
    """
    one_of("backend", backend, get_args(Backend))
    rows = rows_of(model, tokenizer, prompts, options)
    a = together(model, tokenizer, rows, position_ids=positions_of(options), name="as it is")
    plain = _outputs(a.execute())
    said: list[str] = []
    b, count = a, 0
    for name in get_args(Backend)[: get_args(Backend).index(backend) + 1]:
        other, count = _compile(model, name)
        b = Run(other, list(a.calls), layout=a.layout, call=_call, name=f"compiled by {name}")
        made = tried(b, f"backend {name}, which can't compile here", "another backend, or what it needs")
        apart = _apart(plain, _outputs(made))
        said.append(f"by {name} no bit changes" if apart == 0 else f"by {name} results change by {apart:.2g}")
    notes = (
        f"{count} module{'s' * (count > 1)} handed to torch.compile, each by itself, and compared by inputs and outputs; "
        + ", ".join(said)
        + ".",
    )
    return Question(a, b, notes).answer(tokenizer, options)


def _call(model: Any, inputs: dict[str, Any]) -> Any:
    """Call a compiled model; it fails rather than run a layer uncompiled because others took all graphs of its code."""
    from torch._dynamo import config

    with config.patch(
        recompile_limit=MAX_GRAPHS, accumulated_recompile_limit=MAX_GRAPHS, fail_on_recompile_limit_hit=True
    ):
        return model(**inputs)


def _compile(model: Any, backend: str) -> tuple[Any, int]:
    """A copy whose layers are compiled by a backend, and how many there are."""
    other = copied(model, "a compiled model")
    modules = [other.get_submodule(path) for path in layer_paths(other)] or [other]
    for module in modules:
        module.compile(backend=backend)
    return other, len(modules)


def _outputs(made: list[Any]) -> list[Tensor]:
    return [value for output in made for value in results_of(output).values()]


def _apart(plain: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of two lists of results, infinite where one alone is not finite; 0 only if all are the same."""
    largest = 0.0
    for a, b in zip(plain, other, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.numel():
            largest = max(largest, float(compare(a, b).apart.max()))
    return largest
