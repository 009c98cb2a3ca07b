"""Small models of plain torch, each with one thing that can go wrong."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forkpoint import Layout, Run

VOCABULARY = 23


class Model(nn.Module):
    """An embedding, two layers that work token by token, and logits."""

    def __init__(self, seed: int = 0, width: int = 13) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(VOCABULARY, width)
            self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
            self.head = nn.Linear(width, VOCABULARY)

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        """What a subclass does between the layers."""
        return hidden

    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        hidden = self.layers[0](self.embed(input_ids)).tanh()
        hidden = self.mix(hidden, **inputs)
        hidden = hidden + self.layers[1](hidden).tanh()
        return {"logits": self.head(hidden)}


def ids(rows: int = 2, columns: int = 4, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


def batch(tokens: Tensor, left: int = 0, right: int = 0, pad: int = 0) -> dict[str, Tensor]:
    """Token ids with padding on either side, and their mask."""
    mask = F.pad(torch.ones_like(tokens), (left, right))
    return {"input_ids": F.pad(tokens, (left, right), value=pad), "attention_mask": mask}


def pair(
    model: nn.Module, a: Any, b: Any, model_b: nn.Module | None = None, **options: Any
) -> tuple[Run, Run]:
    return Run(model, a, **options), Run(model_b or model, b, **options)


def twin(model: nn.Module) -> Any:
    return copy.deepcopy(model)


def unpadded(rows: int, columns: int) -> Layout:
    return Layout.from_mask(torch.ones(rows, columns))
