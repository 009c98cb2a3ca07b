"""What is known of a torch function: its public name, whether it writes, whether it views."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from tests.capture.tracing import Traced

from forkpoint.capture.functions import is_view, parameter_names, resolve

X = torch.randn(1, 3, 4)

NAMES = [
    (lambda x: x + 1, "add"),
    (lambda x: 1 + x, "add"),
    (lambda x: 1 - x, "sub"),
    (lambda x: 1 / x, "div"),
    (lambda x: x / 2, "div"),
    (lambda x: x // 2, "floor_divide"),
    (lambda x: x % 2, "remainder"),
    (lambda x: 2**x, "pow"),
    (lambda x: -x, "neg"),
    (lambda x: x @ x.mT, "matmul"),
    (lambda x: x > 0, "gt"),
    (lambda x: (x > 0) & (x < 1), "bitwise_and"),
    (lambda x: ~(x > 0), "bitwise_not"),
    (lambda x: operator.iadd(x, 1), "add_"),
    (lambda x: operator.imul(x, 2), "mul_"),
    (lambda x: operator.itruediv(x, 2), "div_"),
    (lambda x: x[:, 0], "getitem"),
    (lambda x: torch.add(x, 1), "add"),
    (lambda x: x.add(1), "add"),
    (lambda x: x.add_(1), "add_"),
    (lambda x: x.T, "T"),
    (lambda x: F.linear(x, torch.ones(2, 4)), "linear"),
    (lambda x: x.softmax(-1), "softmax"),
    (lambda x: F.softmax(x, dim=-1), "softmax"),
    (lambda x: torch.ops.aten.add(x, 1), "aten.add"),
    (lambda x: torch.ops.aten.add.Tensor(x, 1), "aten.add"),
    (torch.fft.fft, "fft_fft"),
]


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize(("function", "name"), NAMES)
def test_a_function_has_its_public_name(function, name):
    traced = Traced(function, {"x": X})
    assert name in [op.function for op, _ in traced.events]


def test_a_reflected_matmul_is_a_matmul():
    class Left:
        def __matmul__(self, other):
            return NotImplemented

    assert resolve(torch.Tensor.__rmatmul__).name == "matmul"


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.shape, lambda x: x.dtype, lambda x: x.dim(), lambda x: x.numel(), lambda x: x[0, 0, 0].item(),
        lambda x: x.tolist(), len, lambda x: bool((x == x).all()), lambda x: x.is_contiguous(), str,
        lambda x: torch.equal(x, x), torch.is_tensor, lambda x: x.device, lambda x: x.requires_grad,
    ],
)  # fmt: skip
def test_a_question_is_no_op(ask):
    def program(x):
        ask(x)
        return x + 1

    names = [op.function for op, _ in Traced(program, {"x": X}).events if not op.is_boundary]
    assert set(names) <= {"add", "getitem", "eq", "all"}


def test_what_ends_in_an_underscore_writes():
    assert resolve(torch.Tensor.add_).writes
    assert resolve(torch.Tensor.__setitem__).writes
    assert not resolve(torch.Tensor.add).writes
    assert not resolve(torch.Tensor.__add__).writes


@pytest.mark.parametrize(
    ("function", "view"),
    [
        (lambda x: x.view(-1), True),
        (lambda x: x.reshape(-1), True),
        (lambda x: x.mT.reshape(-1), False),
        (lambda x: x.contiguous(), True),
        (lambda x: x.mT.contiguous(), False),
        (lambda x: x.to(torch.float32), True),
        (lambda x: x.to(torch.float64), False),
        (lambda x: x[:, 1:], True),
        (lambda x: x[:, torch.tensor([0, 1])], False),
        (lambda x: x.clone(), False),
        (lambda x: F.dropout(x, 0.5, training=False), True),  # the input itself
        (lambda x: x.chunk(2, -1)[1], True),
        (lambda x: x.flatten(), True),
    ],
)
def test_a_view_shares_the_memory_of_its_input(function, view):
    traced = Traced(function, {"x": X})
    op, event = [e for e in traced.events if not e[0].is_boundary][-1]
    assert (event.status == "view") == view, op.name


def test_memory_is_shared_by_strided_tensors_alone():
    sparse = torch.eye(2).to_sparse()
    assert not is_view(sparse, (sparse,), {})
    assert is_view(X[0], (torch.ones(2),), {"other": X})
    assert not is_view(X.clone(), (X,), {})


@pytest.mark.parametrize(
    ("name", "count", "names"),
    [
        ("linear", 3, ("input", "weight", "bias")),
        ("scaled_dot_product_attention", 4, ("query", "key", "value", "attn_mask")),
        ("conv1d", 2, ("input", "weight")),
        ("setitem", 3, ("input", "index", "value")),
        ("add", 2, ("input", "other")),
        ("aten.add", 2, ("input", "other")),
        ("no_such_function", 3, ("input", "other", "argument 2")),
    ],
)
def test_arguments_have_the_names_that_torch_gives_them(name, count, names):
    assert parameter_names(name, count) == names


def test_the_schema_that_fits_names_the_arguments():
    """An LSTM takes rows, or packed rows and their sizes; a bag of embeddings is called in two ways."""
    x, sizes, state, weights = torch.ones(2, 3, 4), torch.ones(2), [torch.ones(1)], [torch.ones(1)]
    assert parameter_names("lstm", 3, args=(x, state, weights)) == ("input", "hx", "params")
    assert parameter_names("lstm", 4, args=(x, sizes, state, weights)) == (
        "data",
        "batch_sizes",
        "hx",
        "params",
    )
    assert parameter_names("embedding_bag", 2, F.embedding_bag) == ("input", "weight")
    assert parameter_names("embedding_bag", 2, torch.embedding_bag) == ("weight", "indices")


def test_an_operator_writes_if_its_schema_says_so():
    from tests.programs import blocks

    assert blocks.raised is not None
    assert resolve(torch.ops.programs.raised.default).writes
    assert resolve(torch.ops.programs.raised).writes
    assert not resolve(torch.ops.programs.scaled.default).writes
    assert not resolve(torch.ops.aten.add).writes
    assert resolve(torch.ops.aten.add_.Tensor).writes
