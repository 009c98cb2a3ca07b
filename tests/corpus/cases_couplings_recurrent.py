"""Recurrences that take time first: a column of their input is a sample, and a row of it is none that samples are packed in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .case import Pair, Side, case
from .expect import FUNCTION, LEAK, SOUND
from .modules import seeded
from .tokens import VOCABULARY, pad, words


class TimeFirst(nn.Module):
    """Token ids [columns, rows] → a bidirectional GRU → logits; `packed` leaves padding out."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.cell = nn.GRU(16, 8, bidirectional=True)
        self.packed = packed

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        if not self.packed:
            return self.head(self.cell(hidden)[0])
        rows = nn.utils.rnn.pack_padded_sequence(hidden, lengths.cpu(), enforce_sorted=False)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.cell(rows)[0], total_length=len(hidden))[0])


ROWS = [words(9), words(6, 1)]


def _side(packed: bool, to: int | None = None, rows: list[list[int]] = ROWS) -> Side:
    ids, mask = pad(rows, to=to)
    real = mask.T.bool()

    def pick(outputs: list[Any]) -> Tensor:
        return torch.cat([outputs[0][real[:, row], row] for row in range(len(rows))])

    def layout(fp: Any) -> Any:
        samples = torch.where(real, torch.arange(len(rows)), -1)
        positions = torch.where(real, torch.arange(len(real))[:, None], -1)
        return fp.Layout([fp.Coordinates(samples, positions)])

    given = {"input_ids": ids.T.contiguous(), "lengths": mask.sum(1)}
    return Side(seeded(TimeFirst, packed), given, pick, layout=layout)


def _pair(a: Side, b: Side) -> Pair:
    if a.model.packed == b.model.packed:
        b.model = a.model
    return Pair(a, b)


case(
    "47-time-first-packed-or-not", "Two samples, padding left out or not", FUNCTION, floor=1e-3, origin="cell"
)(lambda: _pair(_side(False), _side(True)))
case("47-time-first-padded", "Two samples, padded further, nothing left out", LEAK, floor=1e-3, origin="gru")(
    lambda: _pair(_side(False), _side(False, 13))
)
case("47-time-first-sound", "The same, padding left out", *SOUND)(lambda: _pair(_side(True), _side(True, 13)))
