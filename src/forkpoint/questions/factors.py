"""Padded against unpadded under one setting after the other: which of them matters?"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from forkpoint.errors import ForkpointError, InputError
from forkpoint.models.loading import DTYPES, parse_device
from forkpoint.questions.answers import FactorRow, Factors
from forkpoint.questions.asking import Options, one_of
from forkpoint.questions.attention import BACKENDS, implementation_of, using
from forkpoint.questions.batch import batch
from forkpoint.questions.cache import cache
from forkpoint.questions.compiled import compiled
from forkpoint.questions.device import moved_to
from forkpoint.questions.dtype import cast_to, dtype_of
from forkpoint.questions.padding import padding
from forkpoint.questions.prompts import device_of
from forkpoint.questions.quantize import is_quantized, quantized
from forkpoint.runs.modules import innermost
from forkpoint.support.called import says_call
from forkpoint.support.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Unpack

    from forkpoint.questions.choices import Side
    from forkpoint.result import Result
    from forkpoint.support.progress import Progress

IMPLEMENTATIONS = ("eager", "sdpa", *(f"sdpa:{backend}" for backend in BACKENDS))
"""Of attention, in the order of the rows."""
WIDTHS = ("float32", "bfloat16", "float16", "float64")
"""Dtypes, in the order of the rows."""


@dataclass(frozen=True)
class Factor:
    """One row to be: what is set, to what, and how.

    Attributes:
        name, setting: as in `FactorRow`.
        model: for as long as it is entered, gives the model so set.
        ask: compares the two runs of a model.
        by_default: whether it is asked where nobody says which are wanted: to compile takes minutes.
    """

    name: str
    setting: str
    model: Callable[[], AbstractContextManager[Any]]
    ask: Callable[..., Result]
    by_default: bool = True


@says_call
def factors(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    pad_to: int | None = None,
    side: Side = "right",
    *,
    unquantized: Callable[[], Any] | None = None,
    only: Sequence[str] | None = None,
    **options: Unpack[Options],
) -> Factors:
    """Compare prompts with the same prompts padded, as the model is and with one thing set otherwise at a time.

        print(fp.factors(model, tokenizer, "I've got a lovely bunch of coconuts", pad_to=50))

    The settings are bitsandbytes' int8, each attention implementation and each of its kernels, float32, bfloat16,
    float16 and float64, and the GPU (or the CPU). Two other questions of the model as it is follow: `fp.batch` and
    `fp.cache`, and `fp.compiled` (`aot_eager`) if `only` names `compiled`. What can't be had here is a row with the reason. Other dtypes, devices and int8 need a copy of the model,
    one at a time.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several, which make one comparison together.
        pad_to, side: as in `fp.padding`.
        unquantized: gives the same model before it was quantised, if it is; without it there is no row without int8.
        only: names of the settings that are wanted, such as `int8` and `float16`; by default all of them.
        options: see `Options`.

    Returns:
        The table; no model is kept in it.

    Raises:
        InputError: what `fp.padding` refuses of the model as it is, or a name in `only` that is no setting of this model.
    """
    ask = partial(padding, pad_to=pad_to, side=side)
    rows: list[FactorRow] = []
    planned = [Factor("none", "as it is", partial(_same, model), ask)]
    planned += _chosen(list(_factors(model, ask, unquantized)), only)
    progress = options.get("progress", SILENT)
    base: Result | None = None
    for number, factor in enumerate(planned, 1):
        label = f"{factor.setting} ({number} of {len(planned)})"
        given: Options = {**options, "progress": _Labelled(progress, label)}
        if base is None:
            began = perf_counter()
            base = factor.ask(model, tokenizer, prompts, **given)
            rows.append(_row(factor, base, perf_counter() - began))
        else:
            rows.append(_made(factor, tokenizer, prompts, given))
    assert base is not None
    return Factors(base.a, base.b, tuple(rows), base.notes, base.versions)


def _factors(
    model: Any, ask: Callable[..., Result], unquantized: Callable[[], Any] | None
) -> Iterator[Factor]:
    """All rows but the first."""
    if is_quantized(model):
        yield Factor("quantization", "int8 off", partial(_made_by, partial(_before, unquantized)), ask)
    else:
        yield Factor("quantization", "int8", partial(_made_by, partial(quantized, model, "int8")), ask)
    for name in IMPLEMENTATIONS:
        if name != implementation_of(model):
            yield Factor("attention", name, partial(_attending, model, name), ask)
    for name in WIDTHS:
        if DTYPES[name] != dtype_of(model):
            yield Factor("dtype", name, partial(_made_by, partial(cast_to, model, DTYPES[name])), ask)
    other = "cuda" if device_of(innermost(model)[1]).type == "cpu" else "cpu"
    yield Factor("device", other, partial(_made_by, partial(_on, model, other)), ask)
    yield Factor("question", "batch", partial(_same, model), batch)
    yield Factor("question", "cache", partial(_same, model), cache)
    yield Factor(
        "question",
        "compiled",
        partial(_same, model),
        partial(compiled, backend="aot_eager"),
        by_default=False,
    )


def _chosen(planned: list[Factor], only: Sequence[str] | None) -> list[Factor]:
    if only is None:
        return [factor for factor in planned if factor.by_default]
    wanted = [only] if isinstance(only, str) else only
    settings = [factor.setting for factor in planned]
    for name in wanted:
        one_of("setting", name, settings)
    return [factor for factor in planned if factor.setting in wanted]


# --- how a model is set --------------------------------------------------------------------------------------


@contextmanager
def _same(model: Any) -> Generator[Any]:
    yield model


@contextmanager
def _made_by(make: Callable[[], Any]) -> Generator[Any]:
    yield make()


@contextmanager
def _attending(model: Any, name: str) -> Generator[Any]:
    with using(model, name):
        yield model


def _on(model: Any, name: str) -> Any:
    return moved_to(model, parse_device(name))


def _before(unquantized: Callable[[], Any] | None) -> Any:
    if unquantized is None:
        raise InputError("a model without its weights before they were quantised", "unquantized")
    return unquantized()


# --- a row ---------------------------------------------------------------------------------------------------


def _made(factor: Factor, tokenizer: Any, prompts: str | Sequence[str], options: Options) -> FactorRow:
    """The row of a factor, whatever comes of it."""
    began = perf_counter()
    try:
        with factor.model() as model:
            result = factor.ask(model, tokenizer, prompts, **options)
        return _row(factor, result, perf_counter() - began)
    except Exception as error:  # noqa: BLE001 - what can't run here is an answer, and the other rows go on
        return FactorRow(factor.name, factor.setting, seconds=perf_counter() - began, reason=_reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, ForkpointError):
        return str(error)
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _row(factor: Factor, result: Result, seconds: float) -> FactorRow:
    impact, verdict = result.impact, result.verdict
    return FactorRow(
        factor.name,
        factor.setting,
        verdict.kind,
        verdict.mechanism,
        loss_gap=impact and impact.loss_gap,
        max_abs=impact and impact.max_abs,
        max_kl=impact and impact.max_kl,
        top1_flips=impact and impact.top1_flips,
        tokens=impact.tokens if impact else 0,
        nonfinite_apart=impact.nonfinite_apart if impact else 0,
        first=None if result.first is None else result.first.op,
        origin=None if result.origin is None else result.origin.op,
        seconds=seconds,
        probed=verdict.probed,
    )


@dataclass(frozen=True)
class _Labelled:
    """Progress of one of several comparisons: each stage says which one it is of."""

    progress: Progress
    label: str

    def begin(self, stage: str) -> None:
        self.progress.begin(f"{self.label}: {stage}")

    def count(self, done: Callable[[], int], total: int | None) -> None:
        self.progress.count(done, total)
