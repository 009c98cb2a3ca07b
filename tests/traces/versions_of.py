"""Two versions of one source: written as files, imported under one name, and recorded."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import forkpoint as fp


def version(folder: Path, source: str, name: str = "modeling_tiny") -> ModuleType:
    """A module made from the source, written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{folder.name}_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def made(module: ModuleType, seed: int = 0) -> nn.Module:
    """Its model with weights that depend on the seed and on their order alone."""
    model = module.Model().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def untrained(module: ModuleType) -> nn.Module:
    """Its model with the weights that it begins with: those of a norm are ones."""
    torch.manual_seed(0)
    return module.Model().eval()


def compared(
    folder: Path,
    a: str,
    b: str,
    rename: dict[str, str] | None = None,
    build: Callable[[ModuleType], nn.Module] = made,
) -> fp.Result:
    """The comparison of what both versions of a model do with the same tokens."""
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    for name, source in (("a", a), ("b", b)):
        model = build(version(folder / name, source))
        with torch.no_grad(), fp.record(folder / f"trace-{name}"):
            model(ids)
    return fp.compare_traces(folder / "trace-a", folder / "trace-b", rename=rename)
