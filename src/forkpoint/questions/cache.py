"""One forward pass, or step by step with a cache."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_args

import torch

from forkpoint.errors import InputError
from forkpoint.questions.asking import Options, Question, one_of, positions_of, rows_of
from forkpoint.questions.choices import CacheKind
from forkpoint.questions.limits import tried
from forkpoint.questions.prompts import pad_token_id, padded
from forkpoint.runs.listening import encoder_of
from forkpoint.runs.modules import innermost
from forkpoint.runs.returned import cache_parameters, caches_in, results_of
from forkpoint.runs.run import Run
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from torch import Tensor

    from forkpoint.questions.prompts import Padded
    from forkpoint.result import Result


LATER = 0.01
"""Relative change of what comes out for a token, from which on it sees a later one that was changed."""
EARLIER_CACHE = "kept"
"""Stands for the cache that the calls before have filled, where a model does not return it."""


@says_call
def cache(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    split: int | None = None,
    *,
    chunk: int = 1,
    kind: CacheKind = "dynamic",
    **options: Unpack[Options],
) -> Result:
    """Compare one forward pass with the same tokens given step by step, earlier ones being read from a cache.

        fp.cache(model, tokenizer, "I've got a lovely bunch of coconuts", split=8, kind="static")

    Run A has one forward call, `[prompts, tokens]`. Run B begins with the first `split` tokens and goes on with `chunk`
    at a time, each call being given the cache of those before. Several prompts of other lengths are padded on the left,
    as `generate` does, in both runs. The decoder of an encoder-decoder is given its start token and then the prompt, in run B
    step by step; the encoder runs once.

    Args:
        model: a decoder or encoder-decoder of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        split: tokens of the first call; by default three quarters of them.
        chunk: tokens of each call after that: 1 decodes, more is a chunked prefill.
        kind: how the cache is kept: `dynamic`, `static` (as long as the prompt), `sliding` (as `dynamic`, of a model whose
            layers keep no more than a window, which the prompt has to exceed), `offloaded` or `quantized`.
        options: see `Options`.

    Raises:
        InputError: an encoder, a prompt of one token, a split or chunk that does not fit, or a kind of
            cache that can't be made here.
    """
    rows = rows_of(model, tokenizer, prompts, options)
    longest = max(map(len, rows))
    plain = innermost(model)[1]
    two_streams = is_encoder_decoder(plain)
    if not two_streams:
        check_decodes(plain)
    if longest < 2:
        raise InputError("a prompt of 1 token", "2 or more, to be given in steps")
    notes: tuple[str, ...] = ()
    if split is None:
        split = max(1, longest * 3 // 4)
        notes = (f"The split was not given: {split} of {longest} tokens were chosen.",)
    if not 1 <= split < longest:
        raise InputError(f"a split after {split} of {longest} tokens", f"1 to {longest - 1}")
    if chunk < 1:
        raise InputError(f"chunks of {chunk} tokens", "1 or more")
    even = all(len(row) == longest for row in rows)
    name = f"{split} tokens, then {_counted(chunk)} at a time"
    if two_streams:
        if kind != "dynamic" or not even:
            given = f"a {kind} cache" if kind != "dynamic" else "prompts of several lengths"
            raise InputError(
                f"{given} for a {type(plain).__name__}, an encoder-decoder",
                "dynamic, and prompts of one length",
            )
        return Question(*_two_streams(model, rows, split, chunk, name), notes).answer(tokenizer, options)
    pad = 0 if even else pad_token_id(model, tokenizer)
    made = padded(model, rows, longest, pad=pad, side="left", position_ids=positions_of(options))
    a = Run(model, made.inputs, layout=made.layout, name="one forward pass")
    calls = stepwise(plain, made, split, chunk, kind)
    b = Run(
        model,
        calls,
        call=with_own(plain, kind, longest) if kind == "offloaded" else kept_apart(plain, calls),
        name=name,
    )
    return Question(a, b, notes).answer(tokenizer, options)


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _two_streams(model: Any, rows: list[list[int]], split: int, chunk: int, name: str) -> tuple[Run, Run]:
    """One pass of an encoder-decoder over all of the decoder's tokens, and one that reads the earlier ones from a cache."""
    length = len(rows[0])
    made = padded(model, rows, length, pad=0).inputs
    decoder = torch.cat([made["decoder_input_ids"], made["input_ids"][:, :-1]], 1)
    whole = {**made, "decoder_input_ids": decoder}
    ends = list(dict.fromkeys([split, *range(split + chunk, length, chunk), length]))
    calls: list[dict[str, Any]] = []
    for start, end in zip([0, *ends], ends, strict=False):
        encoded = {key: value for key, value in made.items() if key != "input_ids" or not start}
        calls.append({**encoded, "decoder_input_ids": decoder[:, start:end], "use_cache": True})
    encoder_output: list[Any] = []

    def decode(given: Any, inputs: dict[str, Any]) -> Any:
        if "input_ids" in inputs:  # some encoders refuse to be asked together with a cache
            read = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
            encoder_output[:] = [encoder_of(innermost(given)[1])(**read, return_dict=True)]
        return given(
            encoder_outputs=encoder_output[0], **{k: v for k, v in inputs.items() if k != "input_ids"}
        )

    return Run(model, whole, name="one forward pass"), Run(model, calls, call=decode, name=name)


