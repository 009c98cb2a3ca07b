"""Writes the tables of docs/performance.md, between its markers, from the files in benchmarks/results.

    python benchmarks/table.py

Figures reach the documentation in no other way.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from results import DOCS, REPETITIONS, Json, load, load_parts, n_bytes, seconds, times, title

BEGIN, END = "<!-- begin: benchmarks/table.py -->", "<!-- end: benchmarks/table.py -->"
PAGE = DOCS / "performance.md"
PHYSICAL = "reading the digested values once, at the speed of a copy"


def section(name: str, report: Json) -> str:
    """One machine's figures."""
    parts = [f"### {title(report)}", about(report)]
    if report["cases"]:
        parts += [cases(report["cases"]), few_repetitions(report)]
    for over, found in report.get("scaling", {}).items():
        if found:
            parts.append(scaling(over, found))
    if "verdict" in report:
        parts.append(waits(report))
    if "verdict_cost" in report:
        parts.append(verdict_cost(report["verdict_cost"]))
    parts.append(f"![{title(report)}]({name}.svg)")
    return "\n\n".join(part for part in parts if part)


def about(report: Json) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if "compiled" in machine:
        versions += ", " + ("with" if machine["compiled"] else "without") + " forkpoint's part in C"
    speed = report.get("copy_bytes_per_second")
    copy = f" A copy reads and writes {speed / 1e9:,.0f} GB/s." if speed else ""
    remark = f" {report['remark']}" if "remark" in report else ""
    return f"Taken on {report['date']} with {versions}.{copy}{remark}"


def cases(found: Sequence[Json]) -> str:
    """A row for each way, two columns for each length of the prompt."""
    names = list(dict.fromkeys(name for case in found for name in case["ways"]))
    head, under = ["", *_heads(found)], ["---", *["--:"] * (2 * len(found))]
    rows = [head, under, [_label(found, "plain"), *_cells(found, lambda case: (_plain(case), ""))]]
    if any(case.get("floor_ratio") for case in found):
        rows.append([PHYSICAL, *_cells(found, _physical)])
    for name in names:
        if name != "plain":
            bold = "**" if name == "forkpoint" else ""
            cells = _cells(found, lambda case: _cell(case["ways"].get(name)))  # noqa: B023
            rows.append([f"{bold}{text}{bold}" if text else "" for text in (_label(found, name), *cells)])
    return _table(rows)


def _heads(found: Sequence[Json]) -> list[str]:
    heads = [
        (f"{case['tokens']:,} tokens, padded to {case['padded']:,}", "more memory than plain")
        for case in found
    ]
    return [text for both in heads for text in both]


def _cells(found: Sequence[Json], cell: Callable[[Json], tuple[str, str]]) -> list[str]:
    return [text for case in found for text in cell(case)]


def _label(found: Sequence[Json], name: str) -> str:
    return next(case["ways"][name]["label"] for case in found if name in case["ways"])


def _plain(case: Json) -> str:
    return seconds(case["ways"]["plain"]["seconds"])


def _physical(case: Json) -> tuple[str, str]:
    if not case.get("floor_ratio"):
        return "", ""
    return f"{case['floor_ratio']:.3f}× ({n_bytes(case['digested_bytes'])})", ""


def _cell(way: Json | None) -> tuple[str, str]:
    """A ratio with what is to be said of it, and the memory."""
    if way is None:
        return "", ""
    count = way.get("repetitions", REPETITIONS)
    remarks = [f"{count} repetition{'s' * (count > 1)}"] if count < REPETITIONS else []
    if "note" in way:
        remarks.append(way["note"])
    memory = n_bytes(way["extra_bytes"]) if way.get("extra_bytes") is not None else ""
    return _ratio(way) + (f" ({'; '.join(remarks)})" if remarks else ""), memory


def _ratio(way: Json) -> str:
    """A ratio, or why there is none."""
    if "ratio" in way:
        return times(way["ratio"])
    return way.get("skipped") or _failure(way["failed"])


def _failure(message: str) -> str:
    return (
        "out of memory"
        if message.startswith("OutOfMemoryError")
        else f"failed: {message.split(':', maxsplit=1)[0]}"
    )


def few_repetitions(report: Json) -> str:
    """That brackets say how often slow ways ran, if there are any."""
    ways = [way for case in report["cases"] for way in case["ways"].values()]
    if all(way.get("repetitions", REPETITIONS) >= REPETITIONS for way in ways):
        return ""
    return f"In brackets: the repetitions of a slow way that got fewer than {REPETITIONS}."


