"""Sound runs that look dangerous: packing, experts, recurrences, frames, images."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from . import decoders, mixers, models, modules
from .case import Pair, Side, case
from .exact import gap, picked
from .expect import IDENTICAL, LOW_PRECISION, ROUNDING, SOUND
from .modules import Frames, Tagger, seeded
from .pairs import batched, cached, padded, twice
from .tokens import (
    EOS,
    PAD,
    at,
    first_rows,
    floats,
    loss,
    pad,
    pad_floats,
    positions,
    row,
    whole,
    words,
)

# ---------------------------------------------------------------------- more that users meet


@case(
    "m-packed-block-diagonal",
    "Three rows packed into one, position ids restart, or one by one in a batch",
    *SOUND,
)
def _() -> Pair:
    rows = [words(5), words(7, 1), words(6, 2)]
    ids, mask = pad(rows)
    packed = row(chain(*rows))
    place = torch.cat([torch.arange(len(tokens)) for tokens in rows])[None]
    model = models.llama("sdpa")
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(model, {"input_ids": packed, "position_ids": place, "use_cache": False}, at(torch.ones(1, 18))),
    )


@case("m-packed-eager-bf16", "The same in bf16 and eager", *SOUND)
def _() -> Pair:
    rows = [words(5), words(7, 1)]
    ids, mask = pad(rows)
    place = torch.cat([torch.arange(len(tokens)) for tokens in rows])[None]
    model = models.cast(models.llama("eager"), torch.bfloat16)
    given = {"input_ids": row(chain(*rows)), "position_ids": place, "use_cache": False}
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(model, given, at(torch.ones(1, 12)), layout=lambda fp: fp.Layout.packed(place)),
    )


@case("m-mask-of-ones", "Llama without a mask, or with one of ones", *SOUND)
def _() -> Pair:
    pair = twice(models.llama("sdpa"))
    pair.b.change(attention_mask=torch.ones(1, 9, dtype=torch.long))
    return pair


@case("m-mask-4d", "Llama padded on the left with a 2-D mask, or the same mask in four dimensions", *SOUND)
def _() -> Pair:
    ids, mask = pad([words(9)], "left", 13)
    allowed = torch.ones(13, 13, dtype=torch.bool).tril()[None, None] & mask[:, None, None, :].bool()
    place = positions(mask)
    model = models.llama("sdpa")
    layout = lambda fp: fp.Layout.from_mask(mask)  # noqa: E731
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask, "position_ids": place}, at(mask)),
        Side(
            model,
            {"input_ids": ids, "attention_mask": allowed, "position_ids": place},
            at(mask),
            layout=layout,
        ),
    )


@case("m-embeddings-given", "GPT-2 given token ids, or the embeddings of the same tokens", *SOUND)
def _() -> Pair:
    model = models.gpt2("sdpa")
    ids = row(words(9))
    embedded = model.transformer.wte(ids).detach()
    return Pair(Side(model, {"input_ids": ids}, whole()), Side(model, {"inputs_embeds": embedded}, whole()))


@case("m-mixtral-padded", "Mixtral padded on the right: experts see other tokens too", *SOUND)
def _() -> Pair:
    return padded(models.mixtral("sdpa"), mates=1)


@case("m-mixtral-batch-bf16", "Mixtral bf16, alone or among 4", *SOUND, note="routing may flip by rounding")
def _() -> Pair:
    return batched(models.cast(models.mixtral("eager"), torch.bfloat16), mates=3)


def _flips(pair: Pair) -> None:
    a, b = picked(pair.a), picked(pair.b)
    assert gap(a, b) > 1e-2, "the last bit is meant to decide between two experts"


@case(
    "m-choice-by-last-bit",
    "A choice between two experts, near a tie that rounding decides",
    ROUNDING,
    check=_flips,
    note="a large native gap, none in float64",
)
def _() -> Pair:
    # The sum of two orders of the same terms: equal in exact arithmetic, apart by the last bit here.
    class Tie(mixers.NearTieExperts):
        backwards = False

        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            parts = hidden * 0.1
            order = range(parts.shape[-1])
            total = torch.zeros_like(parts[..., 0])
            for index in reversed(order) if self.backwards else order:
                total = total + parts[..., index]
            reference = parts.double().sum(-1).to(parts.dtype)
            score = (total - reference)[..., None] + 1e-9
            return hidden + torch.where(score > 0, self.left(hidden), self.right(hidden))

    a, b = (seeded(Tagger, Tie()) for _ in range(2))
    b.mixers[0].backwards = True
    return twice(a, b, length=24)


@case("m-mamba-right", "Mamba padded on the right", *SOUND)
def _() -> Pair:
    return padded(models.mamba(), "right")


@case("m-mamba-left", "Mamba padded on the left, padding states set to zero as transformers does", *SOUND)
def _() -> Pair:
    return padded(models.mamba(), "left")


@case("m-vit-batch", "ViT, an image alone or among four", *SOUND)
def _() -> Pair:
    images = floats(4, 3, 16, 16)
    model = models.vit("sdpa")
    return Pair(
        Side(model, {"pixel_values": images[:1]}, whole()),
        Side(model, {"pixel_values": images}, first_rows(1)),
    )


@case("m-t5-padded", "T5, encoder padded on the right with its mask", *SOUND)
def _() -> Pair:
    ids, mask = pad([words(9)], to=13)
    target = row([PAD, *words(5, 3)])
    model = models.t5()
    return Pair(
        Side(model, {"input_ids": row(words(9)), "decoder_input_ids": target}, whole()),
        Side(model, {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}, whole()),
    )


@case("m-bart-both-padded", "BART, encoder and decoder padded in a batch, with both masks", *SOUND)
def _() -> Pair:
    ids, mask = pad([words(7), words(11, 1)])
    target, target_mask = pad([[EOS, *words(4, 3)], [EOS, *words(6, 4)]])
    model = models.bart("sdpa")
    given = {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": target,
        "decoder_attention_mask": target_mask,
    }
    return Pair(
        Side(
            model,
            {"input_ids": row(words(7)), "decoder_input_ids": row([EOS, *words(4, 3)])},
            at(torch.ones(1, 5)),
        ),
        Side(model, given, at(target_mask, rows=[0])),
    )


@case("m-conv-masked", "Depthwise convolution, padding set to zero before it", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Depthwise("both", masked=True)), "right")


@case("m-conv-causal-right", "Convolution that looks back only, padded on the right", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Depthwise("left")), "right")


@case("m-lstm-right", "LSTM, padded on the right", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Recurrence(nn.LSTM)), "right")


@case("m-gru-packed", "Bidirectional GRU over packed rows, padded on the right", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Recurrence(nn.GRU, both=True, packed=True)), "right")


@case(
    "m-torch-encoder",
    "nn.TransformerEncoder with its key padding mask, padded on the right",
    *SOUND,
    note="its fast path must not be lost under a function mode",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.TorchEncoder()), "right")


@case("m-group-norm-token", "GroupNorm of each token by itself, padded on the right", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.TokenGroupNorm(), modules.Feedforward()), "right")


@case("m-float-rows", "Frames in three rows in another order: paired by their values", *SOUND)
def _() -> Pair:
    x = floats(3, 10, 32)
    model = seeded(Frames, modules.Feedforward(), modules.Attention())
    return Pair(
        Side(model, {"frames": x}, whole()),
        Side(model, {"frames": x[[1, 2, 0]]}, lambda outputs: outputs[0][[2, 0, 1]]),
    )


@case("m-float-padded", "Frames padded on the left with zeros, with their mask", *SOUND)
def _() -> Pair:
    x = floats(1, 10, 32)
    longer, mask = pad_floats(x, "left", 5)
    model = seeded(Frames, modules.Feedforward(), modules.Attention())
    a = {"frames": x, "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    b = {"frames": longer, "attention_mask": mask}
    return Pair(Side(model, a, at(torch.ones(1, 10))), Side(model, b, at(mask)))


@case("m-scale-per-token", "int8 activations with a scale for each token, alone or in a batch", *SOUND)
def _() -> Pair:
    return batched(seeded(Tagger, modules.Plain(mixers.DynamicLinear(over="token"))))


@case("m-capacity-not-reached", "Experts with room for every token, alone or in a batch", *SOUND)
def _() -> Pair:
    return batched(seeded(Tagger, mixers.CapacityExperts(capacity=500)), mates=3)


@case("m-eval-batchnorm", "BatchNorm in eval mode, alone or in a batch", *SOUND)
def _() -> Pair:
    model = seeded(mixers.Tabular)
    x = floats(6, 12)
    return Pair(Side(model, {"x": x[:1]}, whole()), Side(model, {"x": x}, first_rows(1)))


@case("m-labels-padded", "Labels masked at the padding only: the loss is that of the row alone", *SOUND)
def _() -> Pair:
    tokens = words(9)
    ids, mask = pad([tokens], to=13)
    labels = ids.masked_fill(mask == 0, -100)
    model = models.llama("sdpa")
    return Pair(
        Side(model, {"input_ids": row(tokens), "labels": row(tokens)}, loss),
        Side(model, {"input_ids": ids, "attention_mask": mask, "labels": labels}, loss),
    )


@case(
    "m-sum-in-a-loop",
    "A sum made at once, or term by term",
    ROUNDING,
    truth="same",
    note="other ops, the same function",
)
def _() -> Pair:
    class Sum(nn.Module):
        loop = False

        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            if not self.loop:
                return hidden + hidden.sum(-1, keepdim=True)
            total = torch.zeros_like(hidden[..., :1])
            for index in range(hidden.shape[-1]):
                total = total + hidden[..., index, None]
            return hidden + total

    a, b = (seeded(Tagger, Sum()) for _ in range(2))
    b.mixers[0].loop = True
    return twice(a, b)


@case("m-hidden-states", "Llama padded on the left, all hidden states returned", *SOUND)
def _() -> Pair:
    return padded(models.llama("sdpa"), "left", position_ids=True, more={"output_hidden_states": True})


@case("m-padded-both-sides", "Llama with padding before and behind, positions from the mask", *SOUND)
def _() -> Pair:
    tokens = words(9)
    ids = row([PAD, PAD, PAD, *tokens, PAD, PAD])
    mask = (ids != PAD).long()
    model = models.llama("sdpa")
    b = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    return Pair(Side(model, {"input_ids": row(tokens)}, at(torch.ones(1, 9))), Side(model, b, at(mask)))


@case(
    "m-padding-content",
    "Llama padded on the left with one token or with another, positions from the mask",
    IDENTICAL,
)
def _() -> Pair:
    ids, mask = pad([words(9)], "left", 13)
    given = {"attention_mask": mask, "position_ids": positions(mask)}
    model = models.llama("eager")
    other = ids.masked_fill(mask == 0, EOS)
    return Pair(
        Side(model, {"input_ids": ids, **given}, at(mask)),
        Side(model, {"input_ids": other, **given}, at(mask)),
    )


@case("m-mask-of-bools", "BERT padded on the right, its mask in integers or in bools", IDENTICAL)
def _() -> Pair:
    ids, mask = pad([words(9), words(13, 1)])
    model = models.bert("sdpa")
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(model, {"input_ids": ids, "attention_mask": mask.bool()}, at(mask)),
    )


@case("m-cache-asked-or-not", "Llama, a cache returned or not", IDENTICAL)
def _() -> Pair:
    pair = twice(models.llama("eager"))
    pair.b.change(use_cache=False)
    return pair


@case("m-t5-left", "T5, encoder padded on the left: relative positions", *SOUND)
def _() -> Pair:
    ids, mask = pad([words(9)], "left", 13)
    target = row([PAD, *words(5, 3)])
    model = models.t5()
    return Pair(
        Side(model, {"input_ids": row(words(9)), "decoder_input_ids": target}, whole()),
        Side(model, {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}, whole()),
    )


@case(
    "m-cache-in-bf16",
    "A cache kept in bf16, steps or one full forward",
    LOW_PRECISION,
    *SOUND[1:],
    truth="same",
)
def _() -> Pair:
    class Narrow(decoders.CachedDecoder):
        def kept(self, key: Tensor, value: Tensor, length: int) -> tuple[Tensor, ...]:
            return key.to(torch.bfloat16), value.to(torch.bfloat16)

        def extend(
            self, cache: tuple[Tensor, ...] | None, key: Tensor, value: Tensor
        ) -> tuple[Tensor, Tensor]:
            if cache is not None:
                cache = tuple(part.to(key.dtype) for part in cache)
            return super().extend(cache, key, value)

    return cached(seeded(Narrow), model_b=seeded(decoders.CachedDecoder))


@case("m-cnn-batch", "A convolutional network, one image or three", *SOUND)
def _() -> Pair:
    images = floats(3, 3, 12, 12)
    model = seeded(mixers.Images)
    return Pair(Side(model, {"x": images[:1]}, whole()), Side(model, {"x": images}, first_rows(1)))
