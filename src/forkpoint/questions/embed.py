"""Texts through an embedding pipeline, in batches of one size and of another."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from forkpoint.errors import InputError
from forkpoint.questions.asking import Options, Question, one_of
from forkpoint.questions.cache import is_encoder_decoder
from forkpoint.questions.choices import Pooling
from forkpoint.questions.pipelines import pipeline_run
from forkpoint.questions.prompts import check_reads, device_of
from forkpoint.runs.modules import innermost
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.questions.pipelines import Call
    from forkpoint.result import Result

SIZES = (1, 32)
"""Batch sizes if nothing is said: each text alone, and what pipelines mostly do."""


@says_call
def embed(
    model: Any,
    texts: Sequence[Any],
    batch_sizes: tuple[int, int] = SIZES,
    *,
    tokenizer: Any = None,
    pooling: Pooling = "mean",
    call: Call | None = None,
    **options: Unpack[Options],
) -> Result:
    """Compare what a pipeline makes of texts in batches of one size and of another.

        fp.embed(SentenceTransformer("./my-model"), ["A text.", "And another one, which is longer."])

    Each batch that the pipeline forms is one forward call; its rows are the texts, whatever order it puts them into. What
    it returns (a tensor, an array of NumPy, lists of numbers) is compared text by text.

    Args:
        model: something with `encode` or `predict` (sentence-transformers), a pipeline of transformers, anything else
            with `call`; or, with `tokenizer`, an encoder of transformers, whose last hidden state is pooled.
        texts: what to ask for: texts, or pairs of them for a cross-encoder.
        batch_sizes: of run A and of run B.
        tokenizer: of an encoder.
        pooling: of an encoder: `mean` over a text's tokens, or `cls`, its first token. A classifier's logits are taken as
            they are.
        call: how to ask for texts, `call(model, texts, batch_size)`.
        options: see `Options`; a pipeline takes care of position ids and chat templates itself.

    Raises:
        InputError: fewer than one text, a batch size below 1, or something that can't be asked for texts.
    """
    given = list(texts)
    if isinstance(texts, str) or not given:
        raise InputError("no list of texts", "one text or more")
    if isinstance(batch_sizes, int) or len(batch_sizes) != 2 or min(batch_sizes) < 1:
        raise InputError(f"batch sizes {batch_sizes}", "two, each 1 or more")
    pipeline = model
    if tokenizer is not None and call is None:
        one_of("pooling", pooling, get_args(Pooling))
        check_reads(innermost(model)[1])
        pipeline = Encoder(model, tokenizer, pooling)
    ask = call or _way(pipeline)
    a, b = (
        pipeline_run(pipeline, given, size, ask, f"in batches of {size}" if size > 1 else "each alone")
        for size in batch_sizes
    )
    own = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    return Question(a, b).answer(own, options)


def _way(pipeline: Any) -> Call:
    """How to ask it for texts."""
    for name in ("encode", "predict"):
        if (
            callable(ask := getattr(pipeline, name, None))
            and "batch_size" in inspect.signature(ask).parameters
        ):
            return partial(_by_method, name)
    if isinstance(pipeline, nn.Module) or not callable(pipeline):
        raise InputError(
            f"a {type(pipeline).__name__}, which has neither encode nor predict",
            "an embedding pipeline",
            "pass the encoder's tokenizer=, or call= to say how to ask",
        )
    return _by_call


def _by_method(name: str, pipeline: Any, texts: list[Any], size: int) -> Any:
    ask = getattr(pipeline, name)
    quiet = {"show_progress_bar": False} if "show_progress_bar" in inspect.signature(ask).parameters else {}
    return ask(texts, batch_size=size, **quiet)


def _by_call(pipeline: Any, texts: list[Any], size: int) -> Any:
    return pipeline(texts, batch_size=size)


_NO_LIMIT = 1 << 31
"""What transformers' tokenizers without a limit say lies far above it, and is more than they take for one."""


class Encoder:
    """A transformers encoder with pooling: texts in, a vector for each out, `[texts, features]`.

    One with a head for tokens (their classes, the ends of an answer) gives for each text a mapping of tensors, which begin
    with the text's tokens.
    """

    def __init__(self, model: Any, tokenizer: Any, pooling: Pooling) -> None:
        has_words = hasattr(model, "get_output_embeddings") and model.get_output_embeddings() is not None
        body = model.base_model if has_words else model
        self.name = type(model).__name__
        self.pooled = Pooled(body.get_encoder() if is_encoder_decoder(model) else body, pooling)
        self.tokenizer = tokenizer
        limits = (
            getattr(tokenizer, "model_max_length", None),
            getattr(getattr(model, "config", None), "max_position_embeddings", None),
        )
        self.longest = min((n for n in limits if isinstance(n, int) and n < _NO_LIMIT), default=None)

    def __call__(self, texts: list[Any], batch_size: int) -> Tensor | list[dict[str, Tensor]]:
        starts = range(0, len(texts), batch_size)
        batches = [self._batch(texts[start : start + batch_size]) for start in starts]
        if all(isinstance(batch, Tensor) for batch in batches):
            return torch.cat(batches)
        return [row for batch in batches for row in batch]

    def _batch(self, texts: list[Any]) -> Any:
        how: dict[str, Any] = {"truncation": True, "max_length": self.longest} if self.longest else {}
        features = self.tokenizer(texts, padding=True, return_tensors="pt", **how)
        made = self.pooled(**features.to(device_of(self.pooled.model)))
        return made if isinstance(made, Tensor) else _of_texts(made, features["attention_mask"].bool())


def _of_texts(made: dict[str, Tensor], mask: Tensor) -> list[dict[str, Tensor]]:
    """What was made of each text, without the columns of its padding."""
    rows = ((index, mask[index]) for index in range(len(mask)))
    return [
        {
            name: value[index, keep] if _of_tokens(name, value, mask) else value[index]
            for name, value in made.items()
        }
        for index, keep in rows
    ]


def _of_tokens(name: str, value: Tensor, mask: Tensor) -> bool:
    """Whether a result has a number, or several, for each token; a classifier's logits of two dimensions have not."""
    return value.shape[: mask.ndim] == mask.shape and not (name == "logits" and value.ndim == mask.ndim)


class Pooled(nn.Module):
    """An encoder whose last hidden state, `[rows, columns, features]`, becomes one vector a row.

    Of a model that returns none, what it returns: a classifier's logits `[rows, labels]`, or a mapping of what it has for
    tokens.
    """

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.pooling = pooling

    def forward(self, **features: Any) -> Tensor | dict[str, Tensor]:
        output = self.model(**features)
        mask = features["attention_mask"]
        if "last_hidden_state" not in output:
            made = {k: v for k, v in output.items() if isinstance(v, Tensor) and v.is_floating_point()}
            alone = made.get("logits") if len(made) == 1 else None
            return made if alone is None or _of_tokens("logits", alone, mask) else alone
        hidden = output["last_hidden_state"]
        if self.pooling == "cls":
            first = mask.argmax(-1)
            return hidden[torch.arange(len(hidden), device=hidden.device), first]
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
