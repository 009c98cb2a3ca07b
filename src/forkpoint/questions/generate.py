"""Two ways to generate: the first token that differs, and why."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import torch

from forkpoint.errors import InputError, reraise_out_of_memory
from forkpoint.investigation import model_name
from forkpoint.models.loading import quiet
from forkpoint.promotion import Promotion
from forkpoint.questions.answers import FAILING, Generation
from forkpoint.questions.asking import Options, Question, one_of, positions_of, rows_of
from forkpoint.questions.assisted import LOOKED_UP, ForwardCall, again, recording
from forkpoint.questions.cache import check_cache, check_decodes, kept_apart, stepwise, with_own
from forkpoint.questions.choices import CacheKind, Generating
from forkpoint.questions.mates import mates, own_mates
from forkpoint.questions.prompts import pad_token_id, padded
from forkpoint.result import VerdictKind
from forkpoint.runs.modules import innermost
from forkpoint.runs.run import Run
from forkpoint.runs.state import kept_state
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from typing import Unpack

    from torch import Tensor

    from forkpoint.result import Result

NOISE = 2.0**-52 * 256
"""What float64's rounding makes of a margin, relative to the largest logit: far below what float32 can tell apart."""
NEW_TOKENS = 32
"""Tokens to generate if nothing is said."""


@dataclass(frozen=True)
class Way:
    """One way to generate.

    Attributes:
        name: what reports call it.
        rows: token ids of each row; the prompt's is the first.
        cached: whether earlier tokens are read from a cache.
        kind: of that cache.
        assisted: whether several candidates are looked at in one call.
        assistant: the model that guesses them; None where they are looked up in the text so far.
    """

    name: str
    rows: list[list[int]]
    cached: bool = True
    kind: CacheKind = "dynamic"
    assisted: bool = False
    assistant: Any = None


@dataclass(frozen=True)
class GeneratedTokens:
    """What was generated.

    Attributes:
        tokens: of each row, as they came, with padding behind the end of a row.
        recorded: the forward calls of assisted generation.
        room: tokens that a static cache has room for.
    """

    tokens: list[list[int]]
    recorded: list[ForwardCall]
    room: int


