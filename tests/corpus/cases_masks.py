"""Positions and masks that are missing, shifted or ignored."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mistral import modeling_mistral

from . import models, modules
from .case import Case, Pair, Side, add, case
from .exact import sound_unpatched
from .expect import LEAK, LEAK_EITHER, LEAK_UNMASKED, MASK, POSITIONS, SOUND, one_of, semantic
from .modules import Tagger, seeded
from .pairs import padded, replaced, twice
from .tokens import EOS, PAD, at, pad, row, whole, words

# ---------------------------------------------------------------------- 12, 14, 15, 20: positions and masks


@case(
    "12-gpt2-left-no-positions",
    "GPT-2 padded on the left, position ids left out",
    POSITIONS,
    origin="wpe/embedding",
    floor=0.2,
    source="transformers#3021, #21080",
)
def _() -> Pair:
    return padded(models.gpt2("sdpa"), "left")


@case(
    "12-gpt2-left-no-positions-bf16",
    "The same in bf16, eager, with mates",
    POSITIONS,
    origin="wpe/embedding",
    floor=0.2,
)
def _() -> Pair:
    return padded(models.cast(models.gpt2("eager"), torch.bfloat16), "left", mates=2)


@case(
    "m-bert-left-no-positions",
    "BERT padded on the left: learned positions shift",
    POSITIONS,
    origin="position_embeddings/embedding",
    floor=0.05,
)
def _() -> Pair:
    return padded(models.bert("sdpa"), "left")


@case(
    "m-roberta-positions-from-zero",
    "RoBERTa given position ids that count from 0, where its own begin behind padding",
    POSITIONS,
    origin="position_embeddings/embedding",
    floor=0.05,
)
def _() -> Pair:
    pair = twice(models.roberta("sdpa"), mask=True)
    pair.b.change(position_ids=torch.arange(9)[None])
    return pair


@case(
    "m-llama-gap-in-positions",
    "Llama given position ids with a gap in the middle",
    POSITIONS,
    origin="rotary_emb",
    floor=1e-3,
)
def _() -> Pair:
    pair = twice(models.llama("sdpa"))
    shifted = torch.arange(9) + (torch.arange(9) >= 4)
    pair.a.change(attention_mask=torch.ones(1, 9, dtype=torch.long))
    pair.b.inputs = {**pair.a.inputs, "position_ids": shifted[None]}
    return pair


@case(
    "14-llama-mask-dropped",
    "Llama padded on the left, the mask dropped, positions right",
    MASK,
    origin="self_attn",
    floor=1e-2,
)
def _() -> Pair:
    pair = padded(models.llama("sdpa"), "left", position_ids=True)
    return _without_mask(pair)


@case(
    "14-llama-mask-dropped-mates",
    "Llama eager, padded on the left among two, the mask dropped in run b",
    MASK,
    origin="self_attn",
    floor=1e-2,
)
def _() -> Pair:
    pair = padded(models.llama("eager"), "left", mates=2, position_ids=True)
    return _without_mask(pair)


@case(
    "14-bert-mask-dropped", "BERT padded on the right, the mask dropped", MASK, origin="attention", floor=1e-2
)
def _() -> Pair:
    return _without_mask(padded(models.bert("sdpa"), mates=1))


def _without_mask(pair: Pair) -> Pair:
    given = dict(pair.b.inputs)
    mask = given.pop("attention_mask")
    pair.b.inputs = given
    pair.b.layout = lambda fp: fp.Layout.from_mask(mask)
    return pair


def _mask_moved(model: Any, side: str, column: int, value: int, **how: Any) -> Pair:
    """The mask of run b wrong in one column; the layout by hand says what is true."""
    pair = padded(model, side, **how)
    real = pair.b.inputs["attention_mask"]
    wrong = real.clone()
    wrong[0, column] = value
    pair.b.change(attention_mask=wrong)
    pair.b.layout = lambda fp: fp.Layout.from_mask(real)
    return pair


@case(
    "m-mask-one-too-many-left",
    "Llama padded on the left, the mask lets one padding column in",
    MASK,
    origin=("self_attn", "mask"),
    floor=1e-3,
)
def _() -> Pair:
    return _mask_moved(models.llama("sdpa"), "left", 3, 1, position_ids=True)


@case(
    "m-mask-one-too-many-right",
    "BERT eager padded on the right, the mask lets one padding column in",
    MASK,
    origin=("attention", "mask"),
    floor=1e-3,
)
def _() -> Pair:
    return _mask_moved(models.bert("eager"), "right", 9, 1)


@case(
    "m-mask-one-too-few",
    "BERT padded on the right, the mask hides the last token",
    MASK,
    origin=("attention", "mask"),
    floor=1e-3,
)
def _() -> Pair:
    return _mask_moved(models.bert("sdpa"), "right", 8, 0)


@case(
    "m-bart-decoder-left",
    "BART, decoder padded on the left with its mask: learned positions shift",
    POSITIONS,
    origin="embed_positions",
    floor=0.02,
)
def _() -> Pair:
    target, mask = pad([[EOS, *words(5, 3)]], "left", 9)
    model = models.bart("sdpa")
    given = {"input_ids": row(words(9)), "decoder_attention_mask": mask}
    return Pair(
        Side(
            model,
            {"input_ids": row(words(9)), "decoder_input_ids": row([EOS, *words(5, 3)])},
            at(torch.ones(1, 6)),
        ),
        Side(model, {**given, "decoder_input_ids": target}, at(mask)),
    )


@case(
    "m-positions-and-bf16",
    "GPT-2 fp32 alone, or bf16 and padded on the left without position ids",
    POSITIONS,
    origin="wpe/embedding",
    floor=0.2,
    note="two causes: a real one and rounding",
)
def _() -> Pair:
    return padded(models.gpt2("sdpa"), "left", model_b=models.cast(models.gpt2("sdpa"), torch.bfloat16))


def _narrower_under_padding(config: Any, attention_mask: Tensor | None = None, **given: Any) -> Any:
    """transformers' own mask; its window one short wherever there is padding."""
    from transformers.masking_utils import create_sliding_window_causal_mask

    if attention_mask is not None and not bool(attention_mask.all()):
        config = copy.copy(config)
        config.sliding_window -= 1
    return create_sliding_window_causal_mask(config=config, attention_mask=attention_mask, **given)


