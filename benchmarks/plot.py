"""Draws docs/NAME.svg for each file NAME.json in benchmarks/results: what each way costs, and how it grows.

    python benchmarks/plot.py

Plain SVG, so that a page shows it without scripts and a diff of it can be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from results import DOCS, Json, load, times, title

NAMES = {
    "mode": "empty function mode",
    "forkpoint": "forkpoint",
    "debugmode": "DebugMode",
    "torchlens": "TorchLens",
    "transformers": "transformers debugger",
    "store": "store and compare",
    "loops": "Python loops",
    "physical": "read once (physical)",
}
COLOURS = {"forkpoint": "#0b6e4f", "mode": "#7a8794", "physical": "#c3cad1"}
PEER = "#c8794a"
WIDTH, LEFT, RIGHT, BAR = 760, 170, 70, 18


def drawing(report: Json) -> str:
    """One machine's figures."""
    parts: list[str] = []
    top = 44
    for case in report["cases"]:
        parts.append(_bars(case, top))
        top += 44 + BAR * (len(_ratios(case)) + 1)
    panels = [(over, found) for over, found in report.get("scaling", {}).items() if len(found) > 1]
    for index, (over, found) in enumerate(panels):
        parts.append(_lines(over, found, 50 + index * 370, top + 30))
    height = top + (270 if panels else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#24292f">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + _text(16, 24, title(report), weight="bold")
        + "".join(parts)
        + "</svg>\n"
    )


def _ratios(case: Json) -> dict[str, float]:
    """What is drawn of a case, the cheapest first."""
    ratios = {name: way["ratio"] for name, way in case["ways"].items() if "ratio" in way and name != "plain"}
    if case.get("floor_ratio"):
        ratios["physical"] = case["floor_ratio"]
    return dict(sorted(ratios.items(), key=lambda item: item[1]))


def _bars(case: Json, top: int) -> str:
    """A bar for each way, on a logarithmic scale that begins at the plain pair's time."""
    ratios = _ratios(case)
    room = WIDTH - LEFT - RIGHT
    most = max([*ratios.values(), 2.0])
    said = f"{case['tokens']:,} tokens padded to {case['padded']:,}: time over the plain pair's, logarithmic"
    out = _text(16, top + 10, said)
    for row, (name, value) in enumerate(ratios.items()):
        y = top + 22 + row * BAR
        long = max(room * math.log(max(value, 1.0)) / math.log(most), 1.0)
        out += _text(LEFT - 8, y + 11, NAMES.get(name, name), anchor="end", weight=_weight(name))
        out += f'<rect x="{LEFT}" y="{y}" width="{long:.1f}" height="{BAR - 5}" fill="{_colour(name)}"/>\n'
        out += _text(LEFT + long + 6, y + 11, times(value), weight=_weight(name))
    return out


def _lines(over: str, found: Sequence[Json], left: int, top: int) -> str:
    """Ratios over tokens or layers, which double from tick to tick."""
    width, height = 300, 170
    drawn = [_ratios(case) for case in found]
    names = [name for name in NAMES if all(name in ratios for ratios in drawn)]
    most = max([1.2, *(ratios[name] for ratios in drawn for name in names)])
    first, last = math.log2(found[0][over]), math.log2(found[-1][over])

    def x(case: Json) -> float:
        return left + width * (math.log2(case[over]) - first) / max(last - first, 1e-9)

    def y(ratio: float) -> float:
        return top + height * (most - ratio) / (most - 1)

    fixed = f"{found[0]['layers']} layers" if over == "tokens" else f"{found[0]['tokens']:,} tokens"
    out = _text(left, top - 14, f"time over the plain pair's, by {over} ({fixed})")
    for mark in _ticks(most):
        out += f'<line x1="{left}" y1="{y(mark):.1f}" x2="{left + width}" y2="{y(mark):.1f}" stroke="#e3e7eb"/>\n'
        out += _text(left - 6, y(mark) + 4, f"{mark:g}×", anchor="end")
    for case in found:
        out += _text(x(case), top + height + 18, f"{case[over]:,}", anchor="middle")
    for row, name in enumerate(names):
        points = " ".join(f"{x(case):.1f},{y(r[name]):.1f}" for case, r in zip(found, drawn, strict=True))
        out += f'<polyline points="{points}" fill="none" stroke="{_colour(name)}" stroke-width="2"/>\n'
        key = top + height + 34 + row * 14
        out += f'<line x1="{left}" y1="{key}" x2="{left + 18}" y2="{key}" stroke="{_colour(name)}" stroke-width="2"/>\n'
        out += _text(left + 24, key + 4, NAMES[name])
    return out


def _ticks(most: float) -> Sequence[float]:
    """Round numbers from 1 up to the largest ratio.

    >>> _ticks(1.3), _ticks(3.4), _ticks(12.0)
    ([1.0, 1.1, 1.2, 1.3], [1.0, 1.5, 2.0, 2.5, 3.0], [1, 3, 5, 7, 9, 11])
    """
    step = next(step for step in (0.02, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50, 1e3) if (most - 1) / step <= 6)
    return [round(1 + index * step, 2) for index in range(int((most - 1) / step + 1e-9) + 1)]


def _colour(name: str) -> str:
    return COLOURS.get(name, PEER)


def _weight(name: str) -> str:
    return "bold" if name == "forkpoint" else "normal"


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>\n'


def main() -> None:
    for name, report in load().items():
        (DOCS / f"{name}.svg").write_text(drawing(report), encoding="utf-8")


if __name__ == "__main__":
    main()
