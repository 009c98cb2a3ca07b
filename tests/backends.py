"""Backends of torch.compile that make one mistake: `aot_eager` or `inductor`, with one operator of the graph altered.

    mistake = Mistake("bias", "self_attn.q_proj")
    model.layers[0].compile(backend=mistake.backend())

The graph is the functional one that a backend is given, of ATen's operators. Each of them knows the module whose forward
made it, so that the place of a mistake is known without forkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
CAST = torch.ops.prims.convert_element_type.default


@dataclass
class Mistake:
    """One operator that a backend gets wrong.

    Attributes:
        kind: of `KINDS`.
        module: the path of the module that calls it, below the compiled one; empty for that itself.
        made: how often it was made, which has to be once for each graph that has the module.
    """

    kind: str
    module: str
    made: int = 0

    def backend(self, base: str = "aot_eager") -> Callable[..., Any]:
        """A backend that makes this mistake once in each graph that has such an operator in this module.

        Args:
            base: `aot_eager` or `inductor`, which compiles what was altered.
        """
        if base == "inductor":
            from torch._inductor import config as inductor_config
            from torch._inductor.compile_fx import compile_fx, compile_fx_inner

            def inner(graph: fx.GraphModule, inputs: Any, **options: Any) -> Any:
                self._alter(graph)
                return compile_fx_inner(graph, inputs, **options)

            def outer(graph: fx.GraphModule, inputs: Any) -> Any:
                with inductor_config.patch(
                    force_disable_caches=True
                ):  # else it takes what it made of the sound graph
                    return compile_fx(graph, inputs, inner_compile=inner)

            return outer
        from torch._dynamo.backends.common import aot_autograd

        def compiler(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
            self._alter(graph)
            return graph.forward

        return aot_autograd(fw_compiler=compiler, inference_compiler=compiler)

    def _alter(self, graph: fx.GraphModule) -> None:
        for node in graph.graph.nodes:
            if module_of(node) == self.module and KINDS[self.kind](graph.graph, node):
                self.made += 1
                break
        graph.recompile()


def module_of(node: Any) -> str | None:
    """The path of the module whose forward made an operator, below the one that is compiled."""
    if node.op != "call_function":
        return None
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    return modules[-1][0].removeprefix("L['self']").removeprefix(".") if modules else ""


# --- The mistakes: each alters a node if it can, and says whether it did -------------------------------------------------


def _bias(graph: Any, node: Any) -> bool:
    """A bias is left out."""
    if node.target is not ATEN.addmm.default:
        return False
    node.target, node.args = ATEN.mm.default, node.args[1:]
    return True


def _eps(graph: Any, node: Any) -> bool:
    """A norm has the epsilon of another."""
    if node.target is ATEN.native_layer_norm.default:
        node.args = (*node.args[:4], 1e-3)
        return True
    if node.target is ATEN.add.Tensor and isinstance(node.args[1], float) and node.args[1] < 1e-3:
        node.args = (node.args[0], 1e-3)
        return True
    return False


def _small_eps(graph: Any, node: Any) -> bool:
    """A norm has the usual epsilon in place of its own: 1e-5 for one below that, 1e-6 for that."""
    if node.target is ATEN.native_layer_norm.default:
        node.args = (*node.args[:4], _usual(node.args[4]))
        return True
    if node.target is ATEN.add.Tensor and isinstance(node.args[1], float) and node.args[1] < 1e-3:
        node.args = (node.args[0], _usual(node.args[1]))
        return True
    return False


def _usual(own: float) -> float:
    return 1e-6 if own >= 1e-5 else 1e-5


def _scale(graph: Any, node: Any) -> bool:
    """Attention or an activation has another factor."""
    if "scale" in node.kwargs:
        node.kwargs = {**node.kwargs, "scale": math.sqrt(node.kwargs["scale"])}
        return True
    if node.target is ATEN.mul.Tensor and isinstance(node.args[1], float):
        node.args = (node.args[0], round(node.args[1], 2) + 0.01)
        return True
    return False


def _swapped(graph: Any, node: Any) -> bool:
    """What is joined, or taken from another, is in the wrong order."""
    if node.target is ATEN.cat.default and len(node.args[0]) == 2 and _same_shape(*node.args[0]):
        node.args = (list(reversed(node.args[0])), *node.args[1:])
        return True
    if node.target is ATEN.sub.Tensor:
        node.args = (node.args[1], node.args[0])
        return True
    return False


def _dtype(graph: Any, node: Any) -> bool:
    """What a function makes is rounded to bfloat16, which nobody asked for."""
    value = node.meta.get("val")
    if node.target not in ROUNDABLE or not isinstance(value, Tensor):
        return False
    with graph.inserting_after(node):
        narrow = graph.call_function(CAST, (node, torch.bfloat16))
    with graph.inserting_after(narrow):
        wide = graph.call_function(CAST, (narrow, value.dtype))
    node.replace_all_uses_with(wide, lambda user: user is not narrow)
    return True


def _residual(graph: Any, node: Any) -> bool:
    """Of a sum, one term is left out."""
    if node.target is not ATEN.add.Tensor or not all(isinstance(arg, fx.Node) for arg in node.args):
        return False
    node.replace_all_uses_with(node.args[0])
    return True


def _sign(graph: Any, node: Any) -> bool:
    """A minus is left out."""
    if node.target is not ATEN.neg.default:
        return False
    node.replace_all_uses_with(node.args[0])
    return True


def _activation(graph: Any, node: Any) -> bool:
    """An activation is the approximation of another, or another."""
    if node.target is ATEN.gelu.default:
        node.kwargs = {"approximate": "tanh"}
        return True
    if node.target is ATEN.silu.default:
        node.target = ATEN.gelu.default
        return True
    return False


def _causal(graph: Any, node: Any) -> bool:
    """Attention sees later tokens, or no longer sees them."""
    if node.target is not ATEN._scaled_dot_product_flash_attention_for_cpu.default:
        return False
    causal = node.args[4] if len(node.args) > 4 else False
    node.args = (*node.args[:3], 0.0, not causal)
    return True


def _weight(graph: Any, node: Any) -> bool:
    """A product is made with the weight as it lies, and not with its transposed."""
    if node.target is not ATEN.mm.default and node.target is not ATEN.addmm.default:
        return False
    weight = node.args[-1]
    if weight.target is not ATEN.t.default or len({*weight.meta["val"].shape}) != 1:
        return False
    node.args = (*node.args[:-1], weight.args[0])
    return True


def _same_shape(a: Any, b: Any) -> bool:
    return a.meta["val"].shape == b.meta["val"].shape and a is not b


ROUNDABLE = {
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN.mul.Tensor,
    ATEN.gelu.default,
    ATEN.silu.default,
    ATEN.tanh.default,
    ATEN.rsqrt.default,
}
KINDS: dict[str, Callable[[Any, Any], bool]] = {
    "bias": _bias, "eps": _eps, "small eps": _small_eps, "scale": _scale, "swapped": _swapped, "dtype": _dtype,
    "residual": _residual, "sign": _sign, "activation": _activation, "causal": _causal, "weight": _weight,
}  # fmt: skip


def places(layer: Any, run: Callable[[], Any], kinds: Any = tuple(KINDS)) -> list[tuple[str, str]]:
    """Each kind of mistake with each module below a layer in which it can be made; the layer is compiled for that."""
    from torch._dynamo.backends.common import aot_autograd

    plants: list[tuple[str, str]] = []

    def look(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        modules = dict.fromkeys(path for path in map(module_of, graph.graph.nodes) if path is not None)
        for kind in kinds:
            for module in modules:
                trial = fx.Graph()
                trial.graph_copy(graph.graph, {})
                if any(module_of(node) == module and KINDS[kind](trial, node) for node in trial.nodes):
                    plants.append((kind, module))
        return graph.forward

    layer.compile(backend=aot_autograd(fw_compiler=look, inference_compiler=look))
    try:
        with torch.no_grad():
            run()
    finally:
        layer._compiled_call_impl = None
    return plants
