"""The figures that were taken, and how they are put in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
REPETITIONS = 7
"""Fewer than these are pointed out."""


def load(folder: Path = RESULTS) -> dict[str, Json]:
    """Every report of `tracing.py` in a folder, by the name of its file; those on GPUs come first."""
    reports = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("tracing-*.json")
    }
    return dict(sorted(reports.items(), key=lambda item: (item[1]["machine"]["kind"] != "cuda", item[0])))


def load_parts(folder: Path = RESULTS) -> Json:
    """The reports of `against.py` on one machine, put together."""
    return json.loads((folder / "parts.json").read_text(encoding="utf-8"))


def title(report: Json) -> str:
    model, on = report["model"], report["machine"]
    threads = f", {on['threads']} threads" if on["kind"] == "cpu" else ""
    return f"{model['name']}, {model['layers']} layers, {model['dtype']}, on {on['device']}{threads}"


def times(ratio: float) -> str:
    """A ratio.

    >>> times(1.0234), times(9.996), times(37.04), times(368.2), times(12345.6)
    ('1.02×', '10.0×', '37.0×', '368×', '12,346×')
    """
    if round(ratio, 2) < 10:
        return f"{ratio:.2f}×"
    return f"{ratio:.1f}×" if round(ratio, 1) < 100 else f"{ratio:,.0f}×"


def seconds(value: float) -> str:
    """A time.

    >>> seconds(0.0722), seconds(0.999), seconds(1.183), seconds(61.27), seconds(0.00421)
    ('72 ms', '999 ms', '1.18 s', '61.3 s', '4.2 ms')
    """
    if value < 0.9995:
        return f"{value * 1e3:.1f} ms" if value < 0.00995 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"


def n_bytes(value: float) -> str:
    """An amount of memory; less than half a megabyte either way is noise.

    >>> n_bytes(221.3e6), n_bytes(33.9e9), n_bytes(-4096), n_bytes(-3e6), n_bytes(999.7e6)
    ('221 MB', '33.9 GB', '0 MB', '-3 MB', '1.0 GB')
    """
    if abs(value) >= 999.5e6:
        return f"{value / 1e9:.1f} GB"
    return f"{round(value / 1e6)} MB"
