"""What goes in differs: token ids, labels, parameters, buffers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from . import mixers, models, modules
from .case import DIFFERS, UNCHECKED, Pair, Side, case
from .cases_precision import adapted_llama, lora_distance
from .exact import gap, outputs, picked
from .expect import BUFFERS, IDENTICAL, LABELS, PARAMETERS, TOKENS, inputs, semantic
from .modules import Frames, seeded
from .pairs import padded, twice
from .tokens import BOS, EOS, first_tokens, floats, loss, pad, row, whole, words

# ---------------------------------------------------------------------- 27: labels


def _loss_alone(pair: Pair) -> None:
    """Logits agree, losses do not."""
    a, b = outputs(pair.a)[0], outputs(pair.b)[0]
    assert abs(float(a.loss - b.loss)) > 1e-3
    tokens = a.logits.shape[1]
    assert gap(a.logits[0], b.logits[0, :tokens]) < 1e-5


@case(
    "27-labels-eos-masked",
    "pad = eos: the real end-of-sequence label is masked with the padding",
    LABELS,
    truth=UNCHECKED,
    check=_loss_alone,
    source="transformers#23530",
)
def _() -> Pair:
    tokens = [*words(8), EOS]
    ids, mask = pad([tokens], to=13)
    ids[mask == 0] = EOS
    model = models.llama("sdpa")
    given = {"input_ids": ids, "attention_mask": mask}
    return Pair(
        Side(model, {**given, "labels": ids.masked_fill(mask == 0, -100)}, loss),
        Side(model, {**given, "labels": ids.masked_fill(ids == EOS, -100)}, loss),
    )


@case(
    "27-labels-eos-masked-padded",
    "The same, alone with its label against padded without it",
    LABELS,
    truth=UNCHECKED,
    check=_loss_alone,
)
def _() -> Pair:
    tokens = [*words(8), EOS]
    ids, mask = pad([tokens], to=13)
    ids[mask == 0] = EOS
    model = models.gpt2("sdpa")
    b = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(ids == EOS, -100)}
    return Pair(Side(model, {"input_ids": row(tokens), "labels": row(tokens)}, loss), Side(model, b, loss))


@case(
    "m-labels-shifted-twice",
    "Labels shifted by the user, and again by the model",
    LABELS,
    truth=UNCHECKED,
    check=_loss_alone,
)
def _() -> Pair:
    tokens = row(words(9))
    model = models.llama("sdpa")
    shifted = torch.cat([tokens[:, 1:], torch.full((1, 1), -100)], 1)
    return Pair(
        Side(model, {"input_ids": tokens, "labels": tokens}, loss),
        Side(model, {"input_ids": tokens, "labels": shifted}, loss),
    )


@case(
    "m-labels-padding-counted", "Labels not masked at the padding", LABELS, truth=UNCHECKED, check=_loss_alone
)
def _() -> Pair:
    ids, mask = pad([words(9)], to=13)
    model = models.llama("sdpa")
    given = {"input_ids": ids, "attention_mask": mask}
    return Pair(
        Side(model, {**given, "labels": ids.masked_fill(mask == 0, -100)}, loss),
        Side(model, {**given, "labels": ids}, loss),
    )


@case(
    "m-labels-of-mates",
    "The loss of a row alone, or the mean over it and its mates",
    inputs("labels"),
    semantic(None, "labels", "batch_statistics"),
    truth=UNCHECKED,
    check=_loss_alone,
    note="the pairs that enter the loss differ, though at coordinates that one run alone has",
)
def _() -> Pair:
    ids = torch.tensor([words(9), words(9, 1)])
    model = models.llama("sdpa")
    return Pair(
        Side(model, {"input_ids": ids[:1], "labels": ids[:1]}, loss),
        Side(model, {"input_ids": ids, "labels": ids}, loss),
    )


# ---------------------------------------------------------------------- 28: token ids


@case("28-bos-twice", "BOS added twice in one run", TOKENS, truth=DIFFERS)
def _() -> Pair:
    tokens = words(8)
    model = models.llama("sdpa")
    return Pair(
        Side(model, {"input_ids": row([BOS, BOS, *tokens])}, first_tokens(9)),
        Side(model, {"input_ids": row([BOS, *tokens])}, first_tokens(9)),
    )


@case("28-one-token-differs", "One token of nine differs, bf16, padded on the left", TOKENS, truth=DIFFERS)
def _() -> Pair:
    pair = padded(models.cast(models.llama("eager"), torch.bfloat16), "left", position_ids=True)
    changed = pair.b.inputs["input_ids"].clone()
    changed[0, 8] = 7
    pair.b.change(input_ids=changed)
    return pair


@case(
    "m-token-types-differ",
    "BERT, token type ids of 0 or of 1",
    inputs("token_ids", None),
    truth=DIFFERS,
    note="an integer input that is no layout; no slug of its own",
)
def _() -> Pair:
    pair = twice(models.bert("sdpa"), mask=True)
    pair.b.change(token_type_ids=torch.ones(1, 9, dtype=torch.long))
    return pair


@case(
    "m-frames-differ-by-an-ulp",
    "Float inputs, one element one ULP away",
    inputs("token_ids", None),
    truth=UNCHECKED,
    note="float inputs have no slug of their own",
)
def _() -> Pair:
    x = floats(1, 10, 32)
    y = x.clone()
    y[0, 4, 3] = torch.nextafter(y[0, 4, 3], torch.tensor(float("inf")))
    model = seeded(Frames, modules.Feedforward())
    return Pair(Side(model, {"frames": x}, whole()), Side(model, {"frames": y}, whole()))


# ---------------------------------------------------------------------- 29: parameters and buffers


def _nudge(parameter: Tensor, index: tuple[int, ...]) -> None:
    """One ULP towards zero."""
    with torch.no_grad():
        value = parameter[index]
        bits = value.view(torch.int32 if parameter.dtype == torch.float32 else torch.int16)
        parameter[index] = (bits - 1).view(parameter.dtype)


def _one_weight(dtype: torch.dtype, name: str, index: tuple[int, ...]) -> Pair:
    a = models.cast(models.llama("sdpa"), dtype)
    b = copy.deepcopy(a)
    _nudge(b.get_parameter(name), index)
    return twice(a, b)


def _one_bit(pair: Pair) -> None:
    a, b = (dict(side.model.named_parameters()) for side in (pair.a, pair.b))
    assert sum(int((a[name] != b[name]).sum()) for name in a) == 1


def _one_bit_that_shows(pair: Pair) -> None:
    _one_bit(pair)
    assert gap(picked(pair.a), picked(pair.b)) > 0


_EMBEDDING = ("model.embed_tokens.weight", (words(9)[1], 20))


@case(
    "29-one-weight-fp32",
    "One weight of a token's embedding differs by one ULP",
    PARAMETERS,
    truth=UNCHECKED,
    check=_one_bit_that_shows,
)
def _() -> Pair:
    return _one_weight(torch.float32, *_EMBEDDING)


@case(
    "29-one-weight-bf16",
    "One weight of a bf16 model differs by one ULP",
    PARAMETERS,
    truth=UNCHECKED,
    check=_one_bit_that_shows,
)
def _() -> Pair:
    return _one_weight(torch.bfloat16, *_EMBEDDING)


@case(
    "29-one-weight-unseen",
    "One weight differs by one ULP, which rounding swallows before the result",
    PARAMETERS,
    IDENTICAL,
    truth=UNCHECKED,
    check=_one_bit,
    note="what went in differs, what came out does not",
)
def _() -> Pair:
    return _one_weight(torch.float32, "model.layers.1.mlp.up_proj.weight", (3, 5))


@case(
    "29-one-weight-padded",
    "One weight differs by one ULP, and run b is padded on the left",
    PARAMETERS,
    IDENTICAL,
    truth=UNCHECKED,
    check=_one_bit,
    note="two causes: the inputs weigh more than rounding, which swallows both on some processors",
)
def _() -> Pair:
    b = models.llama("sdpa")
    _nudge(b.model.layers[0].self_attn.q_proj.weight, (1, 2))
    return padded(models.llama("sdpa"), "left", position_ids=True, model_b=b)


def _not_by_rounding(pair: Pair) -> None:
    a, b = (dict(side.model.named_parameters()) for side in (pair.a, pair.b))
    assert any(not torch.equal(a[name].to(b[name].dtype), b[name]) for name in a)


@case(
    "m-bf16-one-weight-off",
    "fp32 or bf16, one bf16 weight one ULP from the rounded one",
    PARAMETERS,
    truth=UNCHECKED,
    check=_not_by_rounding,
)
def _() -> Pair:
    b = models.cast(models.llama("sdpa"), torch.bfloat16)
    _nudge(b.model.layers[1].self_attn.o_proj.weight, (4, 4))
    return twice(models.llama("sdpa"), b)


@case(
    "m-bf16-truncated",
    "fp32 or bf16, the bf16 weights cut off instead of rounded",
    PARAMETERS,
    truth=UNCHECKED,
    check=_not_by_rounding,
    note="up to one ULP from the wide weight, not half",
)
def _() -> Pair:
    b = models.gpt2("sdpa")
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.copy_((parameter.view(torch.int32) & -65536).view(torch.float32))
    return twice(models.gpt2("sdpa"), models.cast(b, torch.bfloat16))


@case("m-tied-weight-changed", "Tied embeddings, one row of them doubled in run b", PARAMETERS, truth=DIFFERS)
def _() -> Pair:
    a, b = (models.gpt2("sdpa", tie_word_embeddings=True) for _ in range(2))
    with torch.no_grad():
        b.transformer.wte.weight[words(9)[2]] *= 2
    return twice(a, b)


@case("m-untied-head", "Tied embeddings, or a head of its own with other weights", PARAMETERS, truth=DIFFERS)
def _() -> Pair:
    a, b = (models.gpt2("sdpa", tie_word_embeddings=True) for _ in range(2))
    b.lm_head.weight = nn.Parameter(b.lm_head.weight.detach().clone() * 1.01)
    return twice(a, b)


@case(
    "m-experts-swapped-in-weights",
    "Mixtral, two experts' weights swapped in run b",
    PARAMETERS,
    truth=DIFFERS,
)
def _() -> Pair:
    a, b = models.mixtral("eager"), models.mixtral("eager")
    with torch.no_grad():
        for name, parameter in b.named_parameters():
            if "experts" in name and parameter.dim() == 3:
                parameter.copy_(parameter[[1, 0, 2, 3]])
    return twice(a, b)


@case("m-running-mean-differs", "BatchNorm in eval mode, its running mean differs", BUFFERS, truth=DIFFERS)
def _() -> Pair:
    a, b = seeded(mixers.Tabular), seeded(mixers.Tabular)
    b.norm.running_mean += 0.1
    x = floats(3, 12)
    return Pair(Side(a, {"x": x}, whole()), Side(b, {"x": x}, whole()))


@case("m-rotary-base", "Llama with a rotary base of 10,000 or of 500,000", BUFFERS, truth=DIFFERS)
def _() -> Pair:
    a, b = (
        models.llama("sdpa", rope_parameters={"rope_type": "default", "rope_theta": theta})
        for theta in (1e4, 5e5)
    )
    return twice(a, b)


def _wrong_scale(pair: Pair) -> None:
    assert lora_distance(pair, of_terms=True) > 2


@case(
    "m-lora-wrong-scale",
    "LoRA unmerged, or merged with half its scale",
    PARAMETERS,
    truth=UNCHECKED,
    check=_wrong_scale,
)
def _() -> Pair:
    adapted = adapted_llama(torch.bfloat16)
    halved = copy.deepcopy(adapted)
    for module in halved.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] /= 2
    return twice(adapted, halved.merge_and_unload())


@case("m-lora-or-base", "LoRA, or the base model without its adapters", PARAMETERS, truth=DIFFERS)
def _() -> Pair:
    adapted = adapted_llama(torch.float32)
    return twice(adapted, models.llama("sdpa"))


@case(
    "m-weights-rounded-to-int8",
    "GPT-2, or the same with every matrix rounded to int8 steps",
    PARAMETERS,
    semantic("quantization"),
    inputs("quantization"),
    truth=DIFFERS,
    note="quantised weights in place: nothing but the parameters differs",
)
def _() -> Pair:
    a, b = models.gpt2("sdpa"), models.gpt2("sdpa")
    with torch.no_grad():
        for parameter in b.parameters():
            if parameter.dim() == 2:
                scale = parameter.abs().amax(-1, keepdim=True) / 127
                parameter.copy_((parameter / scale).round() * scale)
    return twice(a, b)
