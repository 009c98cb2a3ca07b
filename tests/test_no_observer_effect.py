"""Tracing changes no bit of what a model computes, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, REQUIRED, Architecture, prompt
from torch import nn

import forkpoint

Call = Callable[[nn.Module, Any], Any]


class DeliberateError(RuntimeError):
    """Raised inside a model."""


# --- The same bits -------------------------------------------------------------------------------


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor of a model's output, caches included."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    if type(value).__module__.startswith("transformers."):
        return tensors({name: item for name, item in vars(value).items() if not callable(item)})
    return []


def same_bits(a: Any, b: Any) -> bool:
    left, right = tensors(a), tensors(b)
    return len(left) == len(right) > 0 and all(
        x.shape == y.shape and x.dtype == y.dtype and torch.equal(raw(x), raw(y))
        for x, y in zip(left, right, strict=True)
    )


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


class Witness:
    """Calls the model for forkpoint and keeps what it returned each time."""

    def __init__(self, call: Call | None = None) -> None:
        self.outputs: list[Any] = []
        self.modes: list[int] = []
        self._call = call or (lambda model, inputs: model(**inputs))

    def __call__(self, model: nn.Module, inputs: Any) -> Any:
        self.modes.append(torch._C._len_torch_function_stack())
        output = self._call(model, inputs)
        self.outputs.append(output)
        return output


def check(model: nn.Module, inputs: Mapping[str, Any], *, seen_by_a_mode: bool = True) -> forkpoint.Result:
    """Compares a run with itself, and every output that the model made with one made unobserved."""
    random = torch.get_rng_state()
    with torch.no_grad():
        plain = model(**inputs)
    drawn = not torch.equal(torch.get_rng_state(), random)
    witness = Witness()
    runs = [forkpoint.Run(model, inputs, call=witness) for _ in range(2)]
    result = forkpoint.compare(*runs, probes=False)
    # Some versions of transformers draw numbers for dropping layers that no layer is dropped by: the runs draw others.
    assert result.first is None or (drawn and result.first.function == "rand" and result.identical)
    assert len(witness.outputs) >= 2
    assert not seen_by_a_mode or any(witness.modes), "no run was traced"
    assert all(same_bits(output, plain) for output in witness.outputs)
    with torch.no_grad():
        assert same_bits(model(**inputs), plain), "the model was left changed"
    return result


def inputs_of(architecture: Architecture, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    inputs = architecture.inputs([prompt(9), prompt(6)], 13, "left" if architecture.causal else "right")
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, attention) for name, a in ARCHITECTURES.items() for attention in a.attentions],
)
def test_every_architecture(name: str, attention: str) -> None:
    architecture = ARCHITECTURES[name]
    check(architecture.build(attention=attention), inputs_of(architecture))


@pytest.mark.parametrize("name", REQUIRED)
def test_bfloat16(name: str) -> None:
    architecture = ARCHITECTURES[name]
    attention = architecture.attentions[-1]
    check(architecture.build(dtype=torch.bfloat16, attention=attention), inputs_of(architecture))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["llama", "mamba2", "t5"])
def test_gradient_modes(name: str, mode: Callable[[], Any]) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    with mode():
        check(model, inputs_of(architecture))
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


# --- Where torch has a fast path that it gives up under a function mode --------------------------


def transformer_encoder(dtype: torch.dtype, *, nested: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dtype=dtype)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()


def float_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    return values, padding


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformer_encoder_with_padding(dtype: torch.dtype, nested: bool) -> None:
    values, padding = float_inputs(dtype)
    model = transformer_encoder(dtype, nested=nested)
    check(model, {"src": values, "src_key_padding_mask": padding})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformer_encoder_inside_another_model(dtype: torch.dtype) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = transformer_encoder(dtype, nested=False)
            self.head = nn.Linear(32, 3, dtype=dtype)

        def forward(self, values: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(values * 2, src_key_padding_mask=padding))

    values, padding = float_inputs(dtype)
    check(Classifier().eval(), {"values": values, "padding": padding})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention(training: bool, batch_first: bool, weights: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(32, 4, batch_first=batch_first).train(training)
    values, padding = float_inputs(torch.float32)
    if not batch_first:
        values = values.transpose(0, 1).contiguous()
    inputs = {
        "query": values,
        "key": values,
        "value": values,
        "key_padding_mask": padding,
        "need_weights": weights,
    }
    check(model, inputs)
    assert model.training == training


def test_a_decoder_with_two_inputs() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 48, batch_first=True), 2).eval()
    values, padding = float_inputs(torch.float32)
    check(model, {"tgt": values[:, :5], "memory": values, "memory_key_padding_mask": padding})


# --- Compiled models -----------------------------------------------------------------------------


def with_other_bits(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
    """A compiler whose code computes something else, so that falling back to eager shows."""

    def run(*args: Any) -> Any:
        return [
            value * 1.5 if torch.is_tensor(value) and value.is_floating_point() else value
            for value in graph(*args)
        ]

    return run


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


COMPILERS = [
    pytest.param(with_other_bits, id="other_bits"),
    pytest.param("aot_eager", id="aot_eager"),
    pytest.param("inductor", id="inductor", marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize("how", ["torch.compile", "in place", "one layer"])
def test_compiled_model(backend: Any, how: str) -> None:
    architecture = ARCHITECTURES["llama"]
    model: Any = architecture.build(dtype=torch.bfloat16, attention="sdpa")
    inputs = {**inputs_of(architecture), "use_cache": False}
    if how == "torch.compile":
        model = torch.compile(model, backend=backend)
    elif how == "in place":
        model.compile(backend=backend)
    else:
        model.model.layers[1] = torch.compile(model.model.layers[1], backend=backend)
    try:
        check(model, inputs)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if backend == "inductor":
            pytest.skip(f"no working C++ compiler: {error}")
        raise


# --- Nothing is left behind ----------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, Any]:
    """What a trace might leave changed."""
    hooks = vars(torch.nn.modules.module)
    return {
        "call": nn.Module.__call__,
        "code of the call": nn.Module.__call__.__code__,
        "call_impl": nn.Module._call_impl,
        "getattr": nn.Module.__getattr__,
        "global hooks": {
            name: len(value)
            for name, value in hooks.items()
            if name.startswith("_global") and hasattr(value, "__len__")
        },
        "function modes": tuple(torch.overrides._get_current_function_mode_stack()),
        "dispatch modes": tuple(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "torch functions": {
            name: value for name, value in vars(torch.nn.functional).items() if callable(value)
        },
        "tensor methods": dict(vars(torch.Tensor)),
        "modules": {
            path: {name: attribute(value) for name, value in vars(module).items()}
            for path, module in model.named_modules()
        },
        "classes": {type(module): dict(vars(type(module))) for module in model.modules()},
        "weights": {
            name: (value.data_ptr(), value._version, value.requires_grad, raw(value).sum().item())
            for name, value in [*model.named_parameters(), *model.named_buffers()]
        },
    }


def attribute(value: Any) -> Any:
    """An attribute, in a form that shows when it has been replaced or has grown."""
    return (id(value), len(value)) if isinstance(value, (dict, list, set)) else id(value)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


@pytest.mark.parametrize("name", REQUIRED)
def test_nothing_is_left_behind(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    inputs = inputs_of(architecture)
    with torch.no_grad():
        model(**inputs)  # What a first call makes in a model is not the trace's doing.
    before, copies = everything(model), {name: value.clone() for name, value in inputs.items()}
    versions = {name: value._version for name, value in inputs.items()}
    forkpoint.compare(forkpoint.Run(model, inputs), forkpoint.Run(model, inputs), probes=False)
    assert changed(before, everything(model)) == []
    assert all(torch.equal(inputs[name], copies[name]) for name in copies)
    assert {name: value._version for name, value in inputs.items()} == versions


@pytest.mark.parametrize(
    "module", ["", "model.embed_tokens", "model.layers.1.self_attn", "model.layers.1.mlp.act_fn", "lm_head"]
)
@pytest.mark.parametrize("fails_in", [1, 2])
def test_an_exception_inside_the_model(module: str, fails_in: int) -> None:
    architecture = ARCHITECTURES["llama"]
    model = architecture.build()
    inputs = inputs_of(architecture)
    plain = model(**inputs)
    target = model.get_submodule(module)
    original, calls = target.forward, 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*args, **kwargs)
        if calls == fails_in:
            raise DeliberateError
        return result

    target.forward = forward
    before = everything(model)
    runs = [forkpoint.Run(model, inputs) for _ in range(2)]
    with pytest.raises(DeliberateError):
        forkpoint.compare(*runs, probes=False)
    assert changed(before, everything(model)) == []
    assert forkpoint.compare(*runs, probes=False).first is None
    assert same_bits(model(**inputs), plain)
    del target.forward
    assert same_bits(model(**inputs), plain)


def test_an_exception_inside_a_torch_function() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4))
    before = everything(model)
    run = forkpoint.Run(model, {"input": torch.zeros(1, 3, 4)})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        forkpoint.compare(run, run, probes=False)
    assert changed(before, everything(model)) == []


def test_modes_of_the_user_stay() -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    architecture = ARCHITECTURES["llama"]
    model = architecture.build()
    with Mode() as mode:
        check(model, inputs_of(architecture))
        assert torch.overrides._get_current_function_mode_stack() == [mode]


def test_modes_of_the_user_see_the_model_alone() -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(torch.overrides.resolve_name(func) or str(func))
            return func(*args, **(kwargs or {}))

    architecture = ARCHITECTURES["llama"]
    model, inputs = architecture.build(), inputs_of(architecture)
    with torch.no_grad(), Mode() as alone:
        model(**inputs)
    witness = Witness()
    with Mode() as mode:
        run = forkpoint.Run(model, inputs, call=witness)
        assert mode.seen == []
        result = forkpoint.compare(run, run, probes=False)
    assert result.identical
    assert len(witness.outputs) >= 4
    assert mode.seen == alone.seen * len(witness.outputs)


def test_hooks_of_the_user_run_once_and_stay() -> None:
    architecture = ARCHITECTURES["llama"]
    model = architecture.build()
    calls: list[str] = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append("hook"))
    witness = Witness()
    run = forkpoint.Run(model, inputs_of(architecture), call=witness)
    forkpoint.compare(run, run, probes=False)
    assert len(calls) == len(witness.outputs)
    assert len(model.model.layers[0]._forward_hooks) == 1
    handle.remove()


def test_training_mode_and_gradients_stay() -> None:
    architecture = ARCHITECTURES["gpt2"]
    model = architecture.build(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    inputs = inputs_of(architecture)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    check(model, inputs)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in gradients.items())
