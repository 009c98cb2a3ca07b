"""A recording of what is no module of torch: arrays with names, as an ONNX Runtime session gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.errors import InputError
from forkpoint.runs.layout import Coordinates
from forkpoint.traces import record


def record_outputs(folder: str | Path, answers: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> None:
    """Write what an engine computed as a recording that `compare_engine` reads.

        session = onnxruntime.InferenceSession(path)  # its graph returns what is to be compared
        arrays = session.run(names, {"input_ids": [[5, 6, 7]]})
        fp.record_outputs("recorded", [([5, 6, 7], dict(zip(names, arrays)))])

    Args:
        folder: where to write it; new or empty.
        answers: of each prompt its token ids, and by the path of the reference's module what it returned, [tokens, …] or
            [1, tokens, …], in the order in which it was computed.

    Raises:
        InputError: an array that does not begin with the tokens, or something is in the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     record_outputs(f"{parent}/recorded", [([5, 6], {"lm_head": torch.zeros(2, 8)})])
    """
    samples = [(list(map(int, ids)), _tensors(ids, outputs)) for ids, outputs in answers]
    if not samples:
        raise InputError("no answers", "at least one prompt with what was computed of it")
    replay = _Replay({path for _, outputs in samples for path in outputs})
    number = iter(range(len(samples)))

    def where(module: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Coordinates]:  # noqa: ARG001
        tokens = len(inputs["input_ids"])
        return {"input_ids": Coordinates(torch.full((tokens,), next(number)), torch.arange(tokens))}

    with record(folder, layout=where, model=replay, values=["*/output"]), torch.no_grad():
        for ids, outputs in samples:
            replay.outputs = outputs
            replay(torch.tensor(ids))


def _tensors(ids: Sequence[int], outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, value in outputs.items():
        tensor = torch.as_tensor(value)
        if tensor.dim() > 2 and tensor.shape[0] == 1 and tensor.shape[1] == len(ids):
            tensor = tensor[0]
        if not tensor.dim() or tensor.shape[0] != len(ids):
            shape = list(torch.as_tensor(value).shape)
            raise InputError(
                f"{path} of shape {shape} for {len(ids)} tokens", f"[{len(ids)}, …] or [1, {len(ids)}, …]"
            )
        tensors[path] = tensor
    return tensors


class _Named(nn.Module):
    """A module that returns what it is given: it has the name that the value was recorded under."""

    def forward(self, value: Tensor) -> Tensor:
        return value.clone()


class _Replay(nn.Module):
    """Modules of the given paths, called in the order of the outputs."""

    def __init__(self, paths: set[str]) -> None:
        super().__init__()
        self.outputs: dict[str, Tensor] = {}
        for path in sorted(paths):
            holder: nn.Module = self
            for name in path.split("."):
                if not name or (hasattr(holder, name) and name not in holder._modules):
                    raise InputError(f"an output named {path!r}", "the path of a module of the reference")
                if name not in holder._modules:
                    holder.add_module(name, _Named())
                holder = holder.get_submodule(name)

    def forward(self, input_ids: Tensor) -> Tensor:
        value = input_ids
        for path, output in self.outputs.items():
            value = self.get_submodule(path)(output)
        return value
