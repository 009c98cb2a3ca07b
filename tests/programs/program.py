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
        parts: how many layers it has that are alike, besides the others.
        probed: whether experiments are made, too.
        room: how many bytes of values may wait for their digests; None for as many as ever.
        memory: how much of what is recorded may stay in memory; None for all.
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
    parts: int = 0
    probed: bool = False
    room: int | None = None
    memory: int | None = None

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return bool(RANDOM.intersection(self.blocks))

    def model(self) -> nn.Module:
        """The model, the same each time."""
        before, (kind, part) = torch.get_rng_state(), _classes_of(self)
        torch.manual_seed(0)
        model: Any = kind(self.blocks)
        if self.parts:
            model.parts = nn.ModuleList(part(self.blocks) for _ in range(self.parts))
        model.train(self.training)
        torch.set_rng_state(before)
        return model

    def inputs(self, gain: float = 1.0) -> list[dict[str, Any]]:
        """The inputs of each call."""
        generator = torch.Generator().manual_seed(len(self.text))
        return [
            {"x": torch.randn(self.rows, self.tokens, WIDTH, generator=generator), "gain": gain}
            for _ in range(self.calls)
        ]


def _classes_of(program: Program) -> tuple[type[Model], type[Model]]:
    name = f"<program {program.seed}>"
    names: dict[str, Any] = {"torch": torch, "blocks": blocks, "Model": Model, "Tensor": Tensor}
    linecache.cache[name] = (len(program.text), None, program.text.splitlines(keepends=True), name)
    exec(compile(program.text, name, "exec"), names)
    return names["Program"], names.get("Part", Model)


CONTEXTS = (
    'torch.autocast("cpu", torch.bfloat16)', "blocks.Doubling()", "blocks.Passing()", "torch.no_grad()", "torch.enable_grad()",
    "torch.inference_mode()", "torch._C.DisableTorchFunction()", "torch.random.fork_rng()", 'torch.device("cpu")',
    "torch.autograd.graph.save_on_cpu()", "torch.autograd.set_grad_enabled(True)", "blocks.quietly()",
    "torch._C.DisableTorchFunctionSubclass()", "torch.autograd.forward_ad.dual_level()",
)  # fmt: skip
"""What part of a program may run in."""
GAIN = "GAIN"
"""Stands where a gain may be planted."""


class _Writer:
    """Writes statements, each of which makes a new value of those before."""

    def __init__(self, draw: random.Random, only: str | None) -> None:
        self.draw, self.only = draw, only
        self.used: list[str] = []
        self.contexts: list[str] = []

    def body(self, count: int, names: list[str], *, depth: int = 0, parts: int = 0) -> list[str]:
        """Some statements; their values' names are added to those that are there."""
        lines: list[str] = []
        for _ in range(count):
            a, b = self.draw.choice(names[-3:]), self.draw.choice(names)
            new = f"{names[0][0]}{len(names)}"
            chance = self.draw.random()
            if self.only is None and depth < 2 and chance < 0.08:
                lines += self.within(names, new, depth)
            elif self.only is None and parts and chance < 0.2:
                lines += [f"{new} = {a}", *self.loop(new, b, parts)]
            else:
                lines += self.statement(new, a, b)
            names.append(new)
        return lines

    def within(self, names: list[str], new: str, depth: int) -> list[str]:
        """Some statements in a context; what comes of them is float32 again."""
        context = self.draw.choice(CONTEXTS)
        self.contexts.append(context)
        inner = list(names)
        lines = self.body(self.draw.randint(1, 3), inner, depth=depth + 1)
        kept = f"{new} = {inner[-1]}.detach().float().clone()"
        return [f"with {context}:", *(f"    {line}" for line in lines), kept]

    def loop(self, new: str, b: str, parts: int) -> list[str]:
        """The parts of the model one after the other, as layers; the gain is one of theirs."""
        which = self.draw.randrange(parts)
        return [
            "for index, part in enumerate(self.parts):",
            f"    {new} = part({new}, {b}, {GAIN} if index == {which} else 1.0)",
        ]

    def statement(self, new: str, a: str, b: str) -> list[str]:
        """One statement."""
        chance = self.draw.random()
        if self.only is not None or chance < 0.55:
            common = sorted(set(BLOCKS) - RARE)
            name = self.only or self.draw.choice(sorted(RARE) if self.draw.random() < 0.04 else common)
            self.used.append(name)
            return [f"{new} = blocks.{name}(self, {a}, {b}, {GAIN})"]
        if chance < 0.65:
            return [f"{new} = {a} * {GAIN}"]
        if chance < 0.77:
            return [f"{new} = {a}.clone()", self.draw.choice(WRITES).format(a=new, b=b)]
        return [f"{new} = {self.draw.choice(STATEMENTS).format(a=a, b=b)}"]


def _planted(lines: list[str], draw: random.Random) -> bool:
    """Put the gain in one of the places where it may be, or nowhere; whether it is anywhere."""
    places = [index for index, line in enumerate(lines) if GAIN in line]
    chosen = draw.choice(places) if places and draw.random() < 0.7 else None
    for index in places:
        lines[index] = lines[index].replace(GAIN, "gain" if index == chosen else "1.0")
    return chosen is not None


def drawn(draw: random.Random, seed: str = "", *, only: str | None = None) -> Program:
    """A program.

    Args:
        draw: where its choices come from.
        seed: what it goes by.
        only: the one block that it calls.
    """
    writer = _Writer(draw, only)
    parts = draw.choice((0, 0, 2, 3)) if only is None else 0
    part_names, names = ["p0", "p1"], ["x0", "x1"]
    part = writer.body(draw.randint(1, 4), part_names) if parts else []
    # a part's own gain is what it is given
    part = [line.replace(GAIN, "1.0") for line in part]
    lines = writer.body(draw.randint(1, 8), names, parts=parts)
    planted = _planted(lines, draw)
    last = names[-1]
    returned = draw.choice(
        (last, f"({last}, {names[-2]})", f"{{'last': {last}, 'mean': {last}.mean(1), 'list': [{names[-2]}]}}")
    )
    source = [
        "class Part(Model):", "    def forward(self, p0, p1, gain):", *(f"        {line}" for line in part),
        f"        return {part_names[-1]} * gain", "",
    ] if parts else []  # fmt: skip
    source += [
        "class Program(Model):", "    def forward(self, x, gain=1.0):", "        x0 = x + 0", "        x1 = torch.sin(x) * 2",
        *(f"        {line}" for line in lines), f"        return {returned}", "",
    ]  # fmt: skip
    mode = draw.choice(MODES)
    differentiates = bool(DIFFERENTIATES.intersection(writer.used))
    if differentiates and "torch.inference_mode()" in writer.contexts:
        source = [line.replace("torch.inference_mode()", "torch.no_grad()") for line in source]
    return Program(
        seed=seed, text="\n".join(source), blocks=tuple(writer.used), rows=draw.randint(1, 2), tokens=draw.randint(2, 5),
        calls=draw.choice((1, 1, 1, 2)), training=draw.random() < 0.3,
        gain=draw.choice((1.5, 1 + 2**-10, -1.0)) if planted else 1.0,
        mode="enable_grad" if mode == "inference_mode" and differentiates else mode, parts=parts,
        probed=draw.random() < 0.15, room=draw.choice((None, None, 1 << 12)), memory=draw.choice((None, None, None, 1)),
    )  # fmt: skip
