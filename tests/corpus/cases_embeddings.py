"""Sound runs: sentence embeddings, and left padding with the right positions."""

from __future__ import annotations

import torch

from . import models, modules
from .case import Pair, case
from .expect import SOUND
from .modules import Tagger, seeded
from .pairs import padded

# ---------------------------------------------------------------------- 7: sentence embeddings


@case(
    "07-bert-masked-mean",
    "BERT, embedding by masked mean, alone or padded in a batch",
    *SOUND,
    source="sentence-transformers#2312",
)
def _() -> Pair:
    return padded(modules.SentenceEncoder(models.bert("sdpa"), "masked_mean"), mates=2, vector=True)


@case("07-bert-cls", "BERT, embedding of the first token, alone or padded in a batch", *SOUND)
def _() -> Pair:
    return padded(modules.SentenceEncoder(models.bert("eager"), "first"), mates=2, vector=True)


@case("07-bert-masked-max", "BERT, maximum over real tokens, alone or padded in a batch", *SOUND)
def _() -> Pair:
    return padded(modules.SentenceEncoder(models.bert("sdpa"), "masked_max"), mates=2, vector=True)


@case("07-bert-last-token", "BERT, embedding of the last real token, alone or padded in a batch", *SOUND)
def _() -> Pair:
    return padded(modules.SentenceEncoder(models.bert("sdpa"), "last_token"), mates=2, vector=True)


# ---------------------------------------------------------------------- 11: left padding, positions given


@case("11-gpt2-left-positions-eager", "GPT-2 eager padded on the left, position ids given", *SOUND)
def _() -> Pair:
    return padded(models.gpt2("eager"), "left", position_ids=True)


@case("11-gpt2-left-positions-bf16", "GPT-2 bf16 sdpa padded on the left, position ids given", *SOUND)
def _() -> Pair:
    return padded(models.cast(models.gpt2("sdpa"), torch.bfloat16), "left", position_ids=True, mates=2)


@case("11-opt-left-positions", "OPT padded on the left, position ids given", *SOUND)
def _() -> Pair:
    return padded(models.opt("sdpa"), "left", position_ids=True)


@case("11-opt-left-own-positions", "OPT padded on the left, positions from its own mask", *SOUND)
def _() -> Pair:
    return padded(models.opt("eager"), "left")


@case(
    "11-llama-left-no-positions",
    "Llama padded on the left, position ids left out: rotation is relative",
    *SOUND,
    note="an `arange` over columns differs, and its difference cancels",
)
def _() -> Pair:
    return padded(models.llama("sdpa"), "left")


@case("11-roberta-right", "RoBERTa padded on the right, positions from its own padding ids", *SOUND)
def _() -> Pair:
    return padded(models.roberta("sdpa"), mates=1)


@case("11-bloom-left", "Bloom padded on the left: ALiBi from the mask", *SOUND)
def _() -> Pair:
    return padded(models.bloom(), "left")


@case("11-alibi-columns-left", "ALiBi by distance between columns, padded on the left", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, modules.AlibiAttention(), modules.AlibiAttention()), "left")
