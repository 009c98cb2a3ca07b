"""Torch functions by their import path, and back again through a list of what a scene may call.

A scene is data from somewhere else, so the path in it is never evaluated: it is looked up among the
functions of torch that turn tensors into tensors. Nothing on the list reads or writes files, takes an
address, or runs code that is given to it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

from forkpoint.capture.functions import resolve as described
from forkpoint.errors import SceneError

_OWNERS = {
    "torch.nn.functional": torch.nn.functional,
    "torch": torch,
    "torch.Tensor": torch.Tensor,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
    "torch.special": torch.special,
    "torch.functional": torch.functional,
}
_NAMESPACES: dict[str, str | None] = {
    "aten": None,
    "prims": None,
    "quantized": None,
    "mkldnn": None,
    "onednn": None,
    "mkl": None,
    "bitsandbytes": "bitsandbytes",
    "torchvision": "torchvision",
    "torchao": "torchao",
    "fbgemm": "fbgemm_gpu",
    "transformers": "transformers",
}
"""Namespaces of `torch.ops` that a scene may name, and the package that registers each."""

_PRIVATE = frozenset(
    [
        "_softmax",
        "_log_softmax",
        "_safe_softmax",
        "_masked_softmax",
        "_grouped_mm",
        "_scaled_mm",
        "_scaled_mm_v2",
        "_scaled_grouped_mm",
        "_scaled_grouped_mm_v2",
        "_int_mm",
        "_weight_int8pack_mm",
        "_weight_int4pack_mm",
        "_weight_int4pack_mm_for_cpu",
        "_weight_int4pack_mm_with_scales_and_zeros",
        "_mixed_dtypes_linear",
        "_addmm_activation",
        "_fused_rms_norm",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "_scaled_dot_product_attention_math",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_fused_attention_overrideable",
        "_convolution",
        "_unsafe_index",
        "_unsafe_view",
        "_to_copy",
        "_embedding_bag",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_fft_c2c",
        "_fft_r2c",
        "_fft_c2r",
        "_dyn_quant_matmul_4bit",
        "_weight_norm",
        "_trilinear",
        "_unique2",
        "_index_put_impl_",
        "_stack",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
    ]
)
"""Functions whose names begin with an underscore, though models call them."""

_REFUSED = frozenset(
    [
        "from_file",
        "from_numpy",
        "frombuffer",
        "set_",
        "resize_",
        "resize_as_",
        "resize_as_sparse_",
        "data_ptr",
        "numpy",
        "apply_",
        "map_",
        "map2_",
        "share_memory_",
        "module_load",
        "to_dlpack",
        "register_hook",
        "retain_grad",
        "backward",
        "record_stream",
        "pin_memory",
        "storage",
        "untyped_storage",
        "storage_type",
        "sparse_resize_",
        "sparse_resize_and_clear_",
        "can_cast",
        "promote_types",
        "result_type",
        "cudnn_is_acceptable",
        "is_vulkan_available",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
        "set_data",
        "save",
        "load",
        "get_file_path",
        "manual_seed",
        "seed",
        "initial_seed",
        "set_num_threads",
        "warn",
    ]
)
_DUNDERS = frozenset(
    f"__{before}{name}__"
    for name in [
        "add",
        "sub",
        "mul",
        "truediv",
        "div",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    ]
    for before in ("", "r", "i")
) | frozenset(
    f"__{name}__"
    for name in ["getitem", "setitem", "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert"]
)
_ATTRIBUTES = frozenset(["T", "mT", "H", "mH", "real", "imag", "data"])


def function_path(func: Any) -> str:
    """The import path by which a torch function can be found again.

    >>> function_path(torch.nn.functional.linear), function_path(torch.Tensor.T.__get__)
    ('torch.nn.functional.linear', 'torch.Tensor.T.__get__')

    Raises:
        SceneError: a function that isn't torch's own, such as a kernel called from Python.
    """
    trusted = tuple(path.split(".")[2] for path in _candidates(func) if path.startswith("torch.ops."))
    for path in _candidates(func):
        try:
            if _same(resolve_function(path, trusted), func):
                return path
        except SceneError:
            continue
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or type(func).__name__
    module = getattr(func, "__module__", None)
    raise SceneError(
        f"{module + '.' if isinstance(module, str) else ''}{name} can't be named in a scene",
        "a function of torch or an operator of torch.ops",
        "register a kernel of your own with torch.library.custom_op, and load scenes with namespaces=[...]",
    )


def _candidates(func: Any) -> Iterator[str]:
    if isinstance(func, torch._ops.OpOverload):
        yield "torch.ops." + func._schema.name.replace("::", ".") + f".{func._overloadname}"
        return
    if isinstance(func, torch._ops.OpOverloadPacket):
        yield "torch.ops." + str(func._qualified_op_name).replace("::", ".")
        return
    path = torch.overrides.resolve_name(func)
    if isinstance(path, str) and path.startswith("torch."):
        yield path
    name = getattr(func, "__name__", "")
    for owner in _OWNERS:
        yield f"{owner}.{name}"


def _same(candidate: Any, func: Any) -> bool:
    return candidate is func or (type(candidate) is type(func) and candidate == func)


def resolve_function(path: str, namespaces: tuple[str, ...] = ()) -> Callable[..., Any]:
    """The torch function at an import path, if a scene may call it.

    >>> resolve_function("torch.nn.functional.silu") is torch.nn.functional.silu
    True

    Args:
        path: `torch.nn.functional.linear`, `torch.Tensor.add`, `torch.ops.aten.mm.default`.
        namespaces: more namespaces of `torch.ops` to trust.

    Raises:
        SceneError: not a path of that kind, not on the list, or not there in this version of torch.
    """
    refused = SceneError(
        f"the function {path!r}",
        "a function of torch that computes tensors from tensors",
        "a scene can call no other",
    )
    if not all(part.isidentifier() for part in path.split(".")):
        raise refused
    if path.startswith("torch.ops."):
        return _operator(path, namespaces, refused)
    attribute = path.removesuffix(".__get__")
    owner, _, name = attribute.rpartition(".")
    if path != attribute:
        is_listed = owner == "torch.Tensor" and name in _ATTRIBUTES
    else:
        is_listed = owner in _OWNERS and _allowed(name) and name in _public(owner)
    if not is_listed:
        raise refused
    function = getattr(_OWNERS[owner], name, None)
    if path != attribute:
        function = getattr(function, "__get__", None)
    if function is None:
        raise SceneError(
            f"torch {torch.__version__} has no {path}", "a function that it has", "install another torch"
        )
    if described(function).silent:
        raise refused
    return function


def _allowed(name: str) -> bool:
    if name in _REFUSED or "file" in name:
        return False
    return not name.startswith("_") or name in _PRIVATE or name in _DUNDERS


@functools.cache
def _public(owner: str) -> frozenset[str]:
    """Names of an owner's functions that turn tensors into tensors."""
    names = {
        path.rpartition(".")[2]
        for group in torch.overrides.get_overridable_functions().values()
        for func in group
        if isinstance(path := torch.overrides.resolve_name(func), str) and path.rpartition(".")[0] == owner
    }
    if owner == "torch":
        names |= set(dir(torch._C._VariableFunctionsClass))  # pyright: ignore[reportAttributeAccessIssue]
        names |= _public("torch.functional")
    elif owner == "torch.nn.functional":
        # Those that hand over to another function, or write in place, aren't among the overridable ones.
        names |= set(dir(torch._C._nn)) & set(dir(torch.nn.functional))  # pyright: ignore[reportAttributeAccessIssue]
        names |= {
            "grouped_mm",
            "scaled_mm",
            "scaled_grouped_mm",
            "hardsigmoid",
            "hardswish",
            "sigmoid",
            "tanh",
        }
        names |= {
            f"{name}_"
            for name in ("relu", "elu", "celu", "selu", "leaky_relu", "hardtanh", "threshold", "rrelu")
        }
    elif owner == "torch.Tensor":
        names |= _DUNDERS
    return frozenset(names)


