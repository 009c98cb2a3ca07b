"""Sorts torch functions by what promotion has to do about them.

By name, since the same operation comes as ``torch.add``, ``Tensor.add``, ``Tensor.__add__`` and
``torch.ops.aten.add``. Whatever is not named here computes, which is the safe guess: its arguments are cast.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from typing import Any

import torch


class Kind(enum.Enum):
    """What a function does, as far as promotion has to tell it from others."""

    READ = "asks about a tensor, or changes what is not its values; gets what the model passed"
    RESTRIDE = "changes shape, strides or storage of a tensor in place, but not its values"
    VIEW = "takes elements without arithmetic; a narrow tensor stays narrow, and keeps its storage"
    DTYPE = "asks for a dtype; every floating-point tensor says float64"
    POINTER = "asks for the address of the values"
    CAST = "asks for another dtype"
    LIKE = "makes a tensor after the model of another one"
    LOOKUP = "picks rows of a tensor: picked first, cast afterwards"
    LINEAR = "multiplies by a weight, which may be large"
    WRITE = "changes its first argument"
    STATISTICS = "changes running statistics among its arguments"
    SET_DATA = "gives a tensor other values by assignment"
    COMPOSITE = "a function of torch written in Python; entered"
    HIGHER_ORDER = "an operator that takes functions; entered"
    CUSTOM = "an operator from elsewhere"
    COMPUTE = "everything else"


_NAMES: dict[Kind, frozenset[str]] = {
    Kind.DTYPE: frozenset({"dtype.__get__"}),
    Kind.SET_DATA: frozenset({"data.__set__"}),
    Kind.POINTER: frozenset({"data_ptr"}),
    Kind.VIEW: frozenset({
        "__getitem__", "view", "view_as", "reshape", "reshape_as", "expand", "expand_as", "permute", "transpose", "t",
        "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "unsqueeze", "squeeze", "flatten", "unflatten",
        "ravel", "narrow", "select", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "chunk",
        "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "unbind", "diagonal", "as_strided", "broadcast_to",
        "broadcast_tensors", "atleast_1d", "atleast_2d", "atleast_3d", "contiguous", "detach", "alias", "view_as_real",
        "view_as_complex", "real", "imag", "conj", "resolve_conj", "resolve_neg", "positive", "meshgrid", "cpu", "cuda",
        "pin_memory", "item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__complex__", "__index__",
        "__repr__", "__format__", "__array__", "data.__get__", "T.__get__", "mT.__get__", "H.__get__", "mH.__get__",
        "real.__get__", "imag.__get__",
    }),
    Kind.RESTRIDE: frozenset({
        "resize_", "resize_as_", "set_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_",
        "as_strided_",
    }),
    Kind.READ: frozenset({
        "size", "stride", "dim", "ndimension", "numel", "nelement", "element_size", "storage_offset", "is_contiguous",
        "is_floating_point", "is_complex", "is_signed", "is_pinned", "is_shared", "is_inference", "is_conj", "is_neg",
        "is_same_size", "is_set_to", "is_coalesced", "dim_order", "get_device", "has_names", "sparse_dim", "dense_dim",
        "_nnz", "_is_view", "__len__", "__hash__", "__deepcopy__", "__reduce_ex__", "__setstate__", "__dir__",
        "untyped_storage", "storage", "_typed_storage", "storage_type", "share_memory_", "requires_grad_",
        "retain_grad", "register_hook", "register_post_accumulate_grad_hook", "rename_", "detach_", "record_stream",
        "__dlpack__", "__dlpack_device__", "from_file", "is_distributed",
    }),
    Kind.CAST: frozenset({
        "to", "type", "type_as", "float", "half", "bfloat16", "double", "chalf", "cfloat", "cdouble", "as_tensor",
        "asarray",
    }),
    Kind.LIKE: frozenset({
        "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
        "new_empty", "new_full", "new_empty_strided",
    }),
    Kind.LOOKUP: frozenset({"embedding", "index_select", "gather", "take", "take_along_dim"}),
    Kind.LINEAR: frozenset({"linear"}),
    Kind.STATISTICS: frozenset({"batch_norm", "instance_norm", "native_batch_norm", "cudnn_batch_norm"}),
    Kind.WRITE: frozenset({
        "__setitem__", "__iadd__", "__isub__", "__imul__", "__imatmul__", "__itruediv__", "__idiv__", "__ifloordiv__",
        "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
    }),
}  # fmt: skip

_KIND_BY_NAME: dict[str, Kind] = {name: kind for kind, names in _NAMES.items() for name in names}

_WITHOUT_ARITHMETIC = frozenset({
    Kind.DTYPE, Kind.SET_DATA, Kind.POINTER, Kind.VIEW, Kind.RESTRIDE, Kind.READ, Kind.CAST,
})  # fmt: skip
"""Kinds that a function is of even if it is written in Python and could be entered."""

_OVERRIDE_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
"""What such a function asks whether anything overrides it."""

_BUILTIN_NAMESPACES = frozenset({"aten", "prims", "prim"})


def name_of(function: Callable[..., Any]) -> str:
    """The bare public name: ``add``, ``dtype.__get__``, ``bitsandbytes::gemm_4bit``.

    >>> name_of(torch.Tensor.add), name_of(torch.add), name_of(torch.Tensor.dtype.__get__)
    ('add', 'add', 'dtype.__get__')
    >>> name_of(torch.ops.aten.add.Tensor), name_of(torch.ops.prims.exp)
    ('add', 'exp')
    """
    if isinstance(function, torch._ops.OpOverload):
        qualified = function._schema.name
    elif isinstance(function, torch._ops.OpOverloadPacket):
        qualified = function._qualified_op_name
    else:
        name = getattr(function, "__name__", None) or repr(function)
        if name in ("__get__", "__set__", "__delete__"):
            return f"{getattr(getattr(function, '__self__', None), '__name__', '?')}.{name}"
        return name
    namespace, _, name = qualified.partition("::")
    return name if namespace in _BUILTIN_NAMESPACES else qualified


def kind_of(function: Callable[..., Any]) -> Kind:
    """What promotion does about a function.

    >>> [kind_of(f).name for f in (torch.add, torch.Tensor.add_, torch.Tensor.view, torch.Tensor.half)]
    ['COMPUTE', 'WRITE', 'VIEW', 'CAST']
    >>> kind_of(torch.nn.functional.softmax).name
    'COMPOSITE'
    """
    if isinstance(function, torch._ops.HigherOrderOperator):
        return Kind.HIGHER_ORDER
    name = name_of(function)
    if "::" in name:
        return Kind.CUSTOM
    kind = _KIND_BY_NAME.get(name)
    if kind is None and name.endswith((".__get__", ".__set__", ".__delete__")):
        kind = Kind.READ
    if kind in _WITHOUT_ARITHMETIC:
        return kind
    if isinstance(function, types.FunctionType) and _asks_for_overrides(function):
        return Kind.COMPOSITE
    if kind is None and name.endswith("_") and not name.endswith("__"):
        return Kind.WRITE
    return kind or Kind.COMPUTE


def entered(function: types.FunctionType) -> Callable[..., Any]:
    """A copy of a torch function written in Python that runs its body whatever mode is active.

    Such functions ask first whether something overrides torch functions, and if so hand themselves over
    instead of running. Under a mode the answer is always yes, so that running them *under the mode* would never
    end. In the copy the answer is no.
    """
    answers = {name: _no for name in _OVERRIDE_CHECKS if name in function.__globals__}
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **answers},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _asks_for_overrides(function: types.FunctionType) -> bool:
    return any(name in function.__globals__ for name in _OVERRIDE_CHECKS)


def _no(*_: object) -> bool:
    return False
