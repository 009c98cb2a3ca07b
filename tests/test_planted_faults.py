"""A fault of one bit, planted at a random op, token and element, is found exactly there.

The stand-ins for torch's functions (`tests.planting`) are there in both runs, and change something in
run B only.

    python -m tests.test_planted_faults --count 500

prints how many of 500 faults of each kind are found.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from tests import oracle
from tests.architectures import ARCHITECTURES, answer, prompt
from tests.oracle import UNINITIALISED, Op, Recorder, Recording, Sizes, coordinate_at, sample_and_position
from tests.oracle import first_difference as oracle_first_difference
from tests.planting import KINDS, Replacements, bits_plus, change
from torch import nn

import forkpoint

MODELS = ("llama", "gpt2", "mixtral", "mixtral eager experts", "mamba2", "bert", "t5")

COUNTS = {"float", "histc"}
"""In a layer of experts: how many rows each of them gets. A wrong count leaves rows of the result unwritten."""

CONSTANT = {
    "zeros",
    "zeros_like",
    "new_zeros",
    "ones",
    "ones_like",
    "new_ones",
    "full",
    "full_like",
    "tensor",
}
"""What these make belongs to no token, whatever its shape."""


@dataclass(frozen=True)
class Fault:
    """Where a fault is planted, and what forkpoint must answer."""

    kind: str
    key: str
    call: int
    output: int
    shape: tuple[int, ...]
    element: tuple[int, ...]
    other: tuple[int, ...] | None
    op: str
    source: str
    sample: int | None
    position: int | None

    def __str__(self) -> str:
        return f"{self.kind} at {self.op} ({self.source}), sample {self.sample}, token {self.position}, {self.element}"


class Bench:
    """A model whose ops can have faults planted in them."""

    def __init__(self, name: str, *, dtype: torch.dtype = torch.float32) -> None:
        kind, *eager_experts = name.split(" ", 1)
        architecture = ARCHITECTURES[kind]
        self.name = name
        self.model = architecture.build(seed=1, dtype=dtype)
        if eager_experts:
            self.model.config._experts_implementation = "eager"
        self.chunk = getattr(self.model.config, "chunk_size", None) if kind == "mamba2" else None
        self.decoder = 5 if architecture.decoder else 0
        self.sizes = Sizes(2, 11, self.decoder)
        self.make = lambda s: architecture.inputs(
            [prompt(s.tokens - 2 * (row % 2), row) for row in range(s.rows)],
            s.tokens,
            "right",
            [answer(prompt(9, row), s.decoder) for row in range(s.rows)],
        )
        self.inputs = self.make(self.sizes)
        self.coordinates = {
            "tokens": {
                row: [(row, column) if valid else (-1, -1) for column, valid in enumerate(mask)]
                for row, mask in enumerate(self.inputs["attention_mask"].tolist())
            },
            "decoder": {row: [(row, column) for column in range(self.decoder)] for row in range(2)},
        }
        plain = Recorder(self.model)
        plain.record(self.inputs)
        self.replacements = Replacements(list(plain.functions))
        self.recording = self.record(None)
        self.plantable = list(self._plantable())

    def record(self, fault: Fault | None) -> Recording:
        model: Any = Called(self.model, self.call(fault))
        return Recording(model, self.make, self.sizes, self.coordinates, self.chunk)

    def _plantable(self) -> Iterator[tuple[Op, str, int, int]]:
        calls: Counter[str] = Counter()
        for op in self.recording.ops:
            key = getattr(op.func, "planted_key", None)
            if key is None:
                continue
            call = calls[key]
            calls[key] += 1
            if op.is_view or op.function.endswith("_") or op.function in UNINITIALISED | CONSTANT:
                continue
            if op.module.endswith(".experts") and op.function in COUNTS:
                continue
            for index, output in enumerate(op.outputs):
                if output.is_floating_point() and output.numel() and "unknown" not in op.labels[index]:
                    yield op, key, call, index

    def faults(self, numbers: random.Random, kind: str) -> Iterator[Fault]:
        """Random faults of one kind, each of which changes a value at a token."""
        while True:
            op, key, call, index = numbers.choice(self.plantable)
            output = op.outputs[index]
            element = tuple(numbers.randrange(size) for size in output.shape)
            coordinate = coordinate_at(self.recording, op, index, element)
            if coordinate is None:
                continue
            other = None
            if kind in ("swap", "cancel"):
                other = self._other(numbers, op, index, element, coordinate)
            sample, position = sample_and_position(coordinate)
            file, line, _ = op.place
            fault = Fault(
                kind, key, call, index, tuple(output.shape), element, other, op.name, f"{Path(file).name}:{line}",
                sample, position,
            )  # fmt: skip
            if change(kind, output.clone(), element, other) and self._survives(fault):
                yield fault

    def _other(
        self, numbers: random.Random, op: Op, index: int, element: tuple[int, ...], coordinate: Any
    ) -> Any:
        """Another element of the same token, or None."""
        shape = op.outputs[index].shape
        for _ in range(20):
            other = tuple(numbers.randrange(size) for size in shape)
            if other != element and coordinate_at(self.recording, op, index, other) == coordinate:
                return other
            mixed = tuple(numbers.choice(pair) for pair in zip(element, other, strict=True))
            if mixed != element and coordinate_at(self.recording, op, index, mixed) == coordinate:
                return mixed
        return None

    def _survives(self, fault: Fault) -> bool:
        """Whether the model runs to its end with the fault in it (a NaN may become an index)."""
        try:
            with torch.no_grad():
                self.call(fault)(self.model, self.inputs)
        except (IndexError, RuntimeError):
            return False
        return True

    def call(self, fault: Fault | None) -> Callable[[nn.Module, Any], Any]:
        """How to call the model with the fault planted."""

        def plant(result: Any) -> None:
            tensor = list(oracle.tensors(result))[fault.output]
            if tuple(tensor.shape) == fault.shape and type(tensor) is torch.Tensor:
                change(fault.kind, tensor, fault.element, fault.other)

        def call(model: nn.Module, inputs: Any) -> Any:
            with self.replacements.installed():
                self.replacements.armed = (fault.key, fault.call) if fault else None
                self.replacements.change = plant if fault else None
                try:
                    return model(**inputs)
                finally:
                    self.replacements.armed = None

        return call

    def answer(self, fault: Fault) -> Any:
        """forkpoint's first divergence between the run without the fault and the run with it."""
        a = forkpoint.Run(self.model, self.inputs, call=self.call(None))
        b = forkpoint.Run(self.model, self.inputs, call=self.call(fault))
        return forkpoint.compare(a, b, probes=False).first