def _operator(path: str, namespaces: tuple[str, ...], refused: SceneError) -> Callable[..., Any]:
    parts = path.split(".")[2:]
    if parts and parts[0] not in _NAMESPACES and parts[0] not in namespaces:
        raise SceneError(
            f"the operator {path}",
            "an operator of torch, or of a namespace that you trust",
            f"in Python, import what registers it, then forkpoint.scene.load(DIR, namespaces=[{parts[0]!r}])",
        )
    if len(parts) not in (2, 3) or (parts[0] not in _NAMESPACES and parts[0] not in namespaces):
        raise refused
    namespace, name = parts[0], parts[1]
    if name in _REFUSED or "file" in name or "print" in name or (namespace == "aten" and not _allowed(name)):
        raise refused
    package = _NAMESPACES.get(namespace)
    if package is not None and not hasattr(getattr(torch.ops, namespace), name):
        _register(package, path)
    packet = getattr(getattr(torch.ops, namespace), name, None)
    operator = packet if len(parts) == 2 or packet is None else getattr(packet, parts[2], None)
    if not isinstance(operator, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        raise SceneError(
            f"no operator {path} is registered", "the package that registers it", "import it first"
        )
    return operator


def _register(package: str, path: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise SceneError(f"the operator {path}", f"the package {package}", f"pip install {package}")
    importlib.import_module(package)


def package_of(path: str) -> str | None:
    """The package that has to be imported for an operator to be there, if it isn't torch's own."""
    return _NAMESPACES.get(path.split(".")[2]) if path.startswith("torch.ops.") else None
