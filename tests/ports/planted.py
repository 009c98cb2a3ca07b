"""Faults planted in ports that were written without a look at how they are found.

`tests/ports/by_hand/` has ports in plain PyTorch, each in another way, with the faults that such ports have and the op at which
each enters; `tests/ports/of_litgpt.py` has those of litgpt. Every fault has its sound twin, and some changes are harmless.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from tests.ports.by_hand.parts import trained
from torch import Tensor, nn

import forkpoint as fp

PORTS = tuple(sorted({path.stem for path in (Path(__file__).parent / "by_hand").glob("*.py")} - {"parts"}))
MASKS = ("window", "mask", "causal", "first-only")
"""Faults of which another mask is the right cause."""


def port_of(name: str) -> Any:
    return importlib.import_module(f"tests.ports.by_hand.{name}")


def built(name: str, fault: str | None = None, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A port, and what it was ported from."""
    module = port_of(name)
    torch.manual_seed(seed)
    reference = trained(module.reference(), seed + 1)
    if getattr(reference.config, "tie_word_embeddings", False) and hasattr(reference, "lm_head"):
        reference.tie_weights()  # pyright: ignore[reportCallIssue]
    return module.PORT(reference, fault).eval(), reference


def inputs_of(name: str, tokens: int = 9, seed: int = 7) -> tuple[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name == "unfolded":
        return "pixel_values", torch.randn(2, 3, 12, 12, generator=generator)
    return "input_ids", torch.randint(3, 50, (1, tokens), generator=generator)


def compared(mine: nn.Module, reference: nn.Module, name: str, value: Tensor) -> fp.Result:
    return fp.compare(fp.Run(mine, (value,)), fp.Run(reference, {name: value}))


def wrong_about(result: fp.Result, label: str, truth: tuple[str, ...]) -> str:
    """What is wrong with what is said of a fault; empty if nothing is."""
    verdict, origin = result.verdict, result.origin
    if verdict.kind is not fp.VerdictKind.SEMANTIC or origin is None:
        return f"{label}: {verdict.kind.value}, no origin"
    if origin.op not in truth:
        return f"{label}: {origin.op}, not {' or '.join(truth)}"
    if verdict.mechanism is not None and not (
        verdict.mechanism == "attention_mask" and any(part in label for part in MASKS)
    ):
        return f"{label}: {verdict.mechanism}"
    return ""


def wrong_about_sound(result: fp.Result, label: str) -> str:
    """What is wrong with what is said of a port without a fault; empty if nothing is."""
    kind = result.verdict.kind
    return "" if kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING) else f"{label}: {kind.value}"


def belonging(mine: nn.Module, reference: nn.Module) -> set[tuple[str, str]]:
    """The pairs of parameters most of whose elements are the same, as they are or with 1 added, by brute force."""
    theirs = {name: _elements(p) for name, p in reference.named_parameters(remove_duplicate=False)}
    found: set[tuple[str, str]] = set()
    for name, parameter in mine.named_parameters(remove_duplicate=False):
        own = _elements(parameter)
        less = {round(x - 1, 5) for x in own} if parameter.ndim == 1 else set[float]()
        for other, elements in theirs.items():
            half = min(len(own), len(elements)) / 2
            if len(own & elements) > half or len(less & {round(x, 5) for x in elements}) > half:
                found.add((name, other))
    return found


def _elements(value: Tensor) -> set[float]:
    return set(value.detach().reshape(-1).tolist())


def wrong_pairs(mine: nn.Module, reference: nn.Module, right: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of a mapping that are not among the right ones."""
    return [
        (m.mine, m.reference)
        for m in fp.mapping(mine, reference).matches
        if (m.mine, m.reference) not in right
    ]
