"""Random programs: source text of a model's `forward`, made of blocks and of plain statements."""

from __future__ import annotations

import linecache
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import blocks
from .blocks import BLOCKS, DIFFERENTIATES, RANDOM
from .state import WIDTH, Model

COMPILED = {"compiled_function", "compiled_ahead", "compiled_layer"}
RARE = {*COMPILED, "scripted", "meanwhile", "other_thread", "recomputed", "recomputed_noise"}
"""Blocks that take long, or whose like others have."""
STATEMENTS = (
    "torch.relu({a}) + {b}", "{a} * 0.5 - {b}", "torch.tanh({a} + {b})", "self.last(self.first({a})) + {b}",
    "({a}.transpose(1, 2) @ {b}).softmax(-1).mean(1, keepdim=True) + {a}", "self.norm({a}) + {b}[:, :1]",
    "torch.maximum({a}, {b})", "{a}.square().mean(-1, keepdim=True).add(1).rsqrt() * {b}",
)  # fmt: skip
"""Plain statements."""
WRITES = ("{a}.add_({b} * 0.5)", "{a}[:, 1:] *= 0.5", "{a}.clamp_(-3, 3)", "{a}[..., 0] = {b}[..., 1]")
"""Statements that write into a value, which is a copy of its own."""
MODES = ("no_grad", "no_grad", "enable_grad", "inference_mode")
PLANTED = "{a} * gain"


@dataclass(frozen=True)
class Program:
    """A random program.

    Attributes:
        text: its source.
        blocks: the blocks that it calls.
        rows, tokens: sizes of its input.
        calls: how many forward calls a run has.
        training: whether the model is in training mode.
        gain: what run B multiplies by at one place; 1.0 for none.
        mode: `no_grad`, `enable_grad` or `inference_mode`, under which it is called.
    """

    seed: str
    text: str
    blocks: tuple[str, ...]
    rows: int
    tokens: int
    calls: int
    training: bool
    gain: float
    mode: str

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return bool(RANDOM.intersection(self.blocks))

    def model(self) -> nn.Module:
        """The model, the same each time."""
        kind, before = _class_of(self), torch.get_rng_state()
        model = kind(self.blocks).train(self.training)
        torch.set_rng_state(before)
        return model

    def inputs(self, gain: float = 1.0) -> list[dict[str, Any]]:
        """The inputs of each call."""
        generator = torch.Generator().manual_seed(len(self.text))
        return [
            {"x": torch.randn(self.rows, self.tokens, WIDTH, generator=generator), "gain": gain}
            for _ in range(self.calls)
        ]


def _class_of(program: Program) -> type[Model]:
    name = f"<program {program.seed}>"
    names: dict[str, Any] = {"torch": torch, "blocks": blocks, "Model": Model, "Tensor": Tensor}
    linecache.cache[name] = (len(program.text), None, program.text.splitlines(keepends=True), name)
    exec(compile(program.text, name, "exec"), names)
    return names["Program"]


def drawn(draw: random.Random, seed: str = "", *, only: str | None = None) -> Program:
    """A program.

    Args:
        draw: where its choices come from.
        seed: what it goes by.
        only: the one block that it calls.
    """
    common = sorted(set(BLOCKS) - RARE)
    count = draw.randint(1, 9)
    planted = draw.randrange(count) if draw.random() < 0.7 else None
    lines, names, used = ["x0 = x + 0", "x1 = torch.sin(x) * 2"], ["x0", "x1"], []
    for index in range(count):
        gain = "gain" if index == planted else "1.0"
        a, b = draw.choice(names[-3:]), draw.choice(names)
        new = f"x{len(names)}"
        if only is not None or draw.random() < 0.6:
            name = only or draw.choice(sorted(RARE) if draw.random() < 0.04 else common)
            used.append(name)
            lines.append(f"{new} = blocks.{name}(self, {a}, {b}, {gain})")
        elif index == planted:
            lines.append(f"{new} = {PLANTED.format(a=a)}")
        elif draw.random() < 0.3:
            lines += [f"{new} = {a}.clone()", draw.choice(WRITES).format(a=new, b=b)]
        else:
            lines.append(f"{new} = {draw.choice(STATEMENTS).format(a=a, b=b)}")
        names.append(new)
    last = names[-1]
    returned = draw.choice(
        (last, f"({last}, {names[-2]})", f"{{'last': {last}, 'mean': {last}.mean(1), 'list': [{names[-2]}]}}")
    )
    text = "\n".join(
        ["class Program(Model):", "    def forward(self, x, gain=1.0):", *(f"        {line}" for line in lines),
         f"        return {returned}", ""]
    )  # fmt: skip
    return Program(
        seed=seed, text=text, blocks=tuple(used), rows=draw.randint(1, 2), tokens=draw.randint(2, 5),
        calls=draw.choice((1, 1, 1, 2)), training=draw.random() < 0.3,
        gain=1.0 if planted is None else draw.choice((1.5, 1 + 2**-10, -1.0)),
        mode="enable_grad" if (mode := draw.choice(MODES)) == "inference_mode" and DIFFERENTIATES & {*used} else mode,
    )  # fmt: skip
