"""Runs that do not repeat, and two runs that compute different functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import mixers, models, modules
from .case import DIFFERS, UNCHECKED, Pair, case
from .exact import picked
from .expect import FUNCTION, LOW_PRECISION, PARAMETERS, RANDOM, UNKNOWN_CHANCE, semantic
from .modules import Tagger, seeded
from .pairs import padded, twice

# ---------------------------------------------------------------------- 30, 31: runs that do not repeat


def _repeats_with_the_seed(pair: Pair) -> None:
    assert torch.equal(picked(pair.a, seed=3), picked(pair.a, seed=3))


def _ignores_the_seed(pair: Pair) -> None:
    assert not torch.equal(picked(pair.a, seed=3), picked(pair.a, seed=3))


@case("30-dropout", "GPT-2 in train mode, dropout left on", RANDOM, check=_repeats_with_the_seed)
def _() -> Pair:
    return twice(models.gpt2("eager", resid_pdrop=0.1, embd_pdrop=0.1).train())


@case(
    "30-dropout-padded",
    "BERT with dropout left on in attention, padded on the right",
    RANDOM,
    check=_repeats_with_the_seed,
)
def _() -> Pair:
    return padded(models.bert("sdpa", attention_probs_dropout_prob=0.1).train())


@case(
    "m-functional-dropout",
    "Functional dropout that eval mode does not switch off",
    RANDOM,
    check=_repeats_with_the_seed,
)
def _() -> Pair:
    return twice(seeded(Tagger, mixers.AlwaysDropout(), modules.Feedforward()))


@case("m-seeded-noise", "Noise from torch's generator", RANDOM, check=_repeats_with_the_seed)
def _() -> Pair:
    return twice(seeded(Tagger, mixers.SeededNoise()))


def _drops(pair: Pair) -> None:
    _repeats_with_the_seed(pair)
    seen = {tuple(picked(pair.a, seed=seed).flatten()[:3].tolist()) for seed in range(12)}
    assert len(seen) > 2


@case(
    "m-layer-drop",
    "Layers skipped at random: even the ops differ from run to run",
    RANDOM,
    truth=UNCHECKED,
    check=_drops,
)
def _() -> Pair:
    return twice(seeded(Tagger, *(mixers.LayerDrop(modules.Feedforward()) for _ in range(6))))


@case(
    "31-system-noise", "A module that adds noise from outside torch", UNKNOWN_CHANCE, check=_ignores_the_seed
)
def _() -> Pair:
    return twice(seeded(Tagger, mixers.SystemNoise(), modules.Feedforward()))


@case(
    "31-shuffled-sum",
    "A sum whose order changes from run to run, as with atomics, in single ops",
    UNKNOWN_CHANCE,
    note="each addition repeats alone: the order is the model's own code",
    check=_ignores_the_seed,
)
def _() -> Pair:
    return twice(seeded(Tagger, mixers.ShuffledSum(), modules.Feedforward()))


@case(
    "31-shuffled-sum-padded",
    "The same, padded on the left without positions: a leak beside the noise",
    UNKNOWN_CHANCE,
    check=_ignores_the_seed,
    note="two causes: a run that does not repeat weighs more",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.ShuffledSum(), modules.UnmaskedAttention()), "left")


# ---------------------------------------------------------------------- two functions


def _two(make: Any) -> Pair:
    """A model of each kind with the same weights, on the same tokens."""
    a, b = (seeded(Tagger, make(which)) for which in (False, True))
    return twice(a, b)


@case("m-activation-differs", "SiLU, or GELU", FUNCTION, origin=("gelu", "silu", "mixers.0"), floor=1e-3)
def _() -> Pair:
    return _two(lambda b: modules.Feedforward(F.gelu if b else F.silu))


@case(
    "m-gelu-tanh",
    "GELU by erf, or by tanh: near, but another function",
    FUNCTION,
    origin=("gelu", "down"),
    floor=1e-5,
)
def _() -> Pair:
    return _two(lambda b: modules.Feedforward((lambda x: F.gelu(x, approximate="tanh")) if b else F.gelu))


@case(
    "m-norm-eps",
    "RMSNorm with an epsilon of 1e-6, or of 1e-5",
    FUNCTION,
    origin=("add", "rms_norm", "mixers.0"),
    floor=1e-7,
)
def _() -> Pair:
    class Norm(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.eps = eps

        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)

    return _two(lambda b: Norm(1e-5 if b else 1e-6))


@case(
    "m-head-scaled",
    "One head's weights scaled by 1.01 in run b, by no parameter",
    FUNCTION,
    origin=("mul", "mixers.0"),
    floor=1e-4,
)
def _() -> Pair:
    def make(b: bool) -> nn.Module:
        attention = mixers.ScaledHead()
        attention.factor = 1.01 if b else 1.0
        return attention

    return _two(make)


@case(
    "m-hook-scales-layer",
    "A forward hook of run b's model scales a layer's output",
    FUNCTION,
    origin="mlp",
    floor=1e-3,
)
def _() -> Pair:
    a, b = models.llama("sdpa"), models.llama("sdpa")
    b.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 1.05)
    return twice(a, b)


@case(
    "m-attention-scale-missing",
    "Attention without its scale by the head's width in run b",
    FUNCTION,
    origin=("scaled_dot_product_attention", "self_attn"),
    floor=1e-2,
)
def _() -> Pair:
    a, b = models.llama("sdpa"), models.llama("sdpa")
    b.model.layers[1].self_attn.scaling = 1.0
    return twice(a, b)


@case(
    "m-experts-swapped-by-router",
    "Mixtral, two experts' router columns swapped after the weights",
    PARAMETERS,
    truth=DIFFERS,
)
def _() -> Pair:
    a, b = models.mixtral("eager"), models.mixtral("eager")
    with torch.no_grad():
        for name, parameter in b.named_parameters():
            if "gate.weight" in name:
                parameter.copy_(parameter[[1, 0, 2, 3]])
    return twice(a, b)


@case(
    "m-experts-swapped-by-hook",
    "Mixtral, a hook of run b swaps two experts in the router's choice",
    FUNCTION,
    origin=("experts", "gate"),
    floor=1e-2,
)
def _() -> Pair:
    a, b = models.mixtral("eager"), models.mixtral("eager")

    def swap(module: Any, args: Any, output: Any) -> Any:
        *rest, chosen = output
        return (*rest, torch.tensor([1, 0, 2, 3])[chosen])

    b.model.layers[0].mlp.gate.register_forward_hook(swap)
    return twice(a, b)


@case(
    "m-layer-skipped",
    "A layer left out in run b",
    FUNCTION,
    floor=1e-2,
    origin=("layers", "lm_head", "norm"),
    note="its ops are found in one run only; the shared parameters are equal",
)
def _() -> Pair:
    a, b = models.llama("sdpa"), models.llama("sdpa")

    def skip(model: Any, given: Any) -> Any:
        last = model.model.layers[1]
        hook = last.register_forward_hook(lambda module, args, output: args[0])
        try:
            return model(**given)
        finally:
            hook.remove()

    pair = twice(a, b)
    pair.b.call = skip
    return pair


def _rounds_to_infinity(pair: Pair) -> None:
    narrow = picked(pair.b)
    assert bool(narrow.isinf().any())
    assert not bool(narrow.isnan().any())


@case(
    "m-fp16-infinity",
    "A model in fp32, or in fp16 where a logit overflows to infinity",
    LOW_PRECISION,
    semantic("nan"),
    truth=UNCHECKED,
    check=_rounds_to_infinity,
    note="infinity is not NaN: in float64 the gap falls to noise",
)
def _() -> Pair:
    wide, narrow = (seeded(Tagger, modules.Feedforward()) for _ in range(2))
    with torch.no_grad():
        for model in (wide, narrow):
            model.head.weight.mul_(40000)
            # Exactly what fp16 can hold: else the weights themselves round to infinity.
            model.head.weight.clamp_(-60000, 60000)
    return twice(wide, models.cast(narrow, torch.float16))