def is_exact(fault: Fault, first: Any) -> bool:
    """Whether forkpoint named the op and the token.

    What a model takes from one token only ("[CLS]") has no dimension for the tokens any more, so that
    the plant can't know the token there.
    """
    if first is None or (first.op, first.source, first.sample) != (fault.op, fault.source, fault.sample):
        return False
    return first.position == fault.position or (fault.position is None and fault.sample is not None)


def misses(bench: Bench, kind: str, count: int, seed: int) -> list[str]:
    """Plants faults and lists those that were not found exactly where they are."""
    numbers = random.Random(f"{bench.name} {kind} {seed}")
    missed = []
    for _, fault in zip(range(count), bench.faults(numbers, kind), strict=False):
        first = bench.answer(fault)
        if not is_exact(fault, first):
            found = (
                "nothing"
                if first is None
                else f"{first.op} ({first.source}), {first.sample}, {first.position}"
            )
            missed.append(f"{bench.name}: {fault}\n    found: {found}")
    return missed


@functools.cache
def bench_of(name: str) -> Bench:
    return Bench(name)


# --- The tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_fault_is_where_the_oracle_sees_it(name: str) -> None:
    """Checks the plants themselves, without forkpoint."""
    bench = bench_of(name)
    numbers = random.Random(name)
    fault = next(bench.faults(numbers, "ulp"))
    found = oracle_first_difference(bench.recording, bench.record(fault))
    assert found is not None
    assert (found.op, found.sample, found.position) == (fault.op, fault.sample, fault.position)


class Called:
    """A model that is called by a function of its own."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Any], Any]) -> None:
        self.named_modules = model.named_modules
        self._model, self._call = model, call

    def __call__(self, **inputs: Any) -> Any:
        return self._call(self._model, inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_planted_faults_are_found(name: str, kind: str) -> None:
    assert misses(bench_of(name), kind, 9 if kind == "ulp" else 3, seed=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_500_planted_faults_are_found(name: str, kind: str) -> None:
    assert misses(bench_of(name), kind, share(500, name), seed=1) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_fault_in_a_submodule_is_found_at_the_submodule(name: str) -> None:
    """A module's forward returns something else than what its last op made."""
    bench = bench_of(name)
    numbers = random.Random(name)
    floating = [op for op in bench.recording.ops if not op.is_view and op.outputs[0].is_floating_point()]
    for path in numbers.sample(sorted({op.module for op in floating if op.module}), 4):
        with Tampered(bench.model.get_submodule(path)) as module:
            a = forkpoint.Run(bench.model, bench.inputs, call=module.call(armed=False))
            b = forkpoint.Run(bench.model, bench.inputs, call=module.call(armed=True))
            first = forkpoint.compare(a, b, probes=False).first
        assert first is not None, path
        assert first.module == path


class Tampered:
    """A module that changes the first element of what it returns, while armed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.armed = False
        self._forward = module.forward

    def __enter__(self) -> Self:
        self.module.forward = self.forward
        return self

    def __exit__(self, *_: object) -> None:
        del self.module.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self._forward(*args, **kwargs)
        if not self.armed:
            return result
        value = next(oracle.tensors(result))
        with torch._C.DisableTorchFunction():
            changed = value.detach().clone()
            element = (0,) * changed.dim()
            changed[element] = bits_plus(changed[element], 1)
        if value is result:
            return changed
        if type(result) is tuple:
            return (changed, *result[1:])
        return type(result)({**result, next(iter(result)): changed})

    def call(self, *, armed: bool) -> Callable[[nn.Module, Any], Any]:
        def call(model: nn.Module, inputs: Any) -> Any:
            self.armed = armed
            try:
                return model(**inputs)
            finally:
                self.armed = False

        return call


def share(count: int, name: str) -> int:
    """How many of `count` faults go to one of the models."""
    index = MODELS.index(name)
    return count * (index + 1) // len(MODELS) - count * index // len(MODELS)


def main() -> None:
    parser = argparse.ArgumentParser(description="How many planted faults forkpoint finds.")
    parser.add_argument("--count", type=int, default=500, help="faults of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, action="append")
    arguments = parser.parse_args()
    for kind in arguments.kind or KINDS:
        missed = [
            miss
            for name in MODELS
            for miss in misses(bench_of(name), kind, share(arguments.count, name), arguments.seed)
        ]
        print(
            f"{kind}: {arguments.count - len(missed)} of {arguments.count}", *missed, sep="\n  ", flush=True
        )


if __name__ == "__main__":
    main()
