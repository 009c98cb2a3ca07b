"""Tensors of every kind that torch has, as results, as inputs and on the way; and models that end in every way there is.

Equal runs are identical and others are not, in C and in Python; whatever a model raises comes through; nothing stays changed.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from tests.trust.interrupts import state
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_map

import forkpoint as fp
from forkpoint.native.choice import python_alone


@pytest.fixture(params=[True, False], ids=["C", "Python"], autouse=True)
def _both(request: pytest.FixtureRequest) -> Generator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse, nested and quantised tensors beta or old
        if request.param:
            yield
        else:
            with python_alone():
                yield


Body = Callable[[Any, Any, float], Any]


class Model(nn.Module):
    """Two layers, and a function that makes of them what it likes."""

    def __init__(self, body: Body, part: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.body, self.part = body, part

    def forward(self, x: Any, gain: float = 1.0) -> Any:
        return self.body(self, x, gain)


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def compared(model: nn.Module, x: Any = X, gain: float = 1.5) -> fp.Result:
    before = state(model)
    result = fp.compare(fp.Run(model, {"x": x, "gain": 1.0}), fp.Run(model, {"x": x, "gain": gain}))
    assert state(model) == before
    assert str(result)
    assert fp.Result.from_dict(result.to_dict()).verdict == result.verdict
    return result


class Dispatching(Tensor):
    """A subclass with memory of its own whose calls go through Python, and give the same class again."""

    @staticmethod
    def __new__(cls, value: Tensor) -> Any:
        return Tensor._make_subclass(cls, value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._DisableTorchDispatch():
            args, kwargs = tree_map(
                lambda v: v.as_subclass(Tensor) if isinstance(v, Dispatching) else v, (args, kwargs or {})
            )
            found = func(*args, **kwargs)
        return tree_map(lambda v: Dispatching(v) if isinstance(v, Tensor) else v, found)


class Refusing(Tensor):
    """A subclass that lets nobody copy it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.detach, Tensor.clone):
            raise RuntimeError("no copies")
        return super().__torch_function__(func, types, args, kwargs or {})