def check_decodes(model: Any) -> None:
    """Check that a model makes one token after the other, from a cache.

    Raises:
        InputError: it does not.
    """
    if is_encoder_decoder(model):
        raise InputError(
            f"a {type(model).__name__}, an encoder-decoder", "a decoder", "compare runs of it by fp.compare"
        )
    if not cache_parameters(model):
        raise InputError(f"a {type(model).__name__}, which takes no cache", "a model that decodes")
    causal = {module.is_causal for module in model.modules() if hasattr(module, "is_causal")}
    if causal == {False} or (True not in causal and _sees_later_tokens(model)):
        raise InputError(
            f"a {type(model).__name__}, whose tokens see those after them", "a model that decodes"
        )


def _sees_later_tokens(model: Any) -> bool:
    """Whether another last token changes what comes out for those before it, by far more than rounding."""
    outputs: list[Tensor] = []
    for last in (1, 2):
        row = padded(model, [[1, 2, 3, last]], 4, pad=0)
        output = tried(
            Run(model, row.inputs, layout=row.layout),
            f"a {type(model).__name__}, which can't run here",
            "a model that runs",
        )[-1]
        per_token = next(
            (value for value in results_of(output).values() if value.is_floating_point() and value.dim() > 1),
            None,
        )
        if per_token is None or per_token.shape[:2] != (1, 4):
            return False
        outputs.append(per_token[:, :3].double())
    size = float(outputs[0].abs().max())
    return bool((outputs[0] - outputs[1]).abs().max() > LATER * size)


def stepwise(
    model: Any, made: Padded, split: int, chunk: int, kind: CacheKind, room: int | None = None
) -> list[dict[str, Any]]:
    """The inputs of each call: its tokens and positions, and the mask of all so far, or of its own where no keys are kept.

    Args:
        room: tokens that a static cache has room for; by default as many as there are.
    """
    length = made.mask.shape[1]
    ends = list(dict.fromkeys([split, *range(split + chunk, length, chunk), length]))
    takes = inspect.signature(model.forward).parameters
    keys = _keeps_keys(model)
    calls: list[dict[str, Any]] = []
    for start, end in zip([0, *ends], ends, strict=False):
        call: dict[str, Any] = {
            name: value[:, :end] if name == "attention_mask" and keys else value[:, start:end]
            for name, value in made.inputs.items()
        }
        if "use_cache" in takes:
            call["use_cache"] = True
        calls.append(call)
    first = _made(model, one_of("cache", kind, get_args(CacheKind)), room or length)
    if first is not None and kind != "offloaded":
        calls[0][cache_parameters(model)[0]] = first
    return calls


