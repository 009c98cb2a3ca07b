"""Traces on disk: what a run of any code did is written as it goes, and compared later, wherever, without the models."""

from __future__ import annotations

from forkpoint.traces.comparing import compare_traces
from forkpoint.traces.recording import record

__all__ = ["compare_traces", "record"]