def _window_patch() -> Any:
    return replaced(modeling_mistral, "create_sliding_window_causal_mask", _narrower_under_padding)


for _attn in ("sdpa", "eager"):
    for _side in ("left", "right"):
        add(
            Case(
                f"15-mistral-window-{_side}-{_attn}",
                f"Mistral {_attn} padded on the {_side}, its window one short under padding (patched)",
                lambda attn=_attn, side=_side: padded(
                    models.mistral(attn), side, position_ids=True, patches=(_window_patch,)
                ),
                (MASK,),
                "differs",
                floor=1e-2,
                check=sound_unpatched,
                origin=("self_attn", "mask"),
                source="transformers#35681, #32522",
            )
        )


@case(
    "m-window-off-in-b",
    "Mistral with a window of 4, or of 3",
    MASK,
    semantic(None, by_design=one_of(None, False)),
    origin=("self_attn", "mask"),
    floor=1e-2,
    note="the masks differ, and so do the configs",
)
def _() -> Pair:
    return twice(models.mistral("sdpa", window=4), models.mistral("sdpa", window=3))


def _t5_given(mask: Tensor | None) -> Pair:
    model = models.t5("eager")
    ids, real = pad([words(9)], to=13)
    target = row([PAD, *words(5, 3)])
    with torch.no_grad():
        hidden = model.encoder(input_ids=ids, attention_mask=real).last_hidden_state
    a = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden[:, :9]), "decoder_input_ids": target}
    b: dict[str, Any] = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=hidden),
        "decoder_input_ids": target,
    }
    if mask is not None:
        b["attention_mask"] = mask

    def layout(columns: Tensor) -> Any:
        def made(fp: Any) -> Any:
            one = fp.Layout.from_mask(columns).calls[0]["main"]
            two = fp.Layout.from_mask(torch.ones_like(target)).calls[0]["main"]
            return fp.Layout([{"encoder_outputs": one, "decoder_input_ids": two}])

        return made

    return Pair(
        Side(model, a, whole(), layout=layout(torch.ones(1, 9))), Side(model, b, whole(), layout=layout(real))
    )


@case(
    "20-t5-encoder-outputs-no-mask",
    "T5 decoder given encoder outputs of a padded row, and no mask",
    MASK,
    origin="EncDecAttention",
    floor=0.05,
    source="transformers#23179",
)
def _() -> Pair:
    return _t5_given(None)


def _own_encoder(model: Any, inputs: Any) -> Any:
    """As a user calls it who encodes once and decodes later: the mask is lost on the way."""
    given = dict(inputs)
    encoded = model.get_encoder()(
        input_ids=given.pop("input_ids"), attention_mask=given.pop("attention_mask")
    )
    return model(encoder_outputs=encoded, **given)


@case(
    "20-bart-encode-then-decode",
    "BART encodes with a mask, then decodes without it",
    MASK,
    origin="encoder_attn",
    floor=0.02,
)
def _() -> Pair:
    ids, mask = pad([words(9)], to=13)
    target = row([EOS, *words(5, 3)])
    model = models.bart("sdpa")
    a = {"input_ids": ids[:, :9], "attention_mask": mask[:, :9], "decoder_input_ids": target}
    b = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}
    return Pair(Side(model, a, whole(), call=_own_encoder), Side(model, b, whole(), call=_own_encoder))


@case(
    "m-t5-encoder-outputs-mask",
    "T5 decoder given encoder outputs of a padded row, and their mask",
    *SOUND,
)
def _() -> Pair:
    return _t5_given(pad([words(9)], to=13)[1])


@case(
    "m-mask-inverted",
    "Attention that takes 1 for padding, padded on the right",
    MASK,
    LEAK_EITHER,
    floor=1e-2,
    origin=("masked_fill", "softmax"),
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.InvertedMaskAttention()))


@case(
    "m-mask-too-weak",
    "Attention that leaves padding a thousandth of the weight",
    MASK,
    LEAK_EITHER,
    floor=1e-5,
    origin="mixers.0",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.WeakMaskAttention()))


@case(
    "m-mask-ignored",
    "Attention that is given a mask and ignores it",
    MASK,
    LEAK_UNMASKED,
    floor=1e-2,
    origin="mixers.0",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.UnmaskedAttention()))


@case(
    "m-softmax-over-queries",
    "Softmax over the queries instead of the keys, padded on the right",
    semantic("attention_mask", "padding_leak", "batch_statistics", None),
    floor=1e-3,
    origin="softmax",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.QuerySoftmaxAttention()))


@case(
    "m-alibi-left-shifted",
    "ALiBi whose queries count real tokens and whose keys count columns, padded on the left",
    POSITIONS,
    floor=1e-3,
    origin="mixers.0",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.ColumnAlibiAttention()), "left")


@case(
    "m-scores-by-length",
    "Scores scaled by the logarithm of the number of columns",
    LEAK,
    LEAK_UNMASKED,
    semantic(None, "attention_mask", "position_ids", by_design=one_of(None, False)),
    floor=1e-3,
    origin="mixers.0",
    note="the number of columns enters, not what they hold",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.LengthScaledAttention()))
