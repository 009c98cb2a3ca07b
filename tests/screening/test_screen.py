"""Screening log-probabilities: each cause, made by a small model whose distributions are known, is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.architectures import ARCHITECTURES
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.screening.answer import CAUSES

SEQUENCES, LENGTH = 8, 40
Record = list[dict[str, Any]]
Change = Callable[[Tensor], Tensor]

TOP_P, TOP_K, TEMPERATURES = (0.8, 0.9, 0.95), (3, 5, 10, 20), (0.7, 0.8, 0.9, 1.2, 1.5)


@cache
def model(seed: int) -> nn.Module:
    return ARCHITECTURES["llama"].build(seed=seed)


def logits(of: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return of(input_ids=ids).logits.double() * 2  # of which some are likely


def unchanged(values: Tensor) -> Tensor:
    return values


def sampled(seed: int, change: Change = unchanged) -> Tensor:
    """[sequences, tokens], sampled from what becomes of the logits."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 100, (SEQUENCES, 1), generator=generator)
    for _ in range(LENGTH):
        last = change(logits(model(seed), ids)[:, -1])
        ids = torch.cat([ids, torch.multinomial(last.softmax(-1), 1, generator=generator)], 1)
    return ids


def recorded(values: Tensor, ids: Tensor) -> Record:
    chosen = values.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return [
        {"token_ids": row.tolist(), "logprobs": [None, *found.tolist()]}
        for row, found in zip(ids, chosen, strict=True)
    ]


def top_p(p: float) -> Change:
    def cut(values: Tensor) -> Tensor:
        ordered, places = values.softmax(-1).sort(-1, descending=True)
        kept = torch.zeros_like(values, dtype=torch.bool).scatter(
            -1, places, ordered.cumsum(-1) - ordered < p
        )
        return values.masked_fill(~kept, -torch.inf)

    return cut


def top_k(k: int) -> Change:
    return lambda values: values.masked_fill(values < values.topk(k, -1).values[..., -1:], -torch.inf)


def noisy(values: Tensor, seed: int, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return values + size * torch.randn(values.shape, generator=generator, dtype=values.dtype)


def pair(cause: str, seed: int) -> tuple[Record, Record, dict[str, float]]:
    """Two records that differ for a known reason, and figures that the answer has to have."""
    noise = (0.0, 1e-3, 0.02)[seed % 3]
    if cause in ("top_p", "top_k"):
        p, k = TOP_P[seed % 3], TOP_K[seed % 4]
        change = top_p(p) if cause == "top_p" else top_k(k)
        ids = sampled(seed, change)
        plain = logits(model(seed), ids)
        kept = torch.where(change(plain).isfinite(), plain.softmax(-1), 0.0).sum(-1)[:, :-1].mean().item()
        records = recorded(noisy(plain, seed, noise), ids), recorded(change(plain), ids)
        figures = {"kept_mass": kept}
        return (*records, figures) if seed % 2 else (*reversed(records), figures)
    ids = sampled(seed)
    plain = logits(model(seed), ids)
    ours = recorded(noisy(plain, seed, noise), ids)
    theirs = copy.deepcopy(ours)
    figures: dict[str, float] = {}
    if cause == "temperature":
        figures["temperature"] = TEMPERATURES[seed % 5]
        theirs = recorded(plain / TEMPERATURES[seed % 5], ids)
    elif cause == "shifted":
        by = (1, -1, 2)[seed % 3]
        figures["shift"] = by
        for row in theirs:
            filler = [None] * abs(by)
            row["logprobs"] = filler + row["logprobs"][:-by] if by > 0 else row["logprobs"][-by:] + filler
    elif cause == "tokenisation":
        theirs[3]["token_ids"][5] += 1
    elif cause == "other_weights":
        stale = copy.deepcopy(model(seed))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in stale.parameters():
                weight += (
                    torch.randn(weight.shape, generator=generator) * weight.std() * (0.03, 0.1)[seed % 2]
                )
        theirs = recorded(logits(stale, ids), ids)
    elif cause == "rounding":
        other = copy.deepcopy(model(seed)).to(torch.bfloat16) if seed % 2 else None
        values = noisy(plain, seed + 1, (0.02, 0.002)[seed // 2 % 2]) if other is None else logits(other, ids)
        theirs = recorded(values, ids)
    return ours, theirs, figures


def check(cause: str, seed: int) -> str:
    """What is wrong with the answer; empty if nothing is."""
    ours, theirs, figures = pair(cause, seed)
    found = fp.logprobs(ours, theirs)
    if found.cause != cause:
        return f"{cause} {seed}: {found.cause}, {found.summary}"
    for name, value in figures.items():
        allowed = {"kept_mass": 0.005, "temperature": 0.2 * value, "shift": 0.0}[name]
        if abs(getattr(found, name) - value) > allowed:
            return f"{cause} {seed}: {name} is {getattr(found, name)}, not {value}"
    return ""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause != "unknown"])
def test_each_cause_is_named(cause: str, seed: int) -> None:
    assert check(cause, seed) == ""


def test_a_file_is_read_as_a_list_is(tmp_path: Path) -> None:
    ours, theirs, _ = pair("temperature", 0)
    paths: list[Path] = []
    for name, record in (("a", ours), ("b", theirs)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, record)) + "\n", encoding="utf-8")
        paths.append(path)
    assert fp.logprobs(*paths) == fp.logprobs(ours, theirs)


