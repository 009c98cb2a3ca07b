"""Caches and rotary tables: what one call leaves for the next, one row for its neighbour."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import decoders, models
from .case import Pair, Side, case
from .expect import CACHE, FUNCTION, LEAK_EITHER, MASK, POSITIONS, ROPE, SOUND, STATE, one_of, semantic
from .modules import seeded
from .pairs import cached
from .tokens import at, joined, pad, row, whole, words

# ---------------------------------------------------------------------- 21, 22: tables chosen by length


def _dynamic_llama() -> Any:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    return models.llama("sdpa", max_position_embeddings=16, rope_parameters=rope)


def _by_coordinates(*calls: tuple[int, int]) -> Any:
    """Layout of calls of one row each, from (sample, columns)."""

    def made(fp: Any) -> Any:
        entries = []
        for sample, columns in calls:
            entries.append(fp.Coordinates(torch.full((1, columns), sample), torch.arange(columns)[None]))
        return fp.Layout(entries)

    return made


def _short_after_long(model: Any) -> Pair:
    short, long = row(words(9)), row(words(40, 1))
    b = [{"input_ids": long, "use_cache": False}, {"input_ids": short, "use_cache": False}]
    return Pair(
        Side(model, {"input_ids": short, "use_cache": False}, whole(), layout=_by_coordinates((0, 9))),
        Side(model, b, whole(call=1), layout=_by_coordinates((1, 40), (0, 9))),
    )


@case(
    "21-ntk-not-reset",
    "Dynamic NTK, a short row at once or after a long one: the base is not reset (patched)",
    semantic("length_dependent_rope", by_design=one_of(False, None, True)),
    floor=1e-3,
    origin="rotary_emb",
    source="transformers#27226",
    note="the model's own attributes change from call to call, beside its buffers",
)
def _() -> Pair:
    model = _dynamic_llama()
    # The line that resets asks for `seq_len < self.original_max_seq_len`: with 0 it never does.
    model.model.rotary_emb.original_max_seq_len = 0
    return _short_after_long(model)


@case("m-ntk-reset", "The same, unpatched: the base is reset", *SOUND)
def _() -> Pair:
    return _short_after_long(_dynamic_llama())


@case(
    "m-ntk-long-mate",
    "Dynamic NTK, a row alone, or padded beside one beyond the trained length",
    ROPE,
    floor=1e-4,
    origin="rotary_emb",
)
def _() -> Pair:
    ids, mask = pad([words(9), words(40, 1)])
    model = _dynamic_llama()
    return Pair(
        Side(model, {"input_ids": row(words(9))}, at(torch.ones(1, 9))),
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask, rows=[0])),
    )


@case(
    "22-phi3-longrope-cache",
    "Phi-3, cached decoding across the switch of factors, or one full forward",
    semantic("length_dependent_rope", by_design=one_of(True, False, None)),
    CACHE,
    floor=1e-2,
    origin=("rotary_emb", "self_attn"),
    source="transformers#33129",
    note="whether the switch or the old keys in the cache are to blame is a matter of words",
)
def _() -> Pair:
    return cached(models.phi3(original=12), prompt=9, steps=6)


@case(
    "m-phi3-longrope-mate",
    "Phi-3, a row alone, or padded beside one beyond the switch",
    ROPE,
    floor=1e-3,
    origin="rotary_emb",
)
def _() -> Pair:
    ids, mask = pad([words(9), words(20, 1)])
    model = models.phi3(original=12)
    return Pair(
        Side(model, {"input_ids": row(words(9))}, at(torch.ones(1, 9))),
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask, rows=[0])),
    )


@case(
    "m-phi3-padding-crosses",
    "Phi-3, a row alone, or padded on the right beyond the switch, positions by column",
    ROPE,
    LEAK_EITHER,
    floor=1e-3,
    origin="rotary_emb",
)
def _() -> Pair:
    ids, mask = pad([words(9)], to=20)
    model = models.phi3(original=12)
    return Pair(
        Side(model, {"input_ids": row(words(9))}, at(torch.ones(1, 9))),
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
    )


# ---------------------------------------------------------------------- 32 and others: caches


@case(
    "32-relative-key-cache",
    "Relative key positions whose queries restart at 0 in a cached step",
    POSITIONS,
    floor=1e-2,
    origin=("attend", "(model)/", "distance"),
    source="transformers#20203",
    note="transformers dropped `relative_key` from BERT; the one line lives in a decoder of the corpus",
)
def _() -> Pair:
    return cached(seeded(decoders.RestartingDecoder))


@case("m-relative-key-cache-sound", "The same with the queries' true positions", *SOUND)
def _() -> Pair:
    return cached(seeded(decoders.RelativeKeyDecoder))


@case(
    "m-decode-position-off",
    "GPT-2, decoding steps with position ids one too high",
    POSITIONS,
    origin="wpe/embedding",
    floor=0.05,
)
def _() -> Pair:
    def off(start: int, columns: int) -> Tensor:
        return (torch.arange(start, start + columns) + (start > 0))[None]

    return cached(models.gpt2("sdpa"), position_ids=off)


@case(
    "m-decode-position-restart",
    "Llama, decoding steps whose position ids restart at 0",
    POSITIONS,
    origin="rotary_emb",
    floor=0.01,
)
def _() -> Pair:
    def zero(start: int, columns: int) -> Tensor:
        return torch.arange(columns)[None]

    ids = row(words(10))
    model = models.llama("sdpa")
    calls = [{"input_ids": ids[:, :6]}]
    calls += [{"input_ids": ids[:, n : n + 1], "position_ids": zero(n, 1)} for n in range(6, 10)]
    masks = [torch.ones(1, 6), *[torch.ones(1, 1)] * 4]
    return Pair(
        Side(model, calls, joined(), layout=lambda fp: fp.Layout.steps(masks)),
        Side(model, {"input_ids": ids}, joined()),
    )


@case(
    "m-decode-mask-hole",
    "Llama, decoding steps whose mask hides the first token",
    MASK,
    origin="self_attn",
    floor=0.01,
)
def _() -> Pair:
    ids = row(words(10))
    model = models.llama("sdpa")
    calls = [{"input_ids": ids[:, :6]}]
    for n in range(6, 10):
        mask = torch.ones(1, n + 1, dtype=torch.long)
        mask[0, 0] = 0
        calls.append(
            {"input_ids": ids[:, n : n + 1], "attention_mask": mask, "position_ids": torch.tensor([[n]])}
        )
    masks = [torch.ones(1, 6), *[torch.ones(1, 1)] * 4]
    return Pair(
        Side(model, calls, joined(), layout=lambda fp: fp.Layout.steps(masks)),
        Side(model, {"input_ids": ids}, joined()),
    )


@case(
    "m-decode-mask-short",
    "A decoder whose step mask hides the newest cached key",
    MASK,
    CACHE,
    floor=1e-3,
    origin="scaled_dot_product_attention",
)
def _() -> Pair:
    return cached(seeded(decoders.ShortMaskDecoder))


@case(
    "m-decode-is-causal",
    "`is_causal` in a cached step aligns with the first key",
    MASK,
    CACHE,
    floor=1e-2,
    origin="scaled_dot_product_attention",
)
def _() -> Pair:
    return cached(seeded(decoders.TopLeftDecoder))


@case(
    "m-static-cache-empty-slots",
    "A decoder with a cache of fixed size whose empty slots are attended to, against one that grows its cache",
    FUNCTION,
    floor=1e-3,
    origin=("scaled_dot_product_attention", "transpose"),
    note="two models, and they differ as much where neither is given a cache",
)
def _() -> Pair:
    return cached(seeded(decoders.LeakyStaticDecoder), model_b=seeded(decoders.CachedDecoder))


@case(
    "m-cache-rows-swapped",
    "The cache of each row handed to the next row",
    CACHE,
    floor=1e-2,
    origin=("cat", "scaled_dot_product_attention"),
)
def _() -> Pair:
    return cached(seeded(decoders.SwappedRowsDecoder), rows=3)


@case(
    "m-cache-of-another-prompt",
    "GPT-2 given the cache of another prompt",
    CACHE,
    MASK,
    floor=1e-2,
    origin="attn",
)
def _() -> Pair:
    model = models.gpt2("eager")
    with torch.no_grad():
        stale = model(input_ids=row(words(4, 7))).past_key_values
    given = {"input_ids": row(words(9)), "position_ids": torch.arange(9)[None]}
    return Pair(
        Side(model, given, whole(), layout=_by_coordinates((0, 9))),
        Side(model, {**given, "past_key_values": stale}, whole(), layout=_by_coordinates((0, 9))),
    )


@case(
    "m-cache-edited",
    "Llama, the cache rounded to int8 between prefill and step",
    CACHE,
    floor=1e-4,
    origin=("self_attn", "cat"),
    note="the second call names a cache, and finds it changed",
)
def _() -> Pair:
    model = models.llama("sdpa")
    ids = row(words(8))
    with torch.no_grad():
        clean, rounded = (model(input_ids=ids[:, :6]).past_key_values for _ in range(2))
    for layer in rounded.layers:
        for name in ("keys", "values"):
            states = getattr(layer, name)
            scale = states.abs().amax() / 127
            setattr(layer, name, (states / scale).round() * scale)
    step = {"input_ids": ids[:, 6:]}
    return Pair(
        Side(model, {**step, "past_key_values": clean}, whole()),
        Side(model, {**step, "past_key_values": rounded}, whole()),
    )


def _after_another(model: Any) -> Pair:
    one, other = row(words(9)), row(words(6, 1))
    return Pair(
        Side(model, {"input_ids": one}, whole(), layout=_by_coordinates((0, 9))),
        Side(
            model,
            [{"input_ids": other}, {"input_ids": one}],
            whole(call=1),
            layout=_by_coordinates((1, 6), (0, 9)),
        ),
    )


@case(
    "m-state-in-buffer",
    "A recurrent state kept in a buffer, not reset between sentences",
    STATE,
    floor=1e-3,
    origin=("(model)/", "mix/linear"),
)
def _() -> Pair:
    return _after_another(seeded(decoders.Streaming))


@case(
    "m-cache-in-attribute",
    "A cache kept in an attribute of the module, not reset between sentences",
    STATE,
    floor=1e-3,
    origin=("(model)/", "cat"),
    note="an attribute that is no buffer must be put back too, else the run does not repeat",
)
def _() -> Pair:
    return _after_another(seeded(decoders.ForgetfulCache))


# ---------------------------------------------------------------------- left in the model, by default layouts


def _after(model: Any, inputs: dict[str, Any], before: dict[str, Any]) -> Pair:
    """A call at once, and after one on other rows; nothing says which rows the calls hold but what is in them."""
    return Pair(Side(model, inputs, whole()), Side(model, [before, inputs], whole(call=1)))


def _uncached(*rows: list[int]) -> list[dict[str, Any]]:
    return [{"input_ids": row(one), "use_cache": False} for one in rows]


@case(
    "m-state-ntk-default-layout",
    "Dynamic NTK, a short row at once or after a long one: the base stays (patched)",
    semantic("length_dependent_rope", "module_state", by_design=one_of(False, None, True)),
    floor=1e-3,
    origin="rotary_emb",
)
def _() -> Pair:
    model = _dynamic_llama()
    model.model.rotary_emb.original_max_seq_len = 0
    return _after(model, *_uncached(words(9), words(40, 1)))


@case("m-state-ntk-default-layout-sound", "The same, unpatched: the base is reset", *SOUND)
def _() -> Pair:
    return _after(_dynamic_llama(), *_uncached(words(9), words(40, 1)))


def _bird(before: int) -> Pair:
    ids, others = row(words(48)), row(words(before, 1))
    return _after(
        models.big_bird(),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        {"input_ids": others, "attention_mask": torch.ones_like(others)},
    )


@case(
    "m-state-big-bird-switch",
    "BigBird, a long row at once or after a short one, which switches it to full attention for good",
    STATE,
    floor=1e-3,
    source="transformers, BigBirdModel.set_attention_type",
)
def _() -> Pair:
    return _bird(6)


@case("m-state-big-bird-sound", "The same after a long row, which leaves the attention as it is", *SOUND)
def _() -> Pair:
    return _bird(52)


@case(
    "m-state-running-mean", "A norm that subtracts a running mean, which each call moves", STATE, floor=1e-3
)
def _() -> Pair:
    return _after(seeded(decoders.Running), {"input_ids": row(words(6))}, {"input_ids": row(words(8, 1))})


@case("m-state-running-mean-sound", "The same with a mean that stays", *SOUND)
def _() -> Pair:
    model = seeded(decoders.Running)
    model.momentum = 0.0
    return _after(model, {"input_ids": row(words(6))}, {"input_ids": row(words(8, 1))})
