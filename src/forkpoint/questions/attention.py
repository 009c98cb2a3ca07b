"""Two implementations of attention."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from forkpoint.errors import InputError
from forkpoint.questions.asking import Options, Question, positions_of, rows_of
from forkpoint.questions.limits import tried
from forkpoint.questions.prompts import together
from forkpoint.runs.modules import innermost
from forkpoint.runs.run import Run
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import Unpack

    from forkpoint.result import Result

BACKENDS = {
    "math": "MATH", "efficient": "EFFICIENT_ATTENTION", "flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION",
}  # fmt: skip
"""Kernels behind `scaled_dot_product_attention`, by the name after `sdpa:`, as torch calls them."""


@says_call
def attention(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    against: str | None = None,
    **options: Unpack[Options],
) -> Result:
    """Compare the model's attention implementation with another one.

        fp.attention(model, tokenizer, "I've got a lovely bunch of coconuts", against="sdpa:math")

    Both runs are one forward call, `[prompts, longest]`, padded on the right where the prompts are not of one length.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        against: `eager`, `sdpa`, `flex_attention`, or what else transformers knows; `sdpa:math`, `sdpa:efficient`,
            `sdpa:flash` and `sdpa:cudnn` name the kernel as well. By default eager, or sdpa where the model is eager.
        options: see `Options`.

    Raises:
        InputError: an implementation that the model has not, or that can't run here.
    """
    own = implementation_of(model)
    chosen = against or ("sdpa" if own == "eager" else "eager")
    if chosen == own:
        raise InputError(f"attention {own} for a model with {own}", "another one")
    rows = rows_of(model, tokenizer, prompts, options)
    a = together(model, tokenizer, rows, position_ids=positions_of(options), name=own)
    with using(model, chosen):  # whether it can be had, before any work
        pass

    def other(model: Any, inputs: dict[str, Any]) -> Any:
        with using(model, chosen):
            return model(**inputs)

    b = Run(model, list(a.calls), layout=a.layout, call=other, name=chosen)
    tried(b, f"attention {chosen!r}, which can't run here", "another one, dtype or device")
    return Question(a, b).answer(tokenizer, options)


@contextmanager
def using(model: Any, implementation: str) -> Generator[None]:
    """Have a model use another attention implementation, for a while.

    Raises:
        InputError: it has none of that name.
    """
    name, _, backend = implementation.partition(":")
    if backend and (name != "sdpa" or backend not in BACKENDS):
        raise InputError(f"attention {implementation!r}", "sdpa:" + ", sdpa:".join(BACKENDS))
    plain = innermost(model)[1]
    configs = _configs(plain)
    before = [(config, config._attn_implementation) for config in configs]
    try:
        _set(plain, name)
        with _kernel(backend):
            yield
    finally:
        for config, old in before:
            config._attn_implementation = old


def implementation_of(model: Any) -> str:
    """The name of a model's attention implementation."""
    return str(getattr(getattr(innermost(model)[1], "config", None), "_attn_implementation", None) or "eager")


def _configs(model: Any) -> list[Any]:
    """The configurations of a model and of its parts."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
    return list(configs.values())


def _set(model: Any, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"attention {name!r} for a {type(model).__name__}: {reason}", "one that it has"
        ) from error
    if implementation_of(model) != name:
        raise InputError(
            f"attention {name!r} for a {type(model).__name__}, which can't change its own after it was made",
            "a model that can",
            "load it twice, each with --attn, and compare them by fp.compare",
        )


@contextmanager
def _kernel(backend: str) -> Generator[None]:
    """Have torch's attention take one kernel."""
    if not backend:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, BACKENDS[backend])):
        yield