def test_sequences_are_paired_by_their_ids() -> None:
    ours, _, _ = pair("identical", 0)
    for number, row in enumerate(ours):
        row["id"] = number
    assert fp.logprobs(ours, ours[::-1]).cause == "identical"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"token_ids": [1, 2], "logprobs": [-1.0]}, "2 token_ids and 1 logprobs; expected as many of both"),
        (
            {"token_ids": [1], "logprobs": [0.7]},
            "the log-probability 0.7 at token 0; expected natural logarithms",
        ),
        ({"token_ids": ["a"], "logprobs": [-1.0]}, "token_ids that are no whole numbers"),
        ({"token_ids": [1], "logprobs": ["x"]}, "logprobs that are no numbers"),
        ({"token_ids": [1]}, "which has no token_ids and logprobs"),
        ({"token_ids": "12", "logprobs": [-1.0, -1.0]}, "a str in place of a list"),
    ],
)
def test_what_is_no_record_is_one_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(fp.InputError) as caught:
        fp.logprobs([row], [{"token_ids": [1], "logprobs": [-1.0]}])
    assert message in str(caught.value)


def test_lists_of_unequal_lengths_are_one_line() -> None:
    with pytest.raises(fp.InputError, match="sequence 0: 3 log-probabilities in A, 2 in B"):
        fp.logprobs(
            [{"token_ids": [1, 2, 3], "logprobs": [-1, -1, -1]}],
            [{"token_ids": [1, 2], "logprobs": [-1, -1]}],
        )


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"token_ids": [1], "logprobs": [-1]}\n{"token_ids"', encoding="utf-8")
    with pytest.raises(fp.InputError, match="line 2"):
        fp.logprobs(path, path)


def test_sequences_of_one_file_alone_are_counted() -> None:
    ours, _, _ = pair("identical", 0)
    for number, row in enumerate(ours):
        row["id"] = number
    found = fp.logprobs(ours, ours[:5])
    assert (found.cause, found.sequences) == ("identical", 5)
    assert found.evidence == ("3 sequences that only one of both has were not compared",)
    with pytest.raises(fp.InputError, match="two sequences of B with the id 1"):
        fp.logprobs(ours, [*ours, ours[1]])


def test_only_what_was_tried_is_evidence() -> None:
    """Lists that agree are not moved, and of few tokens nothing is asked."""
    ours = [{"token_ids": [1, 2], "logprobs": [-1.0, -2.0]}]
    theirs = [{"token_ids": [1, 2], "logprobs": [-1.01, -2.0]}]
    assert fp.logprobs(ours, theirs).evidence == ()
    rounded = fp.logprobs(*pair("rounding", 1)[:2]).evidence
    assert rounded == (
        "no side spreads its probabilities over a part of the vocabulary",
        "no temperature fits the odds of all tokens",
    )
    assert fp.logprobs(*pair("other_weights", 1)[:2]).evidence[0] == (
        "no shift by up to 4 positions brings the lists together"
    )


def test_few_tokens_prove_nothing() -> None:
    ours = [{"token_ids": [1, 2], "logprobs": [-1.0, -2.0]}]
    theirs = [{"token_ids": [1, 2], "logprobs": [-3.0, -0.5]}]
    assert fp.logprobs(ours, theirs).cause == "unknown"


def test_a_few_tokens_that_are_far_apart_are_not_rounding() -> None:
    """Whatever the median says."""
    near = np.random.default_rng(0).normal(-2.0, 0.5, 100)
    a = [{"token_ids": list(range(100)), "logprobs": near.tolist()}]
    far = near + np.random.default_rng(1).normal(0.0, 1e-6, 100)
    assert (
        fp.logprobs(a, [{"token_ids": list(range(100)), "logprobs": far.tolist()}], dtype="float32").cause
        == "rounding"
    )
    far[[40, 41]] += [0.5, -0.5]
    found = fp.logprobs(a, [{"token_ids": list(range(100)), "logprobs": far.tolist()}], dtype="float32")
    assert (found.cause, found.first, found.agrees) == ("unknown", (0, 40), False)
    assert "2 of 100 tokens" in found.summary


def test_a_screening_has_no_truth_value() -> None:
    found = fp.logprobs([{"token_ids": [1], "logprobs": [-1.0]}], [{"token_ids": [1], "logprobs": [-1.0]}])
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(found)
    assert found.to_dict()["agrees"] is True
    assert not np.isnan(found.ratio)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="A board: every cause, and clean pairs.")
    parser.add_argument("--count", type=int, default=20, help="pairs of each cause")
    parser.add_argument("--clean", type=int, default=200, help="pairs that differ by rounding")
    options = parser.parse_args()
    for name in CAUSES[2:-1]:
        wrong = [text for seed in range(options.count) if (text := check(name, seed))]
        print(f"{name}: {options.count - len(wrong)} of {options.count}", *wrong, sep="\n  ")
    wrong = [text for seed in range(options.clean) if (text := check("rounding", seed))]
    print(f"rounding: {options.clean - len(wrong)} of {options.clean} clean pairs", *wrong, sep="\n  ")
