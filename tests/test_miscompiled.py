"""A mistake that a backend of torch.compile makes in one module is found at the compiled module that has it.

Each layer of a model is compiled by `aot_eager`, one of them by a backend that makes a `Mistake` in it. Sound twins are
compiled by `aot_eager` and by inductor. How many of all mistakes are found says

    python -m tests.test_miscompiled
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from tests.backends import KINDS, Mistake, places
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.explain.drift import layer_paths

MODELS = ("llama", "bert", "gpt2", "vit", "plain")
QUICK = (
    ("plain", "small eps", "norm"), ("plain", "bias", "gate"), ("plain", "dtype", "up"), ("llama", "eps", "input_layernorm"),
)  # fmt: skip
NOTHING = (("bert", "bias", "attention.self.key"), ("vit", "bias", "attention.k_proj"))
"""Mistakes that change nothing but rounding: softmax does not see what is added to all keys."""
BELOW_ROUNDING = "small eps"
"""Found where it makes more than four times what rounding makes in its layer, as in a norm of small values."""

pytestmark = pytest.mark.filterwarnings("ignore")
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up, self.gate, self.down = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(torch.tanh(self.up(y)) * self.gate(y) - 0.3 * y)


class Plain(nn.Module):
    """A model of nobody's: two blocks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
            self.layers = nn.ModuleList([Block() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def made(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and what it is given."""
    if name == "plain":
        model, inputs = (
            Plain().eval().to(dtype),
            {"x": torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))},
        )
    else:
        architecture = ARCHITECTURES[name]
        model, inputs = architecture.build(attention="sdpa", dtype=dtype), architecture.inputs([prompt(9)])
    return model, {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()
    }


def on(device: str, name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same on a device."""
    model, inputs = made(name, dtype)
    return model.to(device), {key: value.to(device) for key, value in inputs.items()}


def compared(
    model: nn.Module, inputs: dict[str, Tensor], mistake: Mistake | None, backend: str = "aot_eager"
) -> fp.Result:
    """The model, and a copy whose layers are compiled, the last of them with the mistake."""
    torch.compiler.reset()
    other = copy.deepcopy(model)
    *sound, last = layers_of(model)
    for path in sound:
        other.get_submodule(path).compile(backend=backend)
    other.get_submodule(last).compile(backend=backend if mistake is None else mistake.backend(backend))
    return fp.compare(fp.Run(model, inputs), fp.Run(other, inputs))


def layers_of(model: nn.Module) -> list[str]:
    return layer_paths(model) or ["layers.0", "layers.1"]


def mistakes(name: str, kinds: Any = tuple(KINDS)) -> Iterator[tuple[str, str]]:
    """Every kind of mistake with every module of the last layer in which it can be made."""
    model, inputs = made(name)
    torch.compiler.reset()
    layer = model.get_submodule(layers_of(model)[-1])
    yield from places(layer, lambda: model(**inputs), kinds)


def is_found(name: str, kind: str, module: str) -> str:
    """Empty where the layer with the mistake is what forkpoint names; else what it says."""
    model, inputs = made(name)
    mistake = Mistake(kind, module)
    result = compared(model, inputs, mistake)
    assert mistake.made, f"{name}: no {kind} in {module}"
    layer = layers_of(model)[-1]
    named = (
        result.origin.module
        if result.origin is not None
        else result.first.module
        if result.first is not None
        else ""
    )
    if result.verdict.kind == "semantic" and named == layer and layer in result.verdict.summary:
        return ""
    return f"{name}, {kind} in {module or '(layer)'}: {result.verdict.kind.value} at {named}: {result.verdict.summary}"


@pytest.mark.parametrize(("name", "kind", "module"), QUICK)
def test_a_mistake_is_found_at_its_layer(name: str, kind: str, module: str) -> None:
    assert is_found(name, kind, module) == ""


SOUND = [pytest.param(name, marks=[] if name in ("plain", "bert") else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sound_backend_makes_no_mistake(name: str, dtype: torch.dtype) -> None:
    model, inputs = made(name, dtype)
    assert compared(model, inputs, None).verdict.kind in ("identical", "rounding")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "module"), NOTHING)
def test_a_mistake_that_changes_nothing_is_rounding(name: str, kind: str, module: str) -> None:
    model, inputs = made(name)
    mistake = Mistake(kind, module)
    assert compared(model, inputs, mistake).verdict.kind == "rounding"
    assert mistake.made


@pytest.mark.slow
@compiler
def test_the_layer_is_named_although_another_rounds_before_it() -> None:
    model, inputs = made("bert")
    torch.compiler.reset()
    other = copy.deepcopy(model)
    other.encoder.layer[0].compile(backend="inductor")
    other.encoder.layer[1].compile(backend=Mistake("bias", "output.dense").backend())
    result = fp.compare(fp.Run(model, inputs), fp.Run(other, inputs))
    assert result.origin is not None
    assert (result.verdict.kind, result.origin.module) == ("semantic", "encoder.layer.1")
    assert "encoder.layer.1, as it was compiled, is" in result.verdict.summary


def test_a_model_that_is_compiled_as_a_whole() -> None:
    model, inputs = made("plain")
    torch.compiler.reset()
    mistake = Mistake("eps", "layers.0.norm")
    result = fp.compare(
        fp.Run(model, inputs), fp.Run(torch.compile(copy.deepcopy(model), backend=mistake.backend()), inputs)
    )
    assert mistake.made == 1
    assert result.verdict.kind == "semantic"
    assert "(model), as it was compiled, is" in result.verdict.summary


def autocast(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(**inputs)


class Residual(nn.Module):
    """A layer that returns float32, also where an autocast has it multiply in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def test_a_sound_backend_makes_no_mistake_under_an_autocast() -> None:
    """The Python that a module was made from is held against it under the same autocast."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Residual(), Residual(), nn.Linear(64, 3)).eval()
    torch.compiler.reset()
    for layer in model[:2]:
        layer.compile(backend="aot_eager")
    inputs = {"input": torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1))}

    result = fp.compare(fp.Run(model, inputs), fp.Run(model, inputs, call=autocast))
    assert result.verdict.kind == "rounding"


class Narrow(nn.Module):
    """A model that multiplies in bfloat16 and returns float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return autocast(self.model, inputs).float()


@pytest.mark.parametrize("inside", [True, False])
def test_bfloat16_inside_of_a_model_that_is_compiled_as_a_whole_is_rounding(inside: bool) -> None:
    """No trace shows the dtypes there; those of its Python are looked at."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Residual(), Residual()).eval()
    torch.compiler.reset()
    compiled = torch.compile(Narrow(model) if inside else model, backend="aot_eager")
    inputs = {"input": torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1))}
    result = fp.compare(fp.Run(model, inputs), fp.Run(compiled, inputs, call=None if inside else autocast))
    assert result.verdict.kind == "rounding"