KINDS: dict[str, Body] = {
    "complex": lambda m, x, g: torch.complex(m.last(x) * g, x).conj(),
    "negated view": lambda m, x, g: torch.complex(x, m.last(x) * g).conj().imag,
    "CSR": lambda m, x, g: ((m.last(x[0]) * g).to_sparse_csr(), m.last(x) * g),
    "CSC": lambda m, x, g: ((m.last(x[0]) * g).to_sparse_csc(), m.last(x) * g),
    "BSR": lambda m, x, g: (m.last(x[:, :2].flatten(0, 1)) * g).to_sparse_bsr((2, 2)).to_dense(),
    "hybrid COO": lambda m, x, g: (m.last(x) * g).to_sparse(1).coalesce().values(),
    "nested": lambda m, x, g: torch.nested.nested_tensor([m.last(x[0]) * g, x[1][:2]]).to_padded_tensor(0.0),
    "jagged": lambda m, x, g: torch.nested.nested_tensor([m.last(x[0]) * g, x[1][:2]], layout=torch.jagged).values(),
    "no elements": lambda m, x, g: (m.last(x) * g, x[:, :0], m.last(x[:, :0]), torch.zeros(0, 2**40)),
    "stride 0": lambda m, x, g: (m.last(x) * g)[..., :1].expand(2, 3, 100_000),
    "overlapping": lambda m, x, g: (m.last(x) * g).reshape(-1).as_strided((20, 5), (1, 1)),
    "dispatching": lambda m, x, g: (Dispatching(m.last(x).detach()) * g).relu(),
    "functionalised": lambda m, x, g: torch.func.functionalize(lambda v: v.clone().mul_(g))(m.last(x)),
    "in vmap": lambda m, x, g: torch.vmap(m.last)(x) * g,
    "tangents": lambda m, x, g: torch.func.jvp(m.last, (x,), (x,))[1] * g,
    "other dtypes": lambda m, x, g: ((m.last(x) * g).to(torch.float8_e5m2), torch.zeros(3, dtype=torch.uint16)),
    "set": lambda m, x, g: torch.empty(0).set_((m.last(x) * g).untyped_storage(), 0, (24,)),
    "shared": lambda m, x, g: (m.last(x) * g).share_memory_(),
    "handed over": lambda m, x, g: torch.from_dlpack(m.last(x).detach()) * g,
    "keys of any kind": lambda m, x, g: {3: m.last(x) * g, None: x, ("a", 1): x},
    "with gradients": lambda m, x, g: torch.enable_grad()(lambda: m.last(x) * g)(),
    "a hundred": lambda m, x, g: [m.last(x) * g for _ in range(100)],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_every_kind(kind: str):
    assert compared(Model(KINDS[kind]), gain=1.0).identical
    found = compared(Model(KINDS[kind])).verdict
    assert found.kind == "semantic", found.summary


UNREADABLE: dict[str, Body] = {
    "quantised": lambda m, x, g: torch.quantize_per_tensor(m.last(x) * g, 0.01, 0, torch.qint8).dequantize(),
    "meta": lambda m, x, g: (m.last(x) * g, torch.empty(3, 4, device="meta") * 2),
    "reinterpreted": lambda m, x, g: (m.last(x) * g).contiguous().view(torch.int32),
    "refusing": lambda m, x, g: (m.last(x) * g).as_subclass(Refusing) * 1,
    "functional": lambda m, x, g: torch._to_functional_tensor(m.last(x).detach() * g),
    "MKL-DNN": lambda m, x, g: (m.last(x[0]) * g).to_mkldnn().to_dense(),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_can_not_be_known_is_not_said(kind: str):
    assert compared(Model(UNREADABLE[kind]), gain=1.0).verdict.kind in ("identical", "undetermined")
    assert compared(Model(UNREADABLE[kind])).verdict.kind in ("semantic", "undetermined")


INPUTS: dict[str, Callable[[], Any]] = {
    "a leaf": lambda: X.clone().requires_grad_(),
    "what was computed": lambda: X.clone().requires_grad_() * 2,
    "transposed": lambda: (X.transpose(1, 2).clone().requires_grad_() * 2).transpose(1, 2),
    "stride 0": lambda: X[..., :1].expand(2, 3, 4),
    "complex": lambda: torch.complex(X, X).conj(),
    "negated view": lambda: torch.complex(X, X).conj().imag,
    "sparse": X[0].to_sparse,
    "CSR": X[0].to_sparse_csr,
    "jagged": lambda: torch.nested.nested_tensor([X[0], X[1][:2]], layout=torch.jagged),
    "quantised": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    "dispatching": lambda: Dispatching(X.clone()),
    "a list": lambda: [X, [X, {"a": X}]],
}  # fmt: skip


def read(model: Any, x: Any, gain: float) -> Any:
    if isinstance(x, list):
        return sum(read(model, item, gain) for item in x)
    if isinstance(x, dict):
        return read(model, list(x.values()), gain)
    if x.is_nested:
        x = x.values()
    x = x.dequantize() if x.is_quantized else x.to_dense() if x.layout is not torch.strided else x
    return model.last(x.real if x.is_complex() else x) * gain


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_of_every_kind(kind: str):
    assert compared(Model(read), INPUTS[kind](), 1.0).identical
    assert compared(Model(read), INPUTS[kind]()).verdict.kind == "semantic"


@pytest.mark.parametrize("kind", ["a leaf", "what was computed", "transposed"])
def test_gradients_of_inputs(kind: str):
    def forces(model: Any, x: Tensor, gain: float) -> Any:
        energy = (model.last(torch.tanh(x)) * gain).sum()
        return energy.detach(), torch.autograd.grad(energy, x)[0]

    x = INPUTS[kind]()
    assert compared(Model(forces), x, 1.0).identical
    assert compared(Model(forces), x).verdict.kind == "semantic"


def test_inputs_that_were_computed_may_be_written_in_place():
    def writes(model: Any, x: Tensor, gain: float) -> Any:
        return model.last(x.mul_(2)) * gain

    x = X.clone().requires_grad_() * 1
    assert compared(Model(writes), x).verdict.kind == "semantic"
    assert torch.equal(x, X)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def parametrised() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


PARTS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "weight norm by hooks": lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "spectral norm by hooks": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "its own parametrisation": parametrised,
}


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_computed(part: str):
    def body(model: Any, x: Tensor, gain: float) -> Tensor:
        with parametrize.cached():
            return model.part(model.part(x)) * gain

    assert compared(Model(body, PARTS[part]()), gain=1.0).identical
    assert compared(Model(body, PARTS[part]())).verdict.kind == "semantic"


class Own(BaseException):
    pass


ENDS: dict[str, BaseException] = {
    "sys.exit": SystemExit(3),
    "Ctrl-C": KeyboardInterrupt(),
    "an error": ZeroDivisionError("x"),
    "StopIteration": StopIteration(),
    "GeneratorExit": GeneratorExit(),
    "its own": Own("x"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("where", ["forward", "hook", "pre-hook"])
def test_whatever_a_model_raises_comes_through(end: str, where: str):
    def raises(*_: Any) -> Any:
        raise ENDS[end]

    model = Model(lambda m, x, g: m.last(m.first(x)) if where != "forward" else raises(m.first(x)))
    if where == "hook":
        model.last.register_forward_hook(raises, always_call=True)
    if where == "pre-hook":
        model.last.register_forward_pre_hook(raises)
    before = state(model)
    with pytest.raises(type(ENDS[end])):
        fp.compare(fp.Run(model, {"x": X}), fp.Run(model, {"x": X}))
    assert state(model) == before


def deletes_a_module(model: Any, x: Tensor, gain: float) -> Tensor:
    y = model.first(x)
    del model.first
    return model.last(y) * gain


def empties_itself(model: Any, x: Tensor, gain: float) -> Tensor:
    y = model.last(x) * gain
    vars(model).clear()
    return y


def changes_its_class(model: Any, x: Tensor, gain: float) -> Tensor:
    model.__class__ = type("Other", (Model,), {})
    return model.last(x) * gain


def adds_a_hook(model: Any, x: Tensor, gain: float) -> Tensor:
    model.last.register_forward_hook(lambda module, args, output: output * 2)
    return model.last(x) * gain


def replaces_a_weight(model: Any, x: Tensor, gain: float) -> Tensor:
    model.last.weight = nn.Parameter(model.last.weight.detach() * 2)
    return model.last(x) * gain


def runs_threads(model: Any, x: Tensor, gain: float) -> Tensor:
    found: list[Any] = [None] * 3

    def work(index: int) -> None:
        found[index] = model.last(x) * (index + 1)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found) * gain


def reaches_the_limit(model: Any, x: Tensor, gain: float) -> Tensor:
    def down(y: Tensor) -> Tensor:
        try:
            return down(torch.tanh(y))
        except RecursionError:
            return y

    down(x)
    return model.last(x) * gain


@pytest.mark.parametrize(
    "body",
    [
        deletes_a_module, empties_itself, changes_its_class, adds_a_hook, replaces_a_weight, runs_threads,
        reaches_the_limit,
    ],
)  # fmt: skip
def test_models_that_take_themselves_apart(body: Body):
    assert compared(Model(body), gain=1.0).identical
    assert compared(Model(body)).verdict.kind == "semantic"


class Deep(nn.Module):
    """Modules within one another."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.inner = Deep(levels - 1) if levels else nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_modules_within_one_another():
    assert compared(Model(lambda m, x, g: m.part(x) * g, Deep(60))).verdict.kind == "semantic"
    deep = Model(lambda m, x, g: m.part(x) * g, Deep(200))
    with pytest.raises(fp.ForkpointError, match=r"are too few to look at it.*sys\.setrecursionlimit"):
        fp.compare(fp.Run(deep, {"x": X}), fp.Run(deep, {"x": X}))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(4000)
    try:
        assert compared(deep).verdict.kind == "semantic"
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    "returned", [lambda m, x, g: (m.last(x) for _ in "ab"), lambda m, x, g: m, lambda *_: None]
)
def test_models_that_return_no_tensor_are_refused_in_one_line(returned: Body):
    with pytest.raises(fp.ForkpointError, match="expected at least one tensor"):
        compared(Model(returned))
