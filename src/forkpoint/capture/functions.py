"""The traits of a torch function that tracing needs: its public name, whether it writes, whether it gives views."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forkpoint.native.choice import choose

OPERATORS = {
    "add": "add", "radd": "add", "iadd": "add_", "sub": "sub", "rsub": "sub", "isub": "sub_", "mul": "mul",
    "rmul": "mul", "imul": "mul_", "truediv": "div", "rtruediv": "div", "rdiv": "div", "div": "div",
    "itruediv": "div_", "idiv": "div_", "pow": "pow", "rpow": "pow", "ipow": "pow_", "matmul": "matmul",
    "rmatmul": "matmul", "neg": "neg", "pos": "positive", "abs": "abs", "invert": "bitwise_not", "and": "bitwise_and",
    "rand": "bitwise_and", "iand": "bitwise_and_", "or": "bitwise_or", "ror": "bitwise_or", "ior": "bitwise_or_",
    "xor": "bitwise_xor", "rxor": "bitwise_xor", "ixor": "bitwise_xor_", "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift", "mod": "remainder", "rmod": "remainder", "imod": "remainder_",
    "floordiv": "floor_divide", "rfloordiv": "floor_divide", "ifloordiv": "floor_divide_", "eq": "eq", "ne": "ne",
    "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "getitem": "getitem", "setitem": "setitem",
}  # fmt: skip

_SILENT = frozenset({
    "shape", "size", "dim", "ndim", "ndimension", "dtype", "device", "requires_grad", "is_cuda", "is_cpu", "is_mps",
    "is_meta", "is_sparse", "is_quantized", "layout", "numel", "nelement", "stride", "storage_offset", "element_size",
    "itemsize", "nbytes", "is_contiguous", "is_floating_point", "is_complex", "is_leaf", "is_inference", "is_signed",
    "item", "tolist", "__len__", "__bool__", "__int__", "__float__", "__index__", "__repr__", "__str__", "__format__",
    "__hash__", "__contains__", "__iter__", "__reduce_ex__", "__deepcopy__", "data_ptr", "untyped_storage", "storage",
    "_version", "grad", "grad_fn", "_base", "is_pinned", "names", "has_names", "__dir__", "register_hook", "get_device",
    "_backward_hooks", "retain_grad", "backward", "is_same_size", "numpy", "__array__", "equal", "allclose",
    "set_", "resize_", "type_promotion", "result_type", "can_cast", "is_nonzero", "is_tensor",
})  # fmt: skip
"""Functions that return no tensor of the model's own, so they are passed through unrecorded."""

READ_OUT = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__",
    "__repr__", "__str__", "__format__", "is_nonzero", "equal", "allclose", "storage", "untyped_storage",
})  # fmt: skip
"""Functions that hand values of a tensor to Python, which may go another way by them."""

ALWAYS_VIEWS = frozenset({
    "view", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "T", "mT", "H", "mH", "adjoint",
    "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to", "view_as", "select", "narrow", "split", "chunk",
    "tensor_split", "unbind", "unflatten", "diagonal", "unfold", "detach", "real", "data", "split_with_sizes",
    "as_strided", "view_as_real", "view_as_complex", "alias", "requires_grad_", "hsplit", "vsplit",
})  # fmt: skip

NEVER_VIEWS = frozenset({
    "linear", "matmul", "bmm", "add", "mul", "sub", "div", "pow", "rsqrt", "mean", "sum", "cat", "silu", "gelu", "relu",
    "softmax", "scaled_dot_product_attention", "embedding", "neg", "sigmoid", "tanh", "exp", "layer_norm", "rms_norm",
    "add_", "mul_", "clone", "cos", "sin", "stack", "where", "eq", "le", "lt", "gt", "ge", "arange", "cumsum",
})  # fmt: skip

OF_KNOWN_SHAPE = (NEVER_VIEWS | ALWAYS_VIEWS | {"float", "half", "bfloat16", "contiguous", "reshape"}) - {
    "arange", "where", "scaled_dot_product_attention", "layer_norm", "rms_norm",
}  # fmt: skip
"""Functions of torch whose results' shapes and strides follow from their arguments' and from numbers among them, never
from a tensor's values."""

WITHOUT_LISTS = frozenset({
    "linear", "matmul", "bmm", "add", "mul", "sub", "div", "pow", "rsqrt", "silu", "gelu", "relu", "softmax", "embedding",
    "scaled_dot_product_attention", "neg", "sigmoid", "tanh", "exp", "cos", "sin", "transpose", "unsqueeze", "to", "float",
    "contiguous", "type_as", "dropout", "t", "T", "mT", "eq", "le", "lt", "gt", "ge", "where", "clone", "detach", "chunk",
})  # fmt: skip
"""Functions that take no list by position."""

NAMED = _SILENT | NEVER_VIEWS | ALWAYS_VIEWS | OF_KNOWN_SHAPE | WITHOUT_LISTS
"""All names on the lists above: most functions that models call are among them."""

UNWRITTEN = frozenset({"empty", "new_empty", "empty_like", "empty_strided"})
"""Functions whose result is garbage until somebody writes to it."""

