"""Functions by their import path, and the list of what a scene may call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from forkpoint.errors import SceneError
from forkpoint.scene.format.functions import function_path, package_of, resolve_function

NAMED = {
    "torch.nn.functional.linear": F.linear,
    "torch.nn.functional.softmax": F.softmax,
    "torch.nn.functional.scaled_dot_product_attention": F.scaled_dot_product_attention,
    "torch.nn.functional.multi_head_attention_forward": F.multi_head_attention_forward,
    "torch.nn.functional.hardswish": F.hardswish,
    "torch.nn.functional.relu_": F.relu_,
    "torch.nn.functional.grouped_mm": F.grouped_mm,
    "torch.Tensor.add": torch.Tensor.add,
    "torch.Tensor.__add__": torch.Tensor.__add__,
    "torch.Tensor.__rsub__": torch.Tensor.__rsub__,
    "torch.Tensor.__getitem__": torch.Tensor.__getitem__,
    "torch.Tensor.__setitem__": torch.Tensor.__setitem__,
    "torch.Tensor.mT.__get__": torch.Tensor.mT.__get__,
    "torch.Tensor.float": torch.Tensor.float,
    "torch.addmm": torch.addmm,
    "torch.arange": torch.arange,
    "torch.functional.einsum": torch.einsum,
    "torch._grouped_mm": torch._grouped_mm,
    "torch.linalg.vector_norm": torch.linalg.vector_norm,
    "torch.fft.rfft": torch.fft.rfft,
    "torch.special.expm1": torch.special.expm1,
    "torch.ops.aten.mm": torch.ops.aten.mm,
    "torch.ops.aten.mm.default": torch.ops.aten.mm.default,
}


@pytest.mark.parametrize("path", NAMED)
def test_paths(path):
    assert function_path(NAMED[path]) == path
    found = resolve_function(path)
    assert found is NAMED[path] or found == NAMED[path]


@pytest.mark.parametrize(
    "path",
    [
        "os.system", "builtins.eval", "torch.load", "torch.save", "torch.from_file", "torch.hub.load", "torch.os",
        "torch.compile", "torch.vmap", "torch.set_num_threads", "torch._from_blob", "torch.frombuffer",
        "torch.Tensor.numpy", "torch.Tensor.__reduce_ex__", "torch.Tensor.__setstate__", "torch.Tensor.__class__",
        "torch.Tensor.set_", "torch.Tensor.resize_", "torch.Tensor.data_ptr", "torch.Tensor.untyped_storage",
        "torch.Tensor.apply_", "torch.Tensor.grad.__get__", "torch.Tensor.shape.__get__", "torch.Tensor.item",
        "torch.nn.functional.torch", "torch.nn.functional.handle_torch_function", "torch.nn.functional.Callable",
        "torch.nn.functional.linear.__call__", "torch.nn.functional.__builtins__", "torch.ops.aten.from_file",
        "torch.ops.aten._from_blob", "torch.ops.aten.set_", "torch.ops.load_library", "torch.ops.aten",
        "torch.ops.aten.mm.default.__class__", "torch.add; import os", "torch..add", "", "linear",
    ],
)  # fmt: skip
def test_whatever_else_is_refused(path):
    with pytest.raises(SceneError, match=r"expected (a function of torch|an operator of torch)"):
        resolve_function(path)


def test_a_function_of_another_torch():
    with pytest.raises(SceneError, match=r"torch .* has no torch\.Tensor\.__ipow__|expected a function"):
        resolve_function("torch.linalg.no_such_function")


def test_a_function_of_ones_own_cant_be_named():
    def kernel(x):
        return x

    with pytest.raises(
        SceneError, match=r"kernel can't be named in a scene; .*\(register a kernel of your own"
    ):
        function_path(kernel)


def test_operators_of_ones_own_need_trust():
    @torch.library.custom_op("forkpoint_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    path = function_path(torch.ops.forkpoint_tests.twice.default)
    assert path == "torch.ops.forkpoint_tests.twice.default"
    with pytest.raises(SceneError, match=r"load\(DIR, namespaces=\['forkpoint_tests'\]\)"):
        resolve_function(path)
    assert resolve_function(path, ("forkpoint_tests",)) is torch.ops.forkpoint_tests.twice.default


def test_the_package_that_registers_an_operator():
    assert package_of("torch.ops.bitsandbytes.gemm_4bit.default") == "bitsandbytes"
    assert package_of("torch.ops.aten.mm") is None
    assert package_of("torch.add") is None
