"""The page of the table of architectures, from what `architectures.py` recorded."""

from __future__ import annotations

from collections import Counter

from results import DOCS, Json, seconds

PAGE = DOCS / "architectures.md"
HEAD = """# Architectures of transformers

What forkpoint says of {models} tiny random models of transformers {transformers} (weights drawn wide, fixed seed; torch {torch}, float32, eager attention, {date}, {device}), each asked the same questions: eight tokens as they are against the same padded to 14 on the right and on the left, in a batch of four of other lengths, three quarters of them and then one at a time from a cache, with sdpa, and in bfloat16. Models of images and sound get as much of that as they take. This page is made by `python benchmarks/architectures.py` from [architectures.json](../benchmarks/results/architectures.json).

*ops*: values of operations that were compared, at least at some coordinates. *not*: floating-point values that could be compared nowhere, and their share; *whole*: integers and bools of which that is true (they enter no first divergence). Values that were compared at some coordinates and not at others count as compared. The reasons stand [below](#what-was-not-compared), and what a question can't be asked of [behind them](#what-was-not-asked).
"""


def page(data: Json) -> str:
    """The page, as Markdown."""
    rows: Json = data["rows"]
    asked = {key: row for key, row in rows.items() if "verdict" in row}
    head = HEAD.format(
        models=len({key.split(" ")[0] for key in asked}), date=data["date"], device=data["machine"]["device"], **data["of"]
    )  # fmt: skip
    parts = [head, _counts(asked), _table(asked), _told(asked), _reasons(asked), _refused(rows)]
    return "\n".join(parts)


def _counts(asked: Json) -> str:
    kinds = Counter(_verdict(row) for row in asked.values())
    lines = [f"- {number} × {kind}" for kind, number in kinds.most_common()]
    missing = sum(row["missing_floats"] for row in asked.values())
    whole = sum(row["floats"] for row in asked.values())
    lines.append(
        f"- of {whole:,} floating-point values, {missing:,} ({missing / whole:.2%}) could be compared nowhere"
    )
    return "\n".join([f"{len(asked)} comparisons:\n", *lines, ""])


def _verdict(row: Json) -> str:
    found = row["verdict"] + (f" ({row['mechanism']})" if row["mechanism"] else "")
    meant = {True: ", meant", False: ", not meant", None: ""}[row["by_design"]]
    return found + meant


def _table(asked: Json) -> str:
    lines = [
        "## All comparisons\n",
        "| model | question | verdict | gap | ops | not | whole | time |",
        "|" + " --- |" * 8,
    ]
    for key, row in asked.items():
        name, _, question = key.partition(" ")
        share = row["missing_floats"] / max(row["floats"], 1)
        missing = f"{row['missing_floats']} ({share:.1%})" if row["missing_floats"] else "0"
        gap = "–" if row["gap"] is None else f"{row['gap']:.2g}"
        lines.append(
            f"| {name} | {question} | {_verdict(row)} | {gap} | {row['compared']} | {missing} | {row['missing_whole']} "
            f"| {seconds(row['seconds'])} |"
        )
    return "\n".join([*lines, ""])


def _told(asked: Json) -> str:
    lines = ["## Where something other than rounding was found\n"]
    for key, row in asked.items():
        if row["verdict"] not in ("rounding", "identical"):
            lines.append(f"- **{key}**: {row['summary']}" + (f"; at `{row['at']}`" if row["at"] else ""))
    return "\n".join([*lines, ""])


def _reasons(asked: Json) -> str:
    found: Counter[str] = Counter()
    of: dict[str, set[str]] = {}
    for key, row in asked.items():
        for reason, number in row["reasons"].items():
            found[reason] += number
            of.setdefault(reason, set()).add(key)
    lines = ["## What was not compared\n", "| values | comparisons | reason |", "| --- | --- | --- |"]
    lines += [f"| {number} | {len(of[reason])} | {reason} |" for reason, number in found.most_common()]
    return "\n".join([*lines, ""])


def _refused(rows: Json) -> str:
    found: dict[str, list[str]] = {}
    for key, row in rows.items():
        if "reason" in row:
            found.setdefault(row["reason"], []).append(key)
    lines = ["## What was not asked\n"]
    lines += [f"- {', '.join(keys)}: {reason}" for reason, keys in found.items()]
    return "\n".join([*lines, ""])
