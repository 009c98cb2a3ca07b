"""Assertions for tests: two runs may differ by rounding, and by nothing else.

    import forkpoint as fp

    def test_padding():
        fp.testing.assert_padding_invariant(model, tokenizer, ["Hello there", "How are you?"])

Each compares with all experiments, so that no tolerance has to be chosen: what is rounding is proved. A failure is an
`AssertionError` whose message begins with the verdict and the op, and ends with the short report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkpoint.comparison import compare
from forkpoint.errors import InputError
from forkpoint.questions.batch import SIZE, batch
from forkpoint.questions.cache import cache
from forkpoint.questions.padding import padding
from forkpoint.result import allowance
from forkpoint.runs.run import Run

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Unpack

    from forkpoint.questions.asking import Options
    from forkpoint.questions.choices import CacheKind, Side
    from forkpoint.result import Result


def assert_same(a: Run, b: Run, *, allow: str | Collection[str] | None = None, **options: Any) -> Result:
    """Fail unless two runs are identical or differ by no more than is allowed.

    Args:
        a, b: the runs.
        allow: kinds of verdicts, or mechanisms; by default what the test's mark says, else "rounding". See `Result.check`.
        options: of `fp.compare`.

    Returns:
        The result, for those who want to know more of it.

    Raises:
        DifferenceError: an AssertionError.
        InputError: no verdict has a kind or mechanism that `allow` names, said before anything is run.
    """
    __tracebackhide__ = True
    allow = allowance(allow)
    result = compare(a, b, **options)
    result.check(allow)
    return result


def assert_matches(
    port: Any,
    reference: Any,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    allow: str | Collection[str] | None = None,
    **options: Any,
) -> Result:
    """Fail unless a port of a model computes what the reference does, on the same inputs.

    Args:
        port, reference: two modules with the same weights, which are run B and run A.
        inputs: keyword arguments of one forward call, or a list of them for several calls.
        allow, options: as for `assert_same`.

    Raises:
        DifferenceError: an AssertionError.
        InputError: no verdict has a kind or mechanism that `allow` names, said before anything is run.
    """
    __tracebackhide__ = True
    allow = allowance(allow)
    a, b = Run(reference, inputs, name="reference"), Run(port, inputs, name="port")
    return assert_same(a, b, allow=allow, **options)


def assert_padding_invariant(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    pad_to: int | None = None,
    sides: Sequence[Side] = ("right", "left"),
    allow: str | Collection[str] | None = None,
    **options: Unpack[Options],
) -> None:
    """Fail unless each prompt gives the same, padded or not.

    Args:
        model, tokenizer: a model of transformers and its tokenizer.
        prompts: one text or several, each compared by itself.
        pad_to: as for `fp.padding`.
        sides: on which the padding is tried.
        allow: as for `assert_same`.
        options: as for `fp.padding`.

    Raises:
        DifferenceError: an AssertionError.
        InputError: no verdict has a kind or mechanism that `allow` names, said before anything is run.
    """
    __tracebackhide__ = True
    allow = allowance(allow)
    for text in _texts(prompts):
        for side in sides:
            padding(model, tokenizer, text, pad_to, side, **options).check(allow)


def assert_batch_invariant(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    size: int | None = None,
    allow: str | Collection[str] | None = None,
    **options: Unpack[Options],
) -> None:
    """Fail unless the prompts give the same alone and in one batch, with others if there are fewer than `size`.

    Args:
        model, tokenizer: a model of transformers and its tokenizer.
        prompts: one text or several.
        size: rows of the batch; by default 8, or as many as there are prompts.
        allow: as for `assert_same`.
        options: as for `fp.batch`.

    Raises:
        DifferenceError: an AssertionError.
        InputError: no verdict has a kind or mechanism that `allow` names, said before anything is run.
    """
    __tracebackhide__ = True
    allow = allowance(allow)
    texts = _texts(prompts)
    rows = max(SIZE, len(texts)) if size is None else size
    batch(model, tokenizer, texts, rows, **options).check(allow)


def assert_cache_consistent(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    split: int | None = None,
    chunk: int = 1,
    kind: CacheKind = "dynamic",
    allow: str | Collection[str] | None = None,
    **options: Unpack[Options],
) -> None:
    """Fail unless each prompt gives the same in one forward pass and step by step from a cache.

    Args:
        model, tokenizer: a decoder of transformers and its tokenizer.
        prompts: one text or several, each compared by itself.
        split, chunk, kind: as for `fp.cache`.
        allow: as for `assert_same`.
        options: as for `fp.cache`.

    Raises:
        DifferenceError: an AssertionError.
        InputError: no verdict has a kind or mechanism that `allow` names, said before anything is run.
    """
    __tracebackhide__ = True
    allow = allowance(allow)
    for text in _texts(prompts):
        cache(model, tokenizer, text, split, chunk=chunk, kind=kind, **options).check(allow)


def _texts(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("no prompt", "at least one")
    return texts