@says_call
def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    against: Generating = "batch",
    *,
    max_new_tokens: int = NEW_TOKENS,
    size: int = 8,
    assistant: Any = None,
    **options: Unpack[Options],
) -> Generation:
    """Generate greedily in two ways, and explain the first token that differs.

        print(fp.generate(model, tokenizer, "I've got a lovely bunch of coconuts", against="no-cache"))

    Way A is the prompt alone, with a cache. Where a token differs, the forward calls of both ways up to it are made again
    and compared, op by op; and both candidates' logits are looked at as they are and with every operation in float64,
    which tells a tie, and what rounding decides, from a choice that each run is sure of.

    Args:
        model: a decoder of transformers.
        tokenizer: its tokenizer.
        prompt: one text.
        against: `batch`, in a batch with others, padded on the left; `no-cache`; a cache that is `static`, `sliding`,
            `offloaded` or `quantized`; or `assisted`, where each call looks at several candidates for the next tokens.
        max_new_tokens: most tokens to generate.
        size: rows of the batch.
        assistant: for `assisted`, a model of the same vocabulary that guesses the candidates; without one they are looked
            up in the text so far.
        options: see `Options`.

    Raises:
        InputError: a model that does not decode, an empty prompt, another way, no token to pad with, or a cache that can't
            be made here.
    """
    plain = innermost(model)[1]
    check_decodes(plain)
    if not hasattr(plain, "generate"):
        raise InputError(f"a {type(plain).__name__}, which has no generate", "a model that generates")
    if max_new_tokens < 1:
        raise InputError(f"{max_new_tokens} tokens to generate", "1 or more")
    if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"a prompt of type {type(prompt).__name__}", "one text")
    (row,) = rows_of(model, tokenizer, prompt, options)
    a = Way("alone", [row])
    if one_of("way", against, get_args(Generating)) == "batch":
        others = mates([row], own_mates(model, tokenizer, max_new_tokens), size, same_length=False)
        b = Way(f"in a batch of {size}", [row, *others])
    else:
        b = _other_way(against, row, assistant)
    if assistant is not None and (against != "assisted" or innermost(assistant)[1] is plain):
        raise InputError("an assistant", "against='assisted', and another model than the one that it assists")
    if b.kind != "dynamic":
        check_cache(plain, b.kind, len(row) + max_new_tokens - 1)
    pad = pad_token_id(model, tokenizer)
    made_a, made_b = (_generated(plain, way, pad, max_new_tokens) for way in (a, b))
    ends = _ends(plain)
    tokens_a, tokens_b = (_until_end(made.tokens[0], ends) for made in (made_a, made_b))
    generation = Generation(
        a.name, b.name, len(row), tuple(tokens_a), tuple(tokens_b), tokenizer.decode(tokens_a),
        tokenizer.decode(tokens_b), model=model_name(plain), text=prompt,
    )  # fmt: skip
    first = next((i for i, (x, y) in enumerate(zip(tokens_a, tokens_b, strict=False)) if x != y), None)
    if first is None:
        return generation
    ways = ((a, made_a), (b, made_b))
    brief = a.cached and b.cached and not b.assisted
    compared = [_calls(model, way, made, first, pad, options, brief=brief)[0] for way, made in ways]
    result = Question(compared[0], compared[1]).answer(tokenizer, options)
    runs = [_calls(model, way, made, first, pad, options) for way, made in ways]
    token_a, token_b = tokens_a[first], tokens_b[first]
    native = [_last_logits(*run) for run in runs]
    generation = replace(
        generation, first=first, token_a=token_a, token_b=token_b, candidate_a=tokenizer.decode([token_a]),
        candidate_b=tokenizer.decode([token_b]), result=result,
        margin_a=_margin(native[0], token_a, token_b), margin_b=_margin(native[1], token_b, token_a),
    )  # fmt: skip
    if [int(logits.argmax()) for logits in native] != [token_a, token_b]:
        note = "The calls, made again, choose other tokens than generate did: why it chose as it did is not explained."
        return replace(generation, result=replace(result, notes=(note, *result.notes)))
    return _labelled(generation, result, runs)


# --- generating ----------------------------------------------------------------------------------------------


def _other_way(against: Generating, row: list[int], assistant: Any) -> Way:
    if against == "no-cache":
        return Way("without a cache", [row], cached=False)
    if against == "assisted":
        name = (
            "assisted"
            if assistant is not None
            else f"assisted, {LOOKED_UP} tokens at a time looked up in the text"
        )
        return Way(name, [row], assisted=True, assistant=assistant)
    return Way(f"with a {against} cache", [row], kind=cast("CacheKind", against))


def _generated(model: Any, way: Way, pad: int, new: int) -> GeneratedTokens:
    """What is generated for each row, and with which forward calls if it is assisted."""
    longest = max(map(len, way.rows))
    inputs = padded(model, way.rows, longest, pad=pad, side="left", position_ids="none").inputs
    if way.assistant is not None:
        own: dict[str, Any] = {"assistant_model": innermost(way.assistant)[1]}
    elif way.assisted:
        own = {"prompt_lookup_num_tokens": LOOKED_UP}
    else:
        plain = way.kind in ("dynamic", "sliding")
        own = {"cache_implementation": None if plain else way.kind, "disable_compile": True}
    note = recording(model) if way.assisted else nullcontext(list[ForwardCall]())
    with torch.no_grad(), quiet(), kept_state(innermost(model)[1]), note as recorded:
        whole = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask"), max_new_tokens=new,
            min_new_tokens=None, do_sample=False, num_beams=1, repetition_penalty=1.0, temperature=None, top_k=None,
            top_p=None, use_cache=way.cached, pad_token_id=pad, **own,
        )  # fmt: skip
    return GeneratedTokens(whole[:, longest:].tolist(), recorded, longest + new - 1)


