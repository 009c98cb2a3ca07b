"""Bugs planted in ports that are written by hand: each has to be found at its op, and nothing in the sound ports.

`python -m tests.traces.ports_board` plants them all. A bug is a line of a port with other text in it; it is found if the
origin is an op of that line. Of a bug in what makes the weights of the port, it is the op that uses these.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.architectures import ARCHITECTURES, prompt

import forkpoint as fp

WRITTEN = Path(__file__).parent / "written"
FAMILIES = {"llama": "llama", "neox": "gpt_neox", "gemma": "gemma2"}


CHANGES = {
    "neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
}
"""So that more than one pair of each head is rotated."""


@dataclass(frozen=True)
class Bug:
    """One line of a port that is wrong.

    Attributes:
        family: the port.
        right, wrong: text that is there once, and what is put in its place.
        at: text of a line whose op shows it first, where that is another one.
    """

    family: str
    right: str
    wrong: str
    at: str = ""


BUGS = (
    Bug("llama", "1.0 / self.base **", "1.0 / (2 * self.base) **"),
    Bug("llama", "(torch.arange(0, self.size, 2).float() / self.size)", "(torch.arange(0, self.size, 2).float() / (self.size - 2))"),
    Bug("llama", "x[..., ::2], x[..., 1::2]", "x.chunk(2, -1)", at="even * cos - odd * sin"),
    Bug("llama", "even * cos - odd * sin", "even * cos + odd * sin"),
    Bug("llama", "odd * cos + even * sin", "odd * cos - even * sin"),
    Bug("llama", "mean + self.eps", "mean + 10 * self.eps"),
    Bug("llama", "x.square().mean(-1, keepdim=True)", "x.var(-1, keepdim=True)"),
    Bug("llama", "x * shifted.rsqrt() * self.scale", "x * shifted.rsqrt() * (1 + self.scale)"),
    Bug("llama", "products * self.size**-0.5", "products * self.size**-1.0"),
    Bug("llama", "products * self.size**-0.5", "products * (self.size + 1) ** -0.5"),
    Bug("llama", ".triu(1)", ".triu(2)", at="scores.masked_fill"),
    Bug("llama", "silu(self.w1(y))", "gelu(self.w1(y))"),
    Bug("llama", "silu(self.w1(y))", "silu(self.w3(y))"),
    Bug("llama", "x + self.attention(self.attention_norm(x))", "x + self.attention(x)", at="self.wqkv(x)"),
    Bug("llama", "return self.output(self.norm(x))", "return self.output(x)"),
    Bug("llama", 'o = of["self_attn.o_proj.weight"]', 'o = of["self_attn.o_proj.weight"].T', at="self.wo(mixed)"),
    Bug("llama", 'gate, up = of["mlp.gate_proj.weight"], of["mlp.up_proj.weight"]', 'up, gate = of["mlp.gate_proj.weight"], of["mlp.up_proj.weight"]', at="silu(self.w1(y))"),
    Bug("llama", 'q = interleaved(of["self_attn.q_proj.weight"], c.num_attention_heads)', 'q = of["self_attn.q_proj.weight"]', at="even, odd = x["),
    Bug("neox", "self.base**-exponents", "(self.base / 10) ** -exponents"),
    Bug("neox", "dtype=torch.float32) / self.turned", "dtype=torch.float32) / self.size", at="self.base**-exponents"),  # the reference has frequencies, no exponents
    Bug("neox", "first * angles.cos() - second * angles.sin()", "first * angles.sin() - second * angles.cos()"),
    Bug("neox", "second * angles.cos() + first * angles.sin()", "second * angles.cos() - first * angles.sin()"),
    Bug("neox", "q = self.rotate(q)", "q = q", at='torch.einsum("bhqd,bhkd->bhqk", q, k)'),
    Bug("neox", "products / math.sqrt(self.size)", "products / math.sqrt(self.turned)"),
    Bug("neox", "torch.ones(columns, columns).tril() > 0", "torch.ones(columns, columns) > 0", at="torch.softmax(scores"),
    Bug("neox", "gelu(inner)", 'gelu(inner, approximate="tanh")'),
    Bug("neox", "gelu(inner)", "relu(inner)"),
    Bug("neox", "self.ln1 = nn.LayerNorm(size, eps=c.layer_norm_eps)", "self.ln1 = nn.LayerNorm(size, eps=1e-3)", at="ln1/layer_norm"),
    Bug("neox", "inner = self.up(self.ln2(x))", "inner = self.up(self.ln2(x + attended))", at="self.ln2(x + attended)"),
    Bug("neox", "return product + self.b", "return product", at="product = x @ self.w"),
    Bug("neox", '"out.w": of["attention.dense.weight"].T', '"out.w": of["attention.dense.weight"]', at="product = x @ self.w"),
    Bug("neox", '"q.w": q.T', '"q.w": q', at="product = x @ self.w"),
    Bug("gemma", "self.base ** (-torch.arange(half).float() / half)", "self.base ** (-torch.arange(half).float() / self.size)"),
    Bug("gemma", "torch.cat([-x[..., half:], x[..., :half]], -1)", "torch.cat([x[..., half:], -x[..., :half]], -1)"),
    Bug("gemma", "power + self.eps", "power + 100 * self.eps"),
    Bug("gemma", "normed * (1 + self.gain)", "normed * self.gain"),
    Bug("gemma", "products * self.scalar**-0.5", "products * (2 * self.scalar) ** -0.5"),
    Bug("gemma", "torch.tanh(scores / self.cap) * self.cap", "torch.tanh(scores / (2 * self.cap)) * (2 * self.cap)"),
    Bug("gemma", "near.tril(-self.window)", "near.tril(-self.window - 1)", at="capped.masked_fill"),
    Bug("gemma", 'gelu(gate, approximate="tanh")', "gelu(gate)"),
    Bug("gemma", "x = x * self.table.embedding_dim**0.5", "x = x * (self.table.embedding_dim + 1) ** 0.5"),
    Bug("gemma", "return torch.tanh(logits / self.cap) * self.cap", "return logits", at="logits = self.final"),
    Bug("gemma", "torch.cat([gate, up])", "torch.cat([up, gate])", at="gelu(gate"),
    Bug("gemma", 'torch.cat([q, k, v]), "o.weight"', 'torch.cat([q, v, k]), "o.weight"', at="crossed = torch.cat"),
    Bug("gemma", 'return self.o(torch.einsum("bhqk,bkhd->bqhd", capped.softmax(-1), v).flatten(2))', 'return self.o(torch.einsum("bhqk,bkhd->bqdh", capped.softmax(-1), v).flatten(2))'),
)  # fmt: skip

HARMLESS = (
    Bug("llama", "positions = torch.arange(x.shape[1]).float()", "positions = torch.arange(1, x.shape[1] + 1).float()"),
    Bug("neox", "torch.arange(x.shape[2])[:, None]", "(torch.arange(x.shape[2]) - 3)[:, None]"),
    Bug("gemma", "torch.outer(torch.arange(x.shape[1]).float(), frequencies)", "torch.outer(torch.arange(x.shape[1]).float() + 7, frequencies)"),
)  # fmt: skip
"""Changes that make no other function: queries and keys are turned against each other, wherever positions begin."""


def compared(family: str, right: str = "", wrong: str = "") -> tuple[fp.Result, str]:
    """A port, with other text in a place, against its reference; and the port's source."""
    text = (WRITTEN / f"{family}.py").read_text(encoding="utf-8")
    assert not right or text.count(right) == 1, f"{right!r} is there {text.count(right)} times"
    source = text.replace(right, wrong)
    reference = ARCHITECTURES[FAMILIES[family]].build(**CHANGES.get(family, {}))  # pyright: ignore[reportArgumentType]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{family}_port.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        inputs = {"input_ids": torch.tensor([prompt(11)])}
        with torch.no_grad():
            port = module.ported(reference)
            return fp.compare(fp.Run(port, inputs), fp.Run(reference, inputs)), source


def wrong_about(bug: Bug) -> str:
    """What is wrong with the answer for a planted bug; empty if nothing is."""
    result, source = compared(bug.family, bug.right, bug.wrong)
    origin = result.origin
    if result.verdict.kind is not fp.VerdictKind.SEMANTIC or origin is None:
        return f"{result.verdict.kind.value}, no origin"
    texts = [text for text in (bug.wrong, bug.at) if text]
    lines = [line.strip() for line in source.splitlines() if any(text in line for text in texts)]
    if origin.code in lines or (bug.at and origin.op.endswith(bug.at)):
        return ""
    return f"{origin.op} at {origin.code!r}"


def sound(family: str, right: str = "", wrong: str = "") -> str:
    """What is wrong with the answer for a port without a bug, or with a harmless change; empty if nothing is."""
    kind = compared(family, right, wrong)[0].verdict.kind
    return "" if kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING) else kind.value
