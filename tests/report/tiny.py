"""Small models for one verdict each, whose reports are the same on every machine.

Embeddings and weights are small multiples of powers of two, so that products and sums are exact in float32, in whatever order a
kernel takes them; what rounds does so in operations on single elements, which IEEE 754 fixes bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.result import Result

VOCABULARY, FEATURES = 16, 8
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
PADDING = 8
"""Columns that a padded run has more."""


def _grid(rows: int, columns: int, seed: int) -> Tensor:
    """Multiples of 1/8 between -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, (rows, columns), generator=generator) / 8


class Mixer(nn.Module):
    """Adds a share of the square of each feature, and what else it is asked for."""

    def __init__(self, more: str = "") -> None:
        super().__init__()
        self.more = more

    def forward(self, hidden: Tensor) -> Tensor:
        mixed = hidden * hidden / 4
        if self.more == "mean":
            mixed = mixed + hidden.mean(1, keepdim=True)
        if self.more == "columns":  # infinite in a run of twice as many
            mixed = mixed / (2 * PADDING - hidden.shape[1])
        if self.more == "noise":
            mixed = mixed * (torch.rand(FEATURES) < 0.5)
        return hidden + mixed


class Tiny(nn.Module):
    """A language model of two layers."""

    def __init__(self, more: str = "") -> None:
        super().__init__()
        self.more = more
        self.embed = nn.Embedding.from_pretrained(_grid(VOCABULARY, FEATURES, 0), freeze=False)
        self.layers = nn.ModuleList([Mixer(), Mixer(more)])
        self.head = nn.Linear(FEATURES, VOCABULARY, bias=False)
        self.head.weight = nn.Parameter(_grid(VOCABULARY, FEATURES, 1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        returned = {"logits": self.head(hidden)}
        if self.more == "table":  # of columns, whose tokens nobody knows
            returned["table"] = torch.arange(input_ids.shape[1] + 1.0)
        return returned


def run(model: nn.Module, name: str, *, tokens: list[int] = TOKENS, padding: int = 0) -> fp.Run:
    """A run of some tokens with so much padding behind them."""
    ids = torch.tensor([tokens + [0] * padding])
    mask = torch.tensor([[1] * len(tokens) + [0] * padding])
    return fp.Run(model, {"input_ids": ids, "attention_mask": mask}, name=name)


def compared(kind: str) -> Result:
    """What `fp.compare` says of two runs, of which that verdict is true; of `nan`, semantic with that mechanism."""
    alone = run(Tiny(), "alone")
    torch.manual_seed(0)
    a, b = {
        "identical": lambda: (alone, run(Tiny(), "padded", padding=PADDING)),
        "rounding": lambda: (run(Tiny(), "float32"), run(Tiny().bfloat16(), "bfloat16")),
        "semantic": lambda: (run(Tiny("mean"), "alone"), run(Tiny("mean"), "padded", padding=PADDING)),
        "nan": lambda: (run(Tiny("columns"), "alone"), run(Tiny("columns"), "padded", padding=PADDING)),
        "nondeterminism": lambda: (run(Tiny("noise"), "first"), run(Tiny("noise"), "second")),
        "inputs": lambda: (alone, run(Tiny(), "mistyped", tokens=[*TOKENS[:3], 2, *TOKENS[4:]])),
        "undetermined": lambda: (run(Tiny("table"), "alone"), run(Tiny("table"), "padded", padding=PADDING)),
    }[kind]()
    return fp.compare(a, b)