def scaling(over: str, found: Sequence[Json]) -> str:
    """Ratios over the length of the prompt or over the number of layers."""
    fixed = f"{found[0]['layers']} layers" if over == "tokens" else f"{found[0]['tokens']:,} tokens"
    names = [name for name in found[0]["ways"] if name != "plain"]
    rows = [
        [f"{over} ({fixed})", *(f"{case[over]:,}" for case in found)],
        ["---", *["--:"] * len(found)],
        ["plain pair", *map(_plain, found)],
        [PHYSICAL, *(f"{case['floor_ratio']:.3f}×" for case in found)],
        *([_label(found, name), *(_ratio(case["ways"][name]) for case in found)] for name in names),
    ]
    counts = sorted(way["repetitions"] for case in found for way in case["ways"].values() if "ratio" in way)
    return f"{_table(rows)}\n\nMedians of {_range(counts[0], counts[-1])} repetitions."


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def waits(report: Json) -> str:
    """What a user waits for."""
    found = report["verdict"]
    first = found["first"]
    when = {
        "first": "the first time, when libraries are loaded and kernels compiled",
        "next_process": "in the next process, which finds both on the disk's cache",
        "second": "the second time in a process",
    }
    when = {name: text for name, text in when.items() if name in found}
    taken = [f"{seconds(found[name]['verdict_seconds'])} {text}" for name, text in when.items()]
    said = (
        f"From the loaded model to the verdict ({first['kind']}; {first['tokens']} tokens, padded to "
        f"{first['padded']}): {'; '.join(taken)}."
    )
    if first["scene_seconds"] is not None:
        said += f" With the scene saved: {_listed([seconds(found[name]['scene_seconds']) for name in when])}."
    starts = ", ".join(f"`{name}` {seconds(taken)}" for name, taken in report["start_seconds"].items())
    return f"{said}\n\nA fresh process: {starts}."


def _listed(parts: list[str]) -> str:
    """Parts of a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def verdict_cost(found: Sequence[Json]) -> str:
    """What a verdict takes, in forward passes."""
    rows = [
        [
            "from the runs to the verdict",
            *(f"{c['tokens']:,} tokens, padded to {c['padded']:,}" for c in found),
        ],
        ["---", *["--:"] * len(found)],
        ["one plain forward pass (mean of the pair)", *(seconds(c["plain_seconds"]) for c in found)],
        ["all but float64", *(f"{seconds(c['other_seconds'])}, {c['passes']} passes" for c in found)],
        ["the same in plain forward passes' time", *(f"{c['forward_passes']:.1f}" for c in found)],
        ["float64", *(f"{seconds(c['float64_seconds'])}, {c['float64_passes']} passes" for c in found)],
    ]
    return f"{_table(rows)}\n\nMedians of {found[0]['repetitions']} repetitions."


PARTS = {
    "before": "the version before its files became packages (d918e1f)",
    "held.c": "without `held.c`: what modules hold is looked at in Python",
    "passages": "without C and without passages: every call is worked out",
    "threads": "digests on the calling thread alone, not on torch's own threads",
    "intrinsics": "digests in plain numba, without LLVM's instructions",
    "background": "nothing is loaded or compiled while the model makes its first pass",
}
"""The versions in `parts.json`."""


def parts(report: Json) -> str:
    """What other versions, or versions without a part, take against this one: a column for each."""
    names = [name for name in PARTS if any(case["version"] == name for case in report["cases"])]
    rows = [["", *names], ["---", *["--:"] * len(names)]]
    for what in dict.fromkeys(map(_measured, report["cases"])):
        found = {case["version"]: case for case in report["cases"] if _measured(case) == what}
        rows.append([what, *(_against(found.get(name)) for name in names)])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    models = "; ".join(f"on the {where}, {model}" for where, model in report["models"].items())
    about = (
        f"Taken on {report['date']} on {report['machine']} with {versions}; {models}. The time of another version over "
        "this one's, taken in turn (`benchmarks/against.py`): medians, and in brackets the least and the most."
    )
    legend = "\n".join(f"- {name}: {PARTS[name]}" for name in names)
    return "\n\n".join(["### What a part saves", about, legend, _table(rows)])


def _measured(case: Json) -> str:
    what = "first verdict" if case["what"] == "verdict" else f"{case['tokens']:,} tokens"
    return f"{case['on']}{'' if case['with_c'] else ', without C'}, {what}"


def _against(case: Json | None) -> str:
    if case is None:
        return ""
    return f"{case['ratio']:.2f} ({case['ratio_least']:.2f}–{case['ratio_most']:.2f})"


def tables() -> str:
    """All that stands between the page's markers."""
    sections = [section(name, report) for name, report in load().items()]
    return "\n\n".join([*sections, parts(load_parts())])


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def updated(page: str, text: str) -> str:
    """The page with new tables between its markers.

    Raises:
        ValueError: the markers are not there, once each and in this order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"expected {BEGIN} and then {END}, once each")
    between = re.compile(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", re.DOTALL)
    return between.sub(lambda _: f"\n\n{text}\n\n", page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    page: Path = parser.parse_args().page
    page.write_text(updated(page.read_text(encoding="utf-8"), tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
