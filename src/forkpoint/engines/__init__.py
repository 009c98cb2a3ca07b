"""An engine (vLLM, a hand-written one, ONNX Runtime) against a model of transformers, op by op on the same inputs."""

from __future__ import annotations

from forkpoint.engines.answer import Check, Cost, EngineComparison, EngineOp, Listed
from forkpoint.engines.comparing import compare_engine
from forkpoint.engines.folder import EngineFacts, Reported, Sample, Tables
from forkpoint.engines.outputs import record_outputs
from forkpoint.engines.vllm_adapter import record_engine

__all__ = [
    "Check",
    "Cost",
    "EngineComparison",
    "EngineFacts",
    "EngineOp",
    "Listed",
    "Reported",
    "Sample",
    "Tables",
    "compare_engine",
    "record_engine",
    "record_outputs",
]