def with_own(model: Any, kind: CacheKind, length: int) -> Callable[[Any, dict[str, Any]], Any]:
    """Calls a model, the first time with a cache of its own: one with streams of its own can't be copied with the inputs."""
    name = cache_parameters(model)[0]

    def call(given: Any, inputs: dict[str, Any]) -> Any:
        if name not in inputs:
            inputs = {**inputs, name: _made(model, kind, length)}
        return given(**inputs)

    return call


def kept_apart(model: Any, calls: list[dict[str, Any]]) -> Callable[[Any, dict[str, Any]], Any] | None:
    """How to call a model that fills a cache which it is given, but returns none; None where it returns one.

    The cache is made before the first call, as `generate` does; `calls` say where it goes on.
    """
    if not _keeps_keys(model):
        return None
    name = cache_parameters(model)[0]
    (output,) = tried(
        Run(model, calls[0]),
        f"a {type(model).__name__}, which can't run here",
        "a model that runs with a cache",
    )
    if caches_in(output, model):
        return None
    from transformers import DynamicCache

    for index, call in enumerate(calls):
        call[name] = EARLIER_CACHE if index else None
    past: list[Any] = [None]

    def call_it(given: Any, inputs: dict[str, Any]) -> Any:
        if name not in inputs:
            return given(**inputs)
        if inputs[name] is None:
            past[0] = DynamicCache(config=model.config.get_text_config(decoder=True))
        return given(**{**inputs, name: past[0]})

    return call_it


def check_cache(model: Any, kind: CacheKind, length: int) -> None:
    """Check that a cache of a kind can be made for so many tokens.

    Raises:
        InputError: it can't.
    """
    _made(model, kind, length)


def _keeps_keys(model: Any) -> bool:
    """Whether what a model keeps of earlier tokens has their keys, so that a mask says which of them are real."""
    names = cache_parameters(model)
    if "cache" not in names:  # by which transformers of 5.24 and later take any kind
        return "past_key_values" in names
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        return False
    from transformers import DynamicCache

    past = DynamicCache(config=model.config.get_text_config(decoder=True))
    return not all(past.is_linear) if past.layers else True


def _made(model: Any, kind: str, length: int) -> Any:
    """An empty cache of a kind; None for the one that the model makes itself."""
    if kind == "dynamic":
        return None
    from transformers import DynamicCache, QuantizedCache, StaticCache

    if not _keeps_keys(model):
        raise InputError(
            f"a {kind} cache for a {type(model).__name__}, which keeps its own", "the cache dynamic"
        )
    if kind == "offloaded" and not torch.accelerator.is_available():
        raise InputError("an offloaded cache without an accelerator to take it off", "dynamic or static")
    config = model.config.get_text_config(decoder=True)
    if kind == "sliding":
        return _sliding(DynamicCache(config=config), model, length)
    try:
        if kind == "static":
            return StaticCache(config=config, max_cache_len=length)
        if kind == "offloaded":
            return DynamicCache(config=config, offloading=True)
        return QuantizedCache(backend="quanto", config=config)
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"a {kind} cache can't be made here: {reason}", "dynamic or static") from error


def _sliding(cache: Any, model: Any, length: int) -> Any:
    """A cache of which some layers keep a window alone, shorter than what they are given."""
    windows = [layer.sliding_window for layer in cache.layers if getattr(layer, "is_sliding", False)]
    if not windows:
        raise InputError(
            f"a sliding cache for a {type(model).__name__} without a sliding window", "dynamic or static"
        )
    if length <= min(windows):
        raise InputError(f"{length} tokens, within the window of {min(windows)}", "a longer prompt")
    return cache


def _counted(chunk: int) -> str:
    return "one" if chunk == 1 else str(chunk)