class Counting(nn.Module):
    """A layer in which each call leaves something for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(16), nn.Linear(16, 16)
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(x)) + self.seen
        self.seen += x.mean((0, 1))
        return torch.tanh(x)


@pytest.mark.parametrize("mistake", [None, Mistake("small eps", "norm")], ids=["sound", "mistake"])
def test_a_module_is_held_against_its_python_in_the_state_of_the_call(mistake: Mistake | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Counting(), nn.Linear(16, 3)).eval()
    torch.compiler.reset()
    other = copy.deepcopy(model)
    other[0].compile(backend="aot_eager" if mistake is None else mistake.backend())
    x = 0.05 * torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    calls = [{"input": x}, {"input": x + 1}]
    call = autocast if mistake is None else None
    result = fp.compare(fp.Run(model, calls), fp.Run(other, calls, call=call))
    if mistake is None:
        assert result.verdict.kind == "rounding"
    else:
        assert result.verdict.kind == "semantic"
        assert result.verdict.summary.startswith("in run B 0, as it was compiled, is")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_mistake_is_found(name: str) -> None:
    found = [
        is_found(name, *plant)
        for plant in mistakes(name)
        if plant[0] != BELOW_ROUNDING and (name, *plant) not in NOTHING
    ]
    assert [miss for miss in found if miss] == []


@pytest.mark.slow
@compiler
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inductor_makes_no_mistake(name: str, dtype: torch.dtype) -> None:
    model, inputs = made(name, dtype)
    assert compared(model, inputs, None, "inductor").verdict.kind in ("identical", "rounding")


def main() -> None:
    for name in MODELS:
        plants = [plant for plant in mistakes(name) if (name, *plant) not in NOTHING]
        misses = [miss for plant in plants if (miss := is_found(name, *plant))]
        print(f"{name}: {len(plants) - len(misses)} of {len(plants)}", *misses, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
