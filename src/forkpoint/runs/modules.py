"""The modules of a model and what they hold: a trace can't afford torch's nested generators."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from forkpoint.native import compiled
from forkpoint.native.choice import choose


def walk(model: nn.Module | None) -> list[tuple[str, nn.Module]]:
    """Every module once, parents first, with the first of its paths; as `named_modules`, several times faster.

    >>> [path for path, _ in walk(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
    ['', '0', '1']
    """
    if model is None:
        return []
    modules: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        modules.append((path, module))
        prefix = f"{path}." if path else ""
        children = module._modules.items()
        waiting += [(prefix + name, child) for name, child in reversed(children) if child is not None]
    return modules


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module under a path; None if there is none. Scripted modules know no `get_submodule`.

    >>> module_at(nn.Sequential(nn.ReLU()), "0"), module_at(nn.ReLU(), "0")
    (ReLU(), None)
    """
    module: nn.Module | None = model
    for name in path.split(".") if path else ():
        children = module._modules if module is not None else {}
        module = children[name] if name in children else None  # noqa: SIM401 - a scripted module's have no `get`
    return module


def attribute_of(module: Any, name: str) -> Any:
    """An attribute of a module of anybody's, whose `__getattr__` may raise whatever it likes; None if it has none."""
    try:
        return getattr(module, name, None)
    except Exception:  # noqa: BLE001 - it has none then
        return None


def embeddings_of(model: Any) -> Any:
    """The module in which a model of transformers looks token ids up; None where it has none, or several."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of sound; of a text and an image, each with its own
        return None


class Survey(NamedTuple):
    """What a model consists of, in no order that matters; two that are equal are of one model that is as it was.

    Attributes:
        modules: every module once.
        structure: their classes, how many children each has, what those are called, and their ids.
        weights: parameters and buffers of all of them; None where there is none under a name.
    """

    modules: list[nn.Module]
    structure: list[Any]
    weights: list[Tensor | None]


def python_survey(model: nn.Module) -> Survey:
    """Look at all that a model consists of, without a `walk`, where nobody asks for paths.

    It is done for every run, so that it is also written in C (`native/held.c`).
    """
    modules = [model]
    seen = {id(model)}
    structure: list[Any] = []
    weights: list[Tensor | None] = []
    for module in modules:  # grows meanwhile
        children = module._modules
        structure += (type(module), len(children))
        for name, child in children.items():
            structure += (name, id(child))
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
        weights += module._parameters.values()
        weights += module._buffers.values()
    return Survey(modules, structure, weights)


def c_survey(model: nn.Module) -> Survey:
    """The same, in C; for modules that hold others in what is no dict, as scripted ones do, in Python."""
    try:
        return Survey(*compiled.survey(model))
    except TypeError:
        return python_survey(model)


survey = choose(python_survey, c_survey)


def wrappings(a: nn.Module | None, b: nn.Module | None) -> tuple[str, str]:
    """Where each of two models holds the one that it wraps, if that makes them alike: adapters (PEFT), compiled models.

    Two models that are wrapped alike have the same paths, and nothing is to be taken off.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> compiled = nn.Module()
    >>> compiled._orig_mod = model
    >>> wrappings(model, compiled), wrappings(compiled, compiled), wrappings(nn.ReLU(), compiled)
    (('', '_orig_mod'), ('', ''), ('', ''))
    """
    if a is None or b is None:
        return "", ""
    (path_a, inner_a), (path_b, inner_b) = innermost(a), innermost(b)
    if path_a == path_b or type(inner_a) is not type(inner_b):
        return "", ""
    return path_a, path_b


def innermost(model: Any) -> tuple[str, Any]:
    """What compiled models and models with adapters (PEFT) wrap, with its path; else the model itself.

    A wrapper's forward takes any arguments; the model's own says which it knows.
    """
    path: list[str] = []
    while True:
        inner = attribute_of(model, "_orig_mod")  # torch.compile offers no other way to it
        if inner is not None:
            name = "_orig_mod"
        elif (base := attribute_of(model, "get_base_model")) is not None:
            inner = base()
            name = next((name for name, module in model.named_modules() if module is inner), "")
        else:
            return ".".join(path), model
        if not name:  # nothing that it holds: no wrapper, whatever the method is for
            return ".".join(path), model
        path.append(name)
        model = inner


WRAPPER = "<wrapper>"
"""Stands for what wraps a model, which has no partner in a run without it."""


def unwrapped(path: str, wrapping: str) -> str:
    """A path as the wrapped model has it; what wraps it has none there.

    >>> [unwrapped(path, "_orig_mod") for path in ("_orig_mod.lm_head", "_orig_mod", "")]
    ['lm_head', '', '<wrapper>']
    """
    if not wrapping:
        return path
    if path == wrapping:
        return ""
    if path.startswith(f"{wrapping}."):
        return path[len(wrapping) + 1 :]
    return f"{WRAPPER}.{path}" if path else WRAPPER


def owned(modules: list[tuple[str, nn.Module]]) -> dict[int, tuple[str, Tensor]]:
    """The full name of every parameter and buffer, by id; of tied ones the first, parameters before buffers."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for holder in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in getattr(module, holder).items():
                if tensor is not None and id(tensor) not in tensors:
                    tensors[id(tensor)] = (f"{path}.{name}" if path else name, tensor)
    return tensors


def predicts_next(model: nn.Module | None) -> bool:
    """Whether the model shifts its labels by one: causal language models do."""
    if model is None:
        return False
    kind = attribute_of(model, "loss_type")
    name = type(innermost(model)[1]).__name__
    return kind == "ForCausalLM" or name.endswith(("ForCausalLM", "LMHeadModel"))