BORROWING = frozenset({"bitsandbytes.int8_vectorwise_quant", "bitsandbytes.int8_double_quant"})
"""Operators that change what they are given while they run and put it back, which their schemas do not say."""

LOOKUPS = frozenset({"embedding"})
"""Functions that look up numbers for ids."""
LOOKS_UP = 1 << 5
"""Says so in their flags."""


class PythonTraits:
    """Base of `Function`: the one attribute that the tap reads for every call."""

    flags: int


if TYPE_CHECKING:
    Traits = PythonTraits
else:
    Traits = choose(PythonTraits, "Traits")


class Function(Traits):
    """A torch function, resolved once, and compared by identity.

    Attributes:
        func: the function itself.
        name: its public name: `add` for `+`, `aten.add` for a call through `torch.ops`.
        rule: the name under which its rule is registered.
        silent: whether it makes no tensor of the model's own, so that it isn't recorded.
        writes: whether it changes its first argument in place.
        inner: for `multi_head_attention_forward`, a copy whose inner calls are seen; see `_enterable`.
        at_once: whether its call has to be recorded when it is made, not when the tape is read.
        may_or_may_not_view: whether every result has to be checked for shared memory, since arguments of the same shapes
            may give a view or not.
        rewrites: whether it gives an existing tensor another storage or shape.
        of_known_shape: whether its results' shapes and strides follow from those of its arguments.
        takes_lists: whether a list may be among its positional arguments.
        flags: `silent`, `rewrites`, `at_once`, `takes_lists`, whether `may_view` is always, and `LOOKS_UP`, in bits.
        may_view: whether its result shares memory with its input: always, never, or None where one has to look.
    """

    def __init__(
        self,
        func: Any,
        name: str,
        rule: str,
        silent: bool,
        writes: bool,
        inner: Callable[..., Any] | None,
        may_view: bool | None,
    ) -> None:
        self.func = func
        self.name, self.rule, self.silent, self.writes = name, rule, silent, writes
        self.inner, self.may_view = inner, may_view
        self.may_or_may_not_view = may_view is None and not _is_torchs(func)
        self.rewrites = rewrites(func, name)
        self.at_once = writes or inner is not None or name in BORROWING
        self.of_known_shape = name in OF_KNOWN_SHAPE and _is_torchs(func)
        self.takes_lists = name not in WITHOUT_LISTS
        self.flags = (
            silent | self.rewrites << 1 | self.at_once << 2 | self.takes_lists << 3 | (may_view is True) << 4
        )
        if name in LOOKUPS:
            self.flags |= LOOKS_UP


resolved: dict[Any, Function] = {}
"""All functions that were asked for so far."""


def resolve(func: Any) -> Function:
    """The `Function` of a torch function, from a cache if it was asked for before."""
    try:
        function = resolved.get(func)
    except TypeError:
        return _make(func)
    if function is None:
        function = resolved[func] = _make(func)
    return function


def _make(func: Any) -> Function:
    name, rule = _names(func)
    writes = (name.endswith("_") and not name.endswith("__")) or name == "setitem" or _mutates(func)
    views = True if name in ALWAYS_VIEWS else False if name in NEVER_VIEWS else None
    return Function(func, name, rule, _is_silent(func, name), writes, _enterable(func), views)


def _mutates(func: Any) -> bool:
    """Whether an operator's schema says that it writes to an argument, which names of libraries need not tell."""
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    if isinstance(func, torch._ops.OpOverloadPacket):
        return all(_mutates(getattr(func, name)) for name in func.overloads())
    return False


def _is_silent(func: Any, name: str) -> bool:
    """Whether a function makes no tensor of the model's own; one in Python may be another of that name, as `autograd.grad` is."""
    if name not in _SILENT:
        return False
    owners = (torch.Tensor, torch)
    return not isinstance(func, types.FunctionType) or any(getattr(o, name, None) is func for o in owners)


def rewrites(func: Any, name: str) -> bool:
    """Whether a function gives a tensor another storage or shape: `set_`, `resize_`, and `x.data = y`."""
    return name in ("set_", "resize_") or func == torch.Tensor.data.__set__  # pyright: ignore[reportAttributeAccessIssue]


def _is_torchs(func: Any) -> bool:
    """Whether a function is torch's own, not one of the same name."""
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(func).startswith("aten")
    kinds = (
        types.BuiltinFunctionType,
        types.MethodDescriptorType,
        types.WrapperDescriptorType,
        types.MethodWrapperType,
    )
    return isinstance(func, kinds) or str(getattr(func, "__module__", None)).startswith("torch.")


