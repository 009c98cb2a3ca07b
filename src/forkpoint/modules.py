"""The modules of a model and what they hold, in one walk: a trace can't afford torch's nested generators."""

from __future__ import annotations

from torch import Tensor, nn


def walk(model: nn.Module | None) -> list[tuple[str, nn.Module]]:
    """Every module once, parents first, with the first of its paths; as `named_modules`, several times faster.

    >>> [path for path, _ in walk(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
    ['', '0', '1']
    """
    if model is None:
        return []
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append((path, module))
        prefix = f"{path}." if path else ""
        children = module._modules.items()
        waiting += [(prefix + name, child) for name, child in reversed(children) if child is not None]
    return found


def unwrapped(path: str) -> str:
    """A path as the model that is wrapped has it: adapters (PEFT) and compiled models add names in front.

    >>> unwrapped("base_model.model.model.layers.0"), unwrapped("_orig_mod.lm_head"), unwrapped("model.norm")
    ('model.layers.0', 'lm_head', 'model.norm')
    """
    for wrapper in _WRAPPERS:
        if path == wrapper:
            return ""
        path = path.removeprefix(f"{wrapper}.")
    return path


_WRAPPERS = ("_orig_mod", "base_model.model")
"""Where a compiled module and a model with adapters hold what they wrap."""


def owned(modules: list[tuple[str, nn.Module]]) -> dict[int, tuple[str, Tensor]]:
    """The full name of every parameter and buffer, by id; of tied ones the first, parameters before buffers."""
    found: dict[int, tuple[str, Tensor]] = {}
    for holder in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in getattr(module, holder).items():
                if tensor is not None and id(tensor) not in found:
                    found[id(tensor)] = (f"{path}.{name}" if path else name, tensor)
    return found
