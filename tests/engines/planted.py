"""Faults for the fake engine and for models of transformers: a change of one op, and where it has to be found."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Fault:
    """A change of the module at `path`.

    Attributes:
        at: the reference's values at one of which it has to be found first.
        change: of what the module returns; or an attribute, of the module or of something that it holds, and its new value.
    """

    name: str
    path: str
    at: tuple[str, ...]
    change: Callable[[Any], Any] | tuple[str, Callable[[Any], Any]]

    @contextmanager
    def planted(self, model: nn.Module) -> Generator[None]:
        module = model.get_submodule(self.path)
        if isinstance(self.change, tuple):
            names, change = self.change
            owner, _, name = names.rpartition(".")
            holder = getattr(module, owner) if owner else module
            before = getattr(holder, name)
            setattr(holder, name, change(before))
            try:
                yield
            finally:
                setattr(holder, name, before)
            return
        inner, change = module.forward, self.change
        module.forward = wraps(inner)(lambda *args, **kwargs: change(inner(*args, **kwargs)))
        try:
            yield
        finally:
            del module.forward


def first(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Of a pair that a module returns, the first changed."""
    return lambda out: (change(out[0]), *out[1:])


def second(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda out: (out[0], change(out[1]), *out[2:])


def part(start: int, end: int, factor: float) -> Callable[[Any], Any]:
    def change(out: Any) -> Any:
        out = out.clone()
        out[..., start:end] *= factor
        return out

    return change


def times(factor: float) -> Callable[[Any], Any]:
    return lambda x: x * factor


def narrow(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


L0, L1 = "model.layers.0", "model.layers.1"

ENGINE = [
    Fault("embedding scaled", "model.embed_tokens", ("model.embed_tokens/output",), times(1.0001)),
    Fault("eps of the first norm", f"{L0}.input_layernorm", (f"{L0}.input_layernorm/output",), ("eps", lambda _: 1e-3)),
    Fault("eps of q_norm", f"{L1}.self_attn.q_norm", (f"{L1}.self_attn.q_norm/output",), ("eps", lambda _: 1e-4)),
    Fault("eps of k_norm", f"{L0}.self_attn.k_norm", (f"{L0}.self_attn.k_norm/output",), ("eps", lambda _: 1e-4)),
    Fault("eps of the last norm", "model.norm", ("model.norm/output",), ("eps", lambda _: 1e-3)),
    Fault("norm in bfloat16", f"{L1}.post_attention_layernorm", (f"{L1}.post_attention_layernorm/output",), first(narrow)),
    Fault("residual lost", f"{L0}.post_attention_layernorm", (f"{L0}.post_attention_layernorm/input",), second(times(0.999))),
    Fault("query scaled", f"{L0}.self_attn.qkv_proj", (f"{L0}.self_attn.q_proj/output",), part(0, 64, 1.001)),
    Fault("key scaled", f"{L1}.self_attn.qkv_proj", (f"{L1}.self_attn.k_proj/output",), part(64, 96, 1.001)),
    Fault("value scaled", f"{L1}.self_attn.qkv_proj", (f"{L1}.self_attn.v_proj/output",), part(96, 128, 1.001)),
    Fault("rope base", f"{L1}.self_attn.rotary_emb", (f"{L1}.self_attn/query",), ("inverse", times(1.01))),
    Fault("attention scale", f"{L0}.self_attn.attn", (f"{L0}.self_attn.o_proj/input",), ("scale", times(1.01))),
    Fault("attention in bfloat16", f"{L1}.self_attn.attn", (f"{L1}.self_attn.o_proj/input",), narrow),
    Fault("o_proj biased", f"{L0}.self_attn.o_proj", (f"{L0}.self_attn.o_proj/output",), lambda x: x + 1e-3),
    Fault("gate scaled", f"{L1}.mlp.gate_up_proj", (f"{L1}.mlp.gate_proj/output",), part(0, 48, 1.001)),
    Fault("up scaled", f"{L0}.mlp.gate_up_proj", (f"{L0}.mlp.up_proj/output",), part(48, 96, 0.999)),
    Fault("activation", f"{L0}.mlp.act_fn", (f"{L0}.mlp.down_proj/input",), times(1.0002)),
    Fault("down_proj in bfloat16", f"{L1}.mlp.down_proj", (f"{L1}.mlp.down_proj/output",), narrow),
    Fault("logits capped", "logits_processor", ("lm_head/output",), lambda x: 30 * torch.tanh(x / 30)),
]  # fmt: skip

REFERENCE = [
    Fault("embedding scaled", "model.embed_tokens", ("model.embed_tokens/output",), times(1.0001)),
    Fault("eps of a norm", f"{L1}.input_layernorm", (f"{L1}.input_layernorm/output",), ("variance_epsilon", lambda _: 1e-3)),
    Fault("eps of q_norm", f"{L0}.self_attn.q_norm", (f"{L0}.self_attn.q_norm/output",), ("variance_epsilon", lambda _: 1e-4)),
    Fault("k_proj scaled", f"{L0}.self_attn.k_proj", (f"{L0}.self_attn.k_proj/output",), times(1.001)),
    Fault("rope base", "model.rotary_emb", (f"{L0}.self_attn/query",), ("inv_freq", times(1.01))),
    Fault("attention scale", f"{L1}.self_attn", (f"{L1}.self_attn.o_proj/input",), ("scaling", times(1.01))),
    Fault("activation", f"{L1}.mlp.act_fn", (f"{L1}.mlp.down_proj/input",), times(1.0002)),
    Fault("o_proj in bfloat16", f"{L0}.self_attn.o_proj", (f"{L0}.self_attn.o_proj/output",), lambda x: x.bfloat16().to(x.dtype)),
    Fault("mlp dropped a little", f"{L0}.mlp", (f"{L0}.mlp/output", f"{L0}/output"), times(0.999)),
    Fault("head scaled", "lm_head", ("lm_head/output",), times(1.001)),
]  # fmt: skip


# ---------------------------------------------------------------------- vLLM, with a Qwen3 of three layers


def _rolled(cache: torch.Tensor) -> torch.Tensor:
    """Cosines and sines one position off."""
    return cache.roll(1, 0)


def _cached(change: Callable[[Any], Any], *, key: bool) -> Callable[[Any], Any]:
    """What is written to the paged cache, changed."""

    def wrapped(update: Any) -> Any:
        def write(layer: Any, k: Any, v: Any, cache: Any, slots: Any) -> Any:
            return update(layer, change(k) if key else k, v if key else change(v), cache, slots)

        return write

    return wrapped


def _swapped(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat([x[..., half:], x[..., :half]], -1)


L2 = "model.layers.2"
EPS = "variance_epsilon"

VLLM = [
    Fault("embedding scaled", "model.embed_tokens", ("model.embed_tokens/output",), times(1.0001)),
    Fault("embedding in bfloat16", "model.embed_tokens", ("model.embed_tokens/output",), narrow),
    Fault("eps of the first norm", f"{L0}.input_layernorm", (f"{L0}.input_layernorm/output",), (EPS, lambda _: 1e-3)),
    Fault("eps of a later norm", f"{L2}.input_layernorm", (f"{L2}.input_layernorm/output",), (EPS, lambda _: 1e-3)),
    Fault("eps of the second norm", f"{L1}.post_attention_layernorm", (f"{L1}.post_attention_layernorm/output",), (EPS, lambda _: 1e-3)),
    Fault("eps of the last norm", "model.norm", ("model.norm/output",), (EPS, lambda _: 1e-3)),
    Fault("eps of q_norm", f"{L1}.self_attn.q_norm", (f"{L1}.self_attn.q_norm/output",), (EPS, lambda _: 1e-4)),
    Fault("eps of k_norm", f"{L2}.self_attn.k_norm", (f"{L2}.self_attn.k_norm/output",), (EPS, lambda _: 1e-4)),
    Fault("norm in bfloat16", f"{L1}.input_layernorm", (f"{L1}.input_layernorm/output",), first(narrow)),
    Fault("residual lost", f"{L0}.post_attention_layernorm", (f"{L0}.post_attention_layernorm/input",), second(times(0.999))),
    Fault("query scaled", f"{L0}.self_attn.qkv_proj", (f"{L0}.self_attn.q_proj/output",), first(part(0, 128, 1.001))),
    Fault("key scaled", f"{L1}.self_attn.qkv_proj", (f"{L1}.self_attn.k_proj/output",), first(part(128, 192, 1.001))),
    Fault("value scaled", f"{L2}.self_attn.qkv_proj", (f"{L2}.self_attn.v_proj/output",), first(part(192, 256, 1.001))),
    Fault("rope one position off", f"{L0}.self_attn.rotary_emb", (f"{L0}.self_attn/query",), ("cos_sin_cache", _rolled)),
    Fault("rope scaled", f"{L0}.self_attn.rotary_emb", (f"{L0}.self_attn/query",), ("cos_sin_cache", times(1.0005))),
    Fault("rope interleaved", f"{L0}.self_attn.rotary_emb", (f"{L0}.self_attn/query",), ("is_neox_style", lambda _: False)),
    Fault("attention scale", f"{L1}.self_attn.attn", (f"{L1}.self_attn.o_proj/input",), ("impl.scale", times(1.01))),
    Fault("attention capped", f"{L2}.self_attn.attn", (f"{L2}.self_attn.o_proj/input",), ("impl.logits_soft_cap", lambda _: 3.0)),
    Fault("keys cached in bfloat16", f"{L1}.self_attn.attn", (f"{L1}.self_attn.o_proj/input",), ("impl.do_kv_cache_update", _cached(narrow, key=True))),
    Fault("values cached scaled", f"{L0}.self_attn.attn", (f"{L0}.self_attn.o_proj/input",), ("impl.do_kv_cache_update", _cached(times(1.001), key=False))),
    Fault("o_proj biased", f"{L2}.self_attn.o_proj", (f"{L2}.self_attn.o_proj/output",), first(lambda x: x + 1e-3)),
    Fault("gate and up swapped", f"{L0}.mlp.gate_up_proj", (f"{L0}.mlp.gate_proj/output",), first(_swapped)),
    Fault("up scaled", f"{L1}.mlp.gate_up_proj", (f"{L1}.mlp.up_proj/output",), first(part(128, 256, 0.999))),
    Fault("activation", f"{L2}.mlp.act_fn", (f"{L2}.mlp.down_proj/input",), times(1.0002)),
    Fault("down_proj in bfloat16", f"{L1}.mlp.down_proj", (f"{L1}.mlp.down_proj/output",), first(narrow)),
    Fault("logits scaled", "logits_processor", ("lm_head/output",), times(1.001)),
]  # fmt: skip

TRANSFORMERS = [
    Fault("embedding scaled", "model.embed_tokens", ("model.embed_tokens/output",), times(1.0001)),
    *(Fault(f"eps of {n} in {L}", f"{L}.{n}", (f"{L}.{n}/output",), (EPS, lambda _: 1e-3))
      for L, n in ((L0, "input_layernorm"), (L1, "input_layernorm"), (L2, "post_attention_layernorm"), (L0, "post_attention_layernorm"))),
    *(Fault(f"eps of {n} in {L}", f"{L}.self_attn.{n}", (f"{L}.self_attn.{n}/output",), (EPS, lambda _: 1e-4))
      for L, n in ((L0, "q_norm"), (L2, "k_norm"))),
    Fault("eps of the last norm", "model.norm", ("model.norm/output",), (EPS, lambda _: 1e-3)),
    *(Fault(f"{n} scaled in {L}", f"{L}.self_attn.{n}", (f"{L}.self_attn.{n}/output",), times(1.001))
      for L, n in ((L0, "q_proj"), (L1, "k_proj"), (L2, "v_proj"), (L1, "o_proj"))),
    *(Fault(f"{n} scaled in {L}", f"{L}.mlp.{n}", (f"{L}.mlp.{n}/output",), times(0.999))
      for L, n in ((L0, "gate_proj"), (L1, "up_proj"), (L2, "down_proj"))),
    Fault("rope base", "model.rotary_emb", (f"{L0}.self_attn/query",), ("inv_freq", times(1.01))),
    Fault("rope scaled", "model.rotary_emb", (f"{L0}.self_attn/query",), first(times(1.0005))),
    Fault("attention scale", f"{L1}.self_attn", (f"{L1}.self_attn.o_proj/input",), ("scaling", times(1.01))),
    Fault("activation", f"{L2}.mlp.act_fn", (f"{L2}.mlp.down_proj/input",), times(1.0002)),
    Fault("o_proj in bfloat16", f"{L0}.self_attn.o_proj", (f"{L0}.self_attn.o_proj/output",), lambda x: x.bfloat16().to(x.dtype)),
    Fault("norm in bfloat16", f"{L1}.input_layernorm", (f"{L1}.input_layernorm/output",), lambda x: x.bfloat16().to(x.dtype)),
    Fault("residual of the mlp", f"{L0}.mlp", (f"{L0}.mlp/output", f"{L0}/output"), times(0.999)),
    Fault("bias of down_proj", f"{L1}.mlp.down_proj", (f"{L1}.mlp.down_proj/output",), lambda x: x + 1e-3),
    Fault("head scaled", "lm_head", ("lm_head/output",), times(1.001)),
    Fault("head capped", "lm_head", ("lm_head/output",), lambda x: 30 * torch.tanh(x / 30)),
]  # fmt: skip