def _ends(model: Any) -> set[int]:
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if end is None else set(end) if isinstance(end, (list, tuple)) else {int(end)}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first that ends a text, and that one."""
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]


# --- the calls again -----------------------------------------------------------------------------------------


def _calls(
    model: Any, way: Way, made: GeneratedTokens, first: int, pad: int, options: Options, *, brief: bool = True
) -> tuple[Run, int]:
    """The forward calls that `generate` makes up to the token that differs, and the column of the last that chooses it.

    As there, each is asked for its last logits alone; unless `brief`, for those of all tokens: one pass over all tokens and
    many of one token can be compared at every token then.
    """
    plain = innermost(model)[1]
    longest = max(map(len, way.rows))
    if way.assisted:
        return again(model, made.recorded, longest + first, way.name)
    rows = [row + new[:first] for row, new in zip(way.rows, made.tokens, strict=True)]
    full = padded(model, rows, longest + first, pad=pad, side="left", position_ids=positions_of(options))
    calls: list[dict[str, Any]] = [dict(full.inputs)]
    if way.cached:
        steps = first or way.kind != "dynamic"
        calls = stepwise(plain, full, longest, 1, way.kind, made.room) if steps else calls
    if brief and "logits_to_keep" in inspect.signature(plain.forward).parameters:
        calls = [{**call, "logits_to_keep": 1} for call in calls]
    own = kept_apart(plain, calls) if len(calls) > 1 else None
    if way.kind == "offloaded":
        own = with_own(plain, way.kind, made.room)
    return Run(model, calls, layout=full.layout if len(calls) == 1 else None, call=own, name=way.name), -1


def _last_logits(run: Run, column: int, promotion: Promotion | None = None) -> Tensor:
    """The logits, `[vocabulary]`, from which the token that differs is chosen for the prompt's row."""
    if promotion is None:
        return run.execute()[-1].logits[0, column].double()
    logits = run.execute(around=lambda: promotion)[-1].logits
    return promotion.value(logits)[0, column].double()


def _margin(logits: Tensor, token: int, other: int) -> float:
    return float(logits[token] - logits[other])


# --- what it is ----------------------------------------------------------------------------------------------


def _labelled(generation: Generation, result: Result, runs: list[tuple[Run, int]]) -> Generation:
    """The same with what float64 says of the two candidates."""
    assert generation.token_a is not None and generation.token_b is not None
    try:
        exact = [_last_logits(*run, Promotion()) for run in runs]
    except Exception as error:  # noqa: BLE001 - a model may refuse float64 in its own way
        reraise_out_of_memory(error)
        return generation
    generation = replace(
        generation, exact_a=_margin(exact[0], generation.token_a, generation.token_b),
        exact_b=_margin(exact[1], generation.token_b, generation.token_a),
    )  # fmt: skip
    noise = NOISE * max(float(logits[logits.isfinite()].abs().max()) for logits in exact)
    return replace(generation, label=label(generation, result, noise))


def label(generation: Generation, result: Result, noise: float = 0.0) -> str | None:
    """What a first token that differs is: `tie`, `within rounding`, `confident`; None where that was not shown.

    The verdict on the runs says whether rounding is all that differs. If it is, the candidates tie where their logits are
    equal in a run, or where float64's own noise decides between them; else rounding moved one past the other. If it is
    not, each run is sure of its token if it chooses it in float64 as well, or if a run is off its own operations there.

    Args:
        generation: with the margins of both runs.
        result: the comparison of both runs.
        noise: size of a margin that float64's own rounding makes.
    """
    assert generation.margin_a is not None and generation.margin_b is not None
    assert generation.exact_a is not None and generation.exact_b is not None
    tied = 0 in (generation.margin_a, generation.margin_b)
    if result.verdict.kind is VerdictKind.ROUNDING:
        decided = max(abs(generation.exact_a), abs(generation.exact_b)) > noise
        apart = decided and (generation.exact_a > 0) is not (generation.exact_b > 0)
        return "within rounding" if apart and not tied else "tie"
    if result.verdict.kind in FAILING and result.verdict.kind is not VerdictKind.NONDETERMINISM:
        beyond = any(probe.name == "native" for probe in result.verdict.evidence)
        if (generation.exact_a > 0 and generation.exact_b > 0) or beyond:
            return "confident"
    return None
