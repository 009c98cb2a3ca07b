"""Sound runs: padding, batches, kernels, caches and compilers round each in their own way."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from . import decoders, models
from .case import UNCHECKED, Case, Pair, Side, add, case
from .expect import IDENTICAL, KERNEL, REDUCTION, ROUNDING, SOUND
from .modules import seeded
from .pairs import batched, cached, padded, twice
from .tokens import (
    at,
    first_rows,
    first_tokens,
    floats,
    joined,
    pad,
    positions,
    row,
    whole,
    words,
)

# ---------------------------------------------------------------------- 1, 2: padding


def _llama_padding(side: str, attn: str, dtype: torch.dtype) -> None:
    short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    number = "01" if dtype is torch.float32 else "02"

    def pair() -> Pair:
        return padded(models.cast(models.llama(attn), dtype), side, length=11, extra=6, position_ids=True)

    add(
        Case(
            f"{number}-llama-{side}-{attn}-{short}",
            f"Llama {short} {attn}, padded on the {side}, positions from the mask",
            pair,
            SOUND,
            "same",
            source="transformers#25420, #29029",
        )
    )


for _side in ("right", "left"):
    for _attn in ("eager", "sdpa"):
        for _dtype in (torch.float32, torch.bfloat16, torch.float16):
            _llama_padding(_side, _attn, _dtype)


@case("01-llama-left-mates-fp32", "Llama fp32 sdpa, padded on the left among three longer rows", *SOUND)
def _() -> Pair:
    return padded(models.llama("sdpa"), "left", mates=3, extra=7, position_ids=True)


@case("02-llama-right-mates-bf16", "Llama bf16 eager, padded on the right among three longer rows", *SOUND)
def _() -> Pair:
    return padded(models.cast(models.llama("eager"), torch.bfloat16), "right", mates=3, extra=7)


# ---------------------------------------------------------------------- 3, 4: batch


@case(
    "03-llama-batch-bf16",
    "Llama bf16, a row alone or among 8 of the same length",
    *SOUND,
    source="transformers#26869",
)
def _() -> Pair:
    return batched(models.cast(models.llama("sdpa"), torch.bfloat16), mates=7, length=12)


@case(
    "03-llama-batch-last-bf16",
    "Llama bf16 eager, a row alone or last among 8",
    *SOUND,
    source="transformers#25921",
)
def _() -> Pair:
    return batched(models.cast(models.llama("eager"), torch.bfloat16), mates=7, place=7, length=12)


@case("03-llama-short-batch-fp32", "Llama fp32, a row of 3 tokens alone or among 8", *SOUND)
def _() -> Pair:
    return batched(models.llama("sdpa"), mates=7, length=3)


def _linear_inputs(width: int = 257) -> tuple[nn.Linear, Tensor]:
    return seeded(nn.Linear, width, 64), floats(1, 48, width)


@case(
    "04-linear-slice-fp32",
    "F.linear of the first 3 of 48 tokens, or of all",
    IDENTICAL,
    REDUCTION,
    truth="same",
    source="pytorch#136338, #124025",
)
def _() -> Pair:
    linear, x = _linear_inputs()

    def layout(columns: int) -> Any:
        return lambda fp: fp.Layout.from_mask(torch.ones(1, columns), samples=["x"])

    return Pair(
        Side(linear, {"input": x[:, :3]}, whole(), layout=layout(3)),
        Side(linear, {"input": x}, first_tokens(3), layout=layout(48)),
    )


@case("04-linear-row-bf16", "F.linear bf16 of one row, or of all 48", IDENTICAL, REDUCTION, truth="same")
def _() -> Pair:
    linear, x = _linear_inputs()
    x = x.transpose(0, 1).bfloat16()
    linear = models.cast(linear, torch.bfloat16)
    return Pair(Side(linear, {"input": x[:1]}, whole()), Side(linear, {"input": x}, first_rows(1)))


# ---------------------------------------------------------------------- 5: attention kernels

_SAME_OPS_OTHER_KERNEL = (IDENTICAL, KERNEL)


@case("05-llama-attention-fp32", "Llama fp32, eager or sdpa", *_SAME_OPS_OTHER_KERNEL, truth="same")
def _() -> Pair:
    return twice(models.llama("eager"), models.llama("sdpa"), length=12)


@case("05-llama-attention-bf16", "Llama bf16, eager or sdpa", *_SAME_OPS_OTHER_KERNEL, truth="same")
def _() -> Pair:
    a, b = (models.cast(models.llama(attn), torch.bfloat16) for attn in ("eager", "sdpa"))
    return twice(a, b, length=12)


@case("05-gpt2-attention-fp32", "GPT-2 fp32, eager or sdpa", *_SAME_OPS_OTHER_KERNEL, truth="same")
def _() -> Pair:
    return twice(models.gpt2("eager"), models.gpt2("sdpa"), length=12)


@case(
    "05-bert-attention-padded",
    "BERT padded on the right in both runs, eager or sdpa",
    *_SAME_OPS_OTHER_KERNEL,
    truth="same",
)
def _() -> Pair:
    ids, mask = pad([words(9), words(14, 1)])
    given = {"input_ids": ids, "attention_mask": mask}
    return Pair(Side(models.bert("eager"), given, at(mask)), Side(models.bert("sdpa"), dict(given), at(mask)))


# ---------------------------------------------------------------------- 6: caches


@case(
    "06-llama-cache",
    "Llama, prefill and 4 decoding steps, or one full forward",
    *SOUND,
    source="transformers#25420",
)
def _() -> Pair:
    return cached(models.llama("sdpa"))


@case(
    "06-llama-cache-eager-bf16", "Llama bf16 eager, prefill and 4 decoding steps, or one full forward", *SOUND
)
def _() -> Pair:
    return cached(models.cast(models.llama("eager"), torch.bfloat16))


@case("06-gpt2-cache", "GPT-2, prefill and 4 decoding steps, or one full forward", *SOUND)
def _() -> Pair:
    return cached(models.gpt2("sdpa"), rows=2)


@case(
    "06-mistral-window-cache", "Mistral with a window of 4, 6 tokens and 4 steps, or one full forward", *SOUND
)
def _() -> Pair:
    return cached(models.mistral("sdpa"))


@case("06-mistral-window-cache-eager", "The same, eager, 9 tokens and 5 steps", *SOUND)
def _() -> Pair:
    return cached(models.mistral("eager"), prompt=9, steps=5)


@case(
    "06-llama-left-padded-cache", "Llama padded on the left, prefill and steps, or one full forward", *SOUND
)
def _() -> Pair:
    ids, mask = pad([words(6), words(9, 1)], "left")
    steps = torch.tensor([words(3, 2), words(3, 3)])
    whole_ids, whole_mask = (
        torch.cat([ids, steps], 1),
        torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], 1),
    )
    place = positions(whole_mask)
    calls = []
    for start, end in ((0, 9), (9, 10), (10, 11), (11, 12)):
        calls.append(
            {
                "input_ids": whole_ids[:, start:end],
                "attention_mask": whole_mask[:, :end],
                "position_ids": place[:, start:end],
            }
        )
    model = models.llama("sdpa")
    full = {"input_ids": whole_ids, "attention_mask": whole_mask, "position_ids": place}
    return Pair(Side(model, calls, joined(whole_mask)), Side(model, full, at(whole_mask)))


@case("06-chunked-prefill", "Llama, the prompt in chunks of 4, or one full forward", *SOUND)
def _() -> Pair:
    ids = row(words(12))
    model = models.llama("sdpa")
    calls = [{"input_ids": part} for part in ids.split(4, 1)]
    return Pair(Side(model, calls, joined()), Side(model, {"input_ids": ids}, joined()))


@case("06-tuple-cache", "A decoder of one's own whose cache is a tuple, steps or one full forward", *SOUND)
def _() -> Pair:
    return cached(seeded(decoders.CachedDecoder))


@case("06-static-cache", "A cache of fixed size with its empty slots masked, or one full forward", *SOUND)
def _() -> Pair:
    return cached(seeded(decoders.StaticDecoder), model_b=seeded(decoders.CachedDecoder))


@case("06-mamba-cache", "Mamba, prefill and decoding steps, or one full forward", *SOUND)
def _() -> Pair:
    return cached(models.mamba())


# ---------------------------------------------------------------------- 9: compiled


def _compiled(backend: str) -> Pair:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own use of torch.jit
        compiled = torch.compile(models.llama("eager"), backend=backend)
    return twice(models.llama("eager"), compiled)


for _backend in ("aot_eager", "inductor"):
    add(
        Case(
            f"09-compiled-{_backend}",
            f"Llama fp32 eager, or compiled by {_backend}",
            lambda backend=_backend: _compiled(backend),
            (IDENTICAL, ROUNDING),
            UNCHECKED,
            source="pytorch#150165, #179575",
            pending="" if _backend != "inductor" or shutil.which("g++") else "inductor needs a C++ compiler",
        )
    )
