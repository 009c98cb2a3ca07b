"""forkpoint finds the first operation where two runs of a model part ways.

    import forkpoint as fp

    a = fp.Run(model, {"input_ids": ids, "attention_mask": mask})
    b = fp.Run(model, {"input_ids": padded, "attention_mask": padded_mask, "position_ids": positions})
    print(fp.compare(a, b))

Importing the package imports neither torch nor transformers; the names below do when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from forkpoint.errors import (
    CaptureError,
    DifferenceError,
    ForkpointError,
    InputError,
    InvarianceError,
    LayoutError,
    ModelError,
    SceneError,
)
from forkpoint.support.version import VERSION

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping as Table

    from forkpoint import testing
    from forkpoint.auditing import Audit, audit
    from forkpoint.comparison import compare
    from forkpoint.engines import EngineComparison, compare_engine, record_engine, record_outputs
    from forkpoint.invariance import Invariance, invariant
    from forkpoint.models import load
    from forkpoint.ports.mapping import Mapping, mapping
    from forkpoint.questions.answers import FactorRow, Factors, Generation
    from forkpoint.questions.attention import attention
    from forkpoint.questions.batch import batch
    from forkpoint.questions.cache import cache
    from forkpoint.questions.checkpoints import checkpoints
    from forkpoint.questions.compiled import compiled
    from forkpoint.questions.device import device
    from forkpoint.questions.dtype import autocast, dtype
    from forkpoint.questions.embed import embed
    from forkpoint.questions.factors import factors
    from forkpoint.questions.generate import generate
    from forkpoint.questions.packed import packed
    from forkpoint.questions.padding import padding
    from forkpoint.questions.quantize import quantize
    from forkpoint.questions.repeat import repeat
    from forkpoint.result import Divergence, Impact, ProbeResult, Result, Verdict, VerdictKind
    from forkpoint.runs.layout import Coordinates, Layout
    from forkpoint.runs.run import Run
    from forkpoint.screening import Screening, logprobs
    from forkpoint.support.progress import Progress
    from forkpoint.sweeps import Sweep, SweepRow
    from forkpoint.traces import compare_traces, record

__version__ = VERSION

__all__ = [
    "Audit",
    "CaptureError",
    "Coordinates",
    "DifferenceError",
    "Divergence",
    "EngineComparison",
    "FactorRow",
    "Factors",
    "ForkpointError",
    "Generation",
    "Impact",
    "InputError",
    "Invariance",
    "InvarianceError",
    "Layout",
    "LayoutError",
    "Mapping",
    "ModelError",
    "ProbeResult",
    "Result",
    "Run",
    "SceneError",
    "Screening",
    "Sweep",
    "SweepRow",
    "Verdict",
    "VerdictKind",
    "__version__",
    "attention",
    "audit",
    "autocast",
    "batch",
    "cache",
    "checkpoints",
    "compare",
    "compare_engine",
    "compare_traces",
    "compiled",
    "device",
    "dtype",
    "embed",
    "factors",
    "generate",
    "invariant",
    "load",
    "logprobs",
    "mapping",
    "packed",
    "padding",
    "quantize",
    "record",
    "record_engine",
    "record_outputs",
    "repeat",
    "sweep",
    "testing",
]

_MODULES = {
    "Audit": "forkpoint.auditing",
    "Coordinates": "forkpoint.runs.layout",
    "Divergence": "forkpoint.result",
    "EngineComparison": "forkpoint.engines",
    "FactorRow": "forkpoint.questions.answers",
    "Factors": "forkpoint.questions.answers",
    "Generation": "forkpoint.questions.answers",
    "Impact": "forkpoint.result",
    "Invariance": "forkpoint.invariance.block",
    "Layout": "forkpoint.runs.layout",
    "Mapping": "forkpoint.ports.mapping",
    "ProbeResult": "forkpoint.result",
    "Result": "forkpoint.result",
    "Run": "forkpoint.runs.run",
    "Screening": "forkpoint.screening",
    "Sweep": "forkpoint.sweeps",
    "SweepRow": "forkpoint.sweeps",
    "Verdict": "forkpoint.result",
    "VerdictKind": "forkpoint.result",
    "attention": "forkpoint.questions.attention",
    "audit": "forkpoint.auditing",
    "autocast": "forkpoint.questions.dtype",
    "batch": "forkpoint.questions.batch",
    "cache": "forkpoint.questions.cache",
    "checkpoints": "forkpoint.questions.checkpoints",
    "compare": "forkpoint.comparison",
    "compare_engine": "forkpoint.engines",
    "compare_traces": "forkpoint.traces",
    "compiled": "forkpoint.questions.compiled",
    "device": "forkpoint.questions.device",
    "dtype": "forkpoint.questions.dtype",
    "embed": "forkpoint.questions.embed",
    "factors": "forkpoint.questions.factors",
    "generate": "forkpoint.questions.generate",
    "invariant": "forkpoint.invariance.block",
    "load": "forkpoint.models",
    "logprobs": "forkpoint.screening",
    "mapping": "forkpoint.ports.mapping",
    "packed": "forkpoint.questions.packed",
    "padding": "forkpoint.questions.padding",
    "quantize": "forkpoint.questions.quantize",
    "record": "forkpoint.traces",
    "record_engine": "forkpoint.engines",
    "record_outputs": "forkpoint.engines",
    "repeat": "forkpoint.questions.repeat",
}
"""Where each public name that needs torch is defined."""


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("forkpoint.testing")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def sweep(
    questions: str | os.PathLike[str] | Table[str, Any], out: str | os.PathLike[str], *, workers: int = 1,
    timeout: float | None = None, ray: bool = False, trust_remote_code: bool = False, progress: Progress | None = None,
) -> Sweep:  # fmt: skip
    """Ask many questions of many models, each as its command does, in processes of their own (docs/sweeps.md).

        if __name__ == "__main__":
            asked = {"model": "demo", "prompt": ["Hello there", "How are you?"], "ask": ["padding", "batch"]}
            print(fp.sweep(asked, "answers", workers=2))

    Args:
        questions: a TOML file, or what one holds.
        out: the folder in which answers are kept as they come; what it holds is not asked again.
        workers: how many questions are asked at a time, each in a process that holds one model.
        timeout: seconds that a question may take, with starting and loading.
        ray: the workers are actors of Ray.
        trust_remote_code: run the Python code that models bring along, which may do whatever you may do.
        progress: is told how many questions are done.

    Raises:
        InputError: a key or a value that can't be used, or a folder to which another sweep writes; nothing was asked.
    """
    options: dict[str, Any] = {} if progress is None else {"progress": progress}
    return importlib.import_module("forkpoint.cli.swept").sweep(
        questions,
        out,
        workers=workers,
        timeout=timeout,
        ray=ray,
        trust_remote_code=trust_remote_code,
        **options,
    )


def load_ipython_extension(ipython: Any) -> None:
    """What `%load_ext forkpoint` calls: `%%forkpoint` compares two calls in a cell."""
    importlib.import_module("forkpoint.notebook").load(ipython)
