"""The page of the table of architectures, from what `architectures.py` recorded."""

from __future__ import annotations

from collections import Counter

from results import DOCS, Json, seconds

PAGE = DOCS / "architectures.md"
HEAD = """# Architectures of transformers

What forkpoint says of {models} tiny random models of transformers {transformers} (weights drawn wide, fixed seed; torch {torch}, float32, eager attention, commit {commit}, {date}, {device}), each asked the same questions: eight tokens as they are against the same padded to 14 on the right and on the left, in a batch of four of other lengths, three quarters of them and then one at a time from a cache, with sdpa, and in bfloat16. Models of images and sound get as much of that as they take. This page is made by `python benchmarks/architectures.py` from [architectures.json](../benchmarks/results/architectures.json).

*ops*: values of operations that were compared, at least at some coordinates. *not*: floating-point values that could be compared nowhere, and their share. *alone*: floating-point values that have nothing to be compared with, as each run has them of tokens or of padding of which the other has none there (a state after the padding, a chunk that is cut elsewhere), or which are memory that was only reserved. *whole*: integers and bools that could be compared nowhere (they enter no first divergence). Values that were compared at some coordinates and not at others count as compared. The reasons stand [below](#what-was-not-compared), rows with 1 % or more in *not* [above them](#comparisons-with-1--or-more-not-compared), and what a question can't be asked of [at the end](#what-was-not-asked).
"""
BUGS = """## What looks like a bug in transformers

Each script shows it without forkpoint, in float64 where a gap of rounding would be about 1e-15:

- ConvBERT, Nyströmformer, MobileBERT and Funnel: padding on the right changes real tokens, though the mask is given. [padding_in_text.py](../benchmarks/bugs/padding_in_text.py)
- RecurrentGemma: padding on the left changes real tokens, though mask and positions are given. [left_padding_in_recurrent_gemma.py](../benchmarks/bugs/left_padding_in_recurrent_gemma.py)
- ProphetNet: what the decoder predicts depends on later tokens, and is another thing from a cache. [later_tokens_in_prophetnet.py](../benchmarks/bugs/later_tokens_in_prophetnet.py)
- Wav2Vec2-Conformer: silence behind a recording changes its frames, though the mask is given. [padding_in_conformer.py](../benchmarks/bugs/padding_in_conformer.py)
- DETR: padding beside an image changes the detections, though the pixel mask is given. [image_padding_in_detr.py](../benchmarks/bugs/image_padding_in_detr.py)
- ViLT: in eval mode, the patches that it returns stand in another order in each call. [random_patches_in_vilt.py](../benchmarks/bugs/random_patches_in_vilt.py)

"""
KNOWN = "No bug, but to be known: padding on the left, {pooled} take the first column for their pooled vector, and {positions} count positions by columns; FNet and RWKV take no mask into account.\n"
EXPLAINED = {
    "longformer padding left": "the pooled vector is made of the first column, which is padding in run B: there is nothing of run A to hold it against",
    "led padding left": "positions are counted by columns, as in BART, but of rows that the encoder has filled up to a multiple of its attention window first: of numbers of that length, which no input has, it is not known whose they are, and so not that they are positions",
    "prophetnet cache": "the streams that predict the tokens to come stand behind a call's tokens in the same dimension, and whose each of three columns is can't be told where a call has one token. The logits do differ, and not by rounding: see the script above",
    "detr padding right": "the bug above: what the backbone makes of the padding. It has no tokens, and its maps are of another size, so they are not compared",
}
"""What no row says by itself: why it is undetermined, or what stands behind a difference without a known cause."""


def page(data: Json) -> str:
    """The page, as Markdown."""
    rows: Json = data["rows"]
    asked = {key: row for key, row in rows.items() if "verdict" in row}
    head = HEAD.format(
        models=len({key.split(" ")[0] for key in asked}), date=data["date"], device=data["machine"]["device"], **data["of"]
    )  # fmt: skip
    if data["without"]:
        head += f"\nOf the script's architectures these were not asked at this commit: {', '.join(data['without'])}.\n"
    parts = [
        head,
        _counts(asked),
        BUGS + _known(asked),
        _table(asked),
        _told(asked),
        _many(asked),
        _reasons(asked),
        _refused(rows),
    ]
    return "\n".join(parts)


def _counts(asked: Json) -> str:
    kinds = Counter(_verdict(row) for row in asked.values())
    lines = [f"- {number} × {kind}" for kind, number in kinds.most_common()]
    missing = sum(row["missing_floats"] for row in asked.values())
    whole = sum(row["floats"] for row in asked.values())
    alone = sum(row["no_partner"] for row in asked.values())
    lines.append(
        f"- of {whole:,} floating-point values, {missing:,} ({missing / whole:.2%}) could be compared nowhere, and "
        f"{alone:,} had nothing to be compared with"
    )
    return "\n".join([f"{len(asked)} comparisons:\n", *lines, ""])


def _known(asked: Json) -> str:
    """What follows from the rows: which models are to be padded on the right."""
    found: dict[str, list[str]] = {"pooling": [], "position_ids": []}
    for key, row in asked.items():
        if key.endswith(" padding left") and row["mechanism"] in found:
            found[row["mechanism"]].append(key.split(" ")[0])
    pooled, positions = (f"{', '.join(names[:-1])} and {names[-1]}" for names in found.values())
    return KNOWN.format(pooled=pooled, positions=positions)


def _verdict(row: Json) -> str:
    found = row["verdict"] + (f" ({row['mechanism']})" if row["mechanism"] else "")
    meant = {True: ", meant", False: ", not meant", None: ""}[row["by_design"]]
    return found + meant


def _table(asked: Json) -> str:
    lines = [
        "## All comparisons\n",
        "| model | question | verdict | gap | ops | not | alone | whole | time |",
        "|" + " --- |" * 9,
    ]
    for key, row in asked.items():
        name, _, question = key.partition(" ")
        missing = f"{row['missing_floats']} ({_share(row):.1%})" if row["missing_floats"] else "0"
        gap = "–" if row["gap"] is None else f"{row['gap']:.2g}"
        lines.append(
            f"| {name} | {question} | {_verdict(row)} | {gap} | {row['compared']} | {missing} | {row['no_partner']} "
            f"| {row['missing_whole']} | {seconds(row['seconds'])} |"
        )
    return "\n".join([*lines, ""])


def _told(asked: Json) -> str:
    lines = ["## Where something other than rounding was found\n"]
    for key, row in asked.items():
        if row["verdict"] not in ("rounding", "identical"):
            why = f". Namely: {EXPLAINED[key]}" if key in EXPLAINED else ""
            lines.append(
                f"- **{key}**: {row['summary']}" + (f"; at `{row['at']}`" if row["at"] else "") + why
            )
    return "\n".join([*lines, ""])


def _share(row: Json) -> float:
    return row["missing_floats"] / max(row["floats"], 1)


def _many(asked: Json) -> str:
    lines = ["## Comparisons with 1 % or more not compared\n"]
    for key, row in asked.items():
        if _share(row) >= 0.01:
            found = "; ".join(f"{number} × {reason}" for reason, number in row["reasons"].items())
            lines.append(f"- **{key}** ({_share(row):.1%}): {found}")
    return "\n".join([*(lines if len(lines) > 1 else [*lines, "None."]), ""])


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