def _names(func: Any) -> tuple[str, str]:
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        qualified = func._schema.name if isinstance(func, torch._ops.OpOverload) else func._qualified_op_name
        name = str(qualified).replace("::", ".")
        return name, name.removeprefix("aten.") if name.startswith("aten.") else name
    name = getattr(func, "__name__", type(func).__name__)
    owner = getattr(func, "__self__", None)
    if name in ("__get__", "__set__", "__delete__") and owner is not None:
        attribute = getattr(owner, "__name__", None) or getattr(
            getattr(owner, "fget", None), "__name__", name
        )
        return (str(attribute), str(attribute)) if name == "__get__" else ("requires_grad", "requires_grad")
    if name.startswith("__") and name.endswith("__"):
        plain = name.strip("_")
        public = OPERATORS.get(plain, name)
        return public, "rmatmul" if plain == "rmatmul" else public
    if name in ("rsub", "rdiv"):
        return OPERATORS[name], OPERATORS[name]
    return str(name), str(name)


def _enterable(func: Any) -> Callable[..., Any] | None:
    """A copy of `multi_head_attention_forward` that does not hand itself back to the mode.

    The original asks whether a mode is active and, if so, calls the mode, which would call it again
    without end. The copy is the same code with that one question answered "no".
    """
    if func is not F.multi_head_attention_forward:
        return None
    code_globals = {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda *_: False}
    copied = types.FunctionType(
        F.multi_head_attention_forward.__code__, code_globals, "multi_head_attention_forward",
        F.multi_head_attention_forward.__defaults__, F.multi_head_attention_forward.__closure__,
    )  # fmt: skip
    copied.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__
    return copied


_same_storage: Callable[[Tensor, Tensor], bool] = torch._C._is_alias_of  # pyright: ignore[reportAttributeAccessIssue]


def is_view(output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the output of a call shares memory with one of its arguments; tensors in lists are left aside."""
    if output.layout != torch.strided:
        return False
    for value in (*args, *kwargs.values()) if kwargs else args:
        if value is output:
            return True
        if isinstance(value, Tensor) and value.layout == torch.strided and _shares(output, value):
            return True
    return False


def put_in_place(
    function: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    output: Tensor,
    new: Tensor,
) -> Any:
    """Replace one output of a finished call, and return what the model is to get from the call.

    Args:
        function, args, kwargs, result: the call and what it returned.
        output: the output to replace.
        new: the other value. It is copied into the output, unless that is a view, or of another dtype.
    """
    view = is_view(output, args, kwargs) if function.may_view is None else function.may_view
    if isinstance(result, Tensor) and (view or output.dtype != new.dtype):
        return new
    if output.dtype == new.dtype:
        output.copy_(new)
    return result


def _shares(output: Tensor, value: Tensor) -> bool:
    try:
        return _same_storage(output, value)
    except (RuntimeError, NotImplementedError):  # a tensor without a storage
        return False


_PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
    "embedding": ("input", "weight"),
    "matmul": ("input", "other"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "rms_norm": ("input", "normalized_shape", "weight"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "where": ("condition", "input", "other"),
    "getitem": ("input", "index"),
    "setitem": ("input", "index", "value"),
    "cat": ("tensors",),
    "stack": ("tensors",),
}


def parameter_names(name: str, count: int, func: Any = None, args: Sequence[Any] = ()) -> tuple[str, ...]:
    """Names of a function's first `count` positional parameters: its own if it is written in Python, else its schema's.

    Args:
        name: the public name of the function.
        func: the function that was called, if known.
        args: what it was called with: a function of several schemas (an LSTM of packed rows, or not) has the one that fits.

    >>> parameter_names("conv1d", 3)
    ('input', 'weight', 'bias')
    >>> parameter_names("embedding_bag", 2, F.embedding_bag), parameter_names("embedding_bag", 2, torch.embedding_bag)
    (('input', 'weight'), ('weight', 'indices'))
    """
    names = _PARAMETERS.get(name) or _own_names(func, count) or _schema_names(name, args)
    return tuple(names[i] if i < len(names) else f"argument {i}" for i in range(count))


def _own_names(func: Any, count: int) -> tuple[str, ...]:
    """Names of the parameters of a function of `torch.nn.functional`; empty where it takes fewer by their places."""
    if not isinstance(func, types.FunctionType) or func.__module__ != F.__name__:
        return ()
    code = func.__code__
    return code.co_varnames[: code.co_argcount] if count <= code.co_argcount else ()


def _schema_names(name: str, args: Sequence[Any]) -> tuple[str, ...]:
    namespace, _, op = name.rpartition(".")
    packet = getattr(getattr(torch.ops, namespace or "aten"), op, None)
    if packet is None or not hasattr(packet, "overloads"):
        return ("input", "other")
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    fitting = [schema for schema in schemas if _fits(schema, args)]
    longest = max(fitting or schemas, key=lambda s: len(s.arguments), default=None)
    if longest is None:
        return ("input", "other")
    return tuple("input" if a.name == "self" else a.name for a in longest.arguments)


def _fits(schema: Any, args: Sequence[Any]) -> bool:
    """Whether there is a tensor, or a list of tensors, wherever a schema has one."""

    def kind(value: Any) -> str:
        if isinstance(value, Tensor):
            return "Tensor"
        listed = isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor)
        return "List[Tensor]" if listed else ""

    return all(
        kind(value) in ("", str(argument.type))
        for argument, value in zip(schema.arguments, args, strict=False)
    )
