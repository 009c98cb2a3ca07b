"""Packing: rows that share a row, and rows that attend to rows."""

from __future__ import annotations

from itertools import chain

import torch

from . import mixers, models, modules
from .case import Pair, Side, case
from .expect import LEAK_EITHER, PACKING, POSITIONS, one_of, semantic
from .modules import seeded
from .pairs import batched
from .tokens import at, pad, row, words

# ---------------------------------------------------------------------- packing


@case(
    "m-packed-no-boundaries",
    "Rows packed into one, position ids restart, a mask of ones lets them see each other",
    PACKING,
    floor=1e-2,
    origin="self_attn",
)
def _() -> Pair:
    rows = [words(5), words(7, 1), words(6, 2)]
    ids, mask = pad(rows)
    place = torch.cat([torch.arange(len(tokens)) for tokens in rows])[None]
    ones = torch.ones_like(place)
    model = models.llama("sdpa")
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(
            model,
            {"input_ids": row(chain(*rows)), "position_ids": place, "attention_mask": ones},
            at(ones),
            layout=lambda fp: fp.Layout.packed(place),
        ),
    )


@case(
    "m-packed-no-restart",
    "Rows packed into one without position ids",
    PACKING,
    POSITIONS,
    floor=1e-2,
    origin=("attn", "wpe"),
)
def _() -> Pair:
    rows = [words(5), words(7, 1)]
    ids, mask = pad(rows)
    place = torch.cat([torch.arange(len(tokens)) for tokens in rows])[None]
    model = models.gpt2("eager")
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(
            model,
            {"input_ids": row(chain(*rows))},
            at(torch.ones(1, 12)),
            layout=lambda fp: fp.Layout.packed(place),
        ),
    )


@case(
    "m-packed-conv",
    "Rows packed into one, boundaries kept in attention but not in a convolution",
    PACKING,
    LEAK_EITHER,
    floor=1e-3,
    origin="conv1d",
)
def _() -> Pair:
    rows = [words(7), words(6, 1)]
    ids, mask = pad(rows)
    place = torch.cat([torch.arange(len(tokens)) for tokens in rows])[None]
    model = seeded(modules.Tagger, mixers.Depthwise("left", masked=True))
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(
            model,
            {"input_ids": row(chain(*rows))},
            at(torch.ones(1, 13)),
            layout=lambda fp: fp.Layout.packed(place),
        ),
    )


@case(
    "m-rows-attend-to-rows",
    "nn.MultiheadAttention without batch_first: rows attend to rows",
    semantic(None, "attention_mask", "padding_leak", "batch_statistics", by_design=one_of(None, False, True)),
    floor=1e-2,
    origin=("attention", "mixers.0"),
)
def _() -> Pair:
    return batched(seeded(modules.Tagger, modules.RowsFirstAttention()), mates=3)
