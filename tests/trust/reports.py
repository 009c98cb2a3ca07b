"""Prints what is said of some cases of the corpus, one report after the other: `python -m tests.trust.reports CASE...`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from tests.corpus import CASES

import forkpoint as fp

REPRESENTATIVE = (
    "33-batchnorm-buffers", "07-bert-masked-mean", "10-llama-fp32-bf16", "24-scale-per-tensor", "26-nan-masked-rows",
    "28-one-token-differs", "m-sum-in-a-loop", "46-let-go",
)  # fmt: skip
"""Of every kind of verdict but nondeterminism, whose figures are new each time."""


def report(case: str, **options: object) -> str:
    """The report of a case, and all that was not compared."""
    torch.manual_seed(0)
    a, b, given, patches = CASES[case].build()
    with patches:
        result = fp.compare(a, b, **given, **options)  # type: ignore[arg-type]
    ops = "\n".join(f"{row.op} {row.status} {row.compared} {row.differing}" for row in result.ops)
    return f"{result}\n{result.not_compared}\n{ops}\n"


def reports(cases: Iterable[str] = REPRESENTATIVE) -> str:
    """The reports of cases, with and without a limit of memory."""
    return "".join(report(case) + report(case, max_memory=1) for case in cases)


if __name__ == "__main__":
    print(reports(sys.argv[1:] or REPRESENTATIVE))
