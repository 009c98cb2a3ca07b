"""Were both asked the same? Token ids, positions, sampling, weights, caches: what to look at before any op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from forkpoint.capture.digest import torch_impl
from forkpoint.engines.answer import Check
from forkpoint.engines.recording import Recording
from forkpoint.errors import InputError

NEUTRAL = {
    "top_p": (None, 1, 1.0), "top_k": (None, 0, -1), "min_p": (None, 0, 0.0), "repetition_penalty": (None, 1, 1.0),
    "presence_penalty": (None, 0, 0.0), "frequency_penalty": (None, 0, 0.0),
}  # fmt: skip
"""Settings that leave the distribution alone."""


def token_ids(recording: Recording, prompts: Sequence[Sequence[int]] | None) -> dict[int, list[int]]:
    """The token ids that each sample was to be asked, as far as they are known: of the prompts, or as the engine says.

    Raises:
        InputError: the recording holds no token.
    """
    ids: dict[int, list[int]] = {}
    samples = {one.sample: one for one in recording.facts.samples}
    for sample in recording.samples:
        one = samples.get(sample)
        index = one.prompt if one is not None else sample
        by_position = recording.ids_of(sample)
        whole = list(one.token_ids) if one is not None else [by_position[p] for p in sorted(by_position)]
        if prompts is not None and index is not None and index < len(prompts):
            prompt = list(map(int, prompts[index]))
            whole = [*prompt, *whole[len(prompt) :]]
        ids[sample] = whole
    if not ids:
        raise InputError(f"{recording.folder}, a recording without tokens", "at least one sequence of tokens")
    return ids


def question_checks(
    recording: Recording, model: nn.Module, ids: Mapping[int, list[int]]
) -> tuple[tuple[Check, ...], str | None]:
    """Each part of the question; and the mechanism of the first that differs and makes the runs incomparable or unequal.

    Args:
        model: the reference.
        ids: by sample, what was to be asked.
    """
    checks = [
        _ids(recording, ids), _positions(recording), _sampling(recording), _weights(recording, model),
        _prefix(recording),
    ]  # fmt: skip
    if recording.facts.dropped:
        n = recording.facts.dropped
        checks.append(
            Check(
                "warm_up", "same", f"{n} calls of the engine that computed no request's tokens were left out"
            )
        )
    mechanisms = {"token_ids": "token_ids", "weights": "parameters", "positions": "position_ids"}
    first = next((c for c in checks if c.outcome == "differs" and c.name in mechanisms), None)
    return tuple(checks), mechanisms[first.name] if first else None


def _ids(recording: Recording, ids: Mapping[int, list[int]]) -> Check:
    compared = 0
    for sample, wanted in ids.items():
        by_position = recording.ids_of(sample)
        wrong = [p for p, i in sorted(by_position.items()) if p >= len(wanted) or wanted[p] != i]
        if wrong and len(set(by_position.values())) == 1 and len(by_position) > 1 and len(set(wanted)) > 1:
            only = next(iter(by_position.values()))
            text = f"sample {sample} was given {len(by_position)} times the token {only}: a warm-up was recorded in place of the prompt"
            return Check("token_ids", "differs", text)
        if wrong:
            text = f"sample {sample} was given other token ids at {len(wrong)} of {len(by_position)} positions, first at {wrong[0]}"
            return Check("token_ids", "differs", text)
        compared += len(by_position)
    if not compared:
        return Check("token_ids", "unknown", "the token ids that the engine was given were not recorded")
    return Check("token_ids", "same", f"the token ids are the same at {compared} positions")


def _positions(recording: Recording) -> Check:
    compared = 0
    for sample in recording.samples:
        positions = recording.positions_of(sample)
        wrong = [(p, i) for p, i in sorted(positions.items()) if p != i]
        if wrong:
            place, value = wrong[0]
            text = f"sample {sample} was given position {value} for its token {place}, and others at {len(wrong)} of {len(positions)} tokens"
            return Check("positions", "differs", text)
        compared += len(positions)
    if not compared:
        return Check("positions", "unknown", "the positions that the engine was given were not recorded")
    return Check("positions", "same", f"each of {compared} tokens was given its own position")


def _sampling(recording: Recording) -> Check:
    """What the engine did to the distribution before it reported log-probabilities."""
    settings = recording.facts.settings
    if not settings:
        return Check("sampling", "unknown", "what the engine did to the distribution was not recorded")
    changes = [
        f"{name}={settings[name]}" for name, usual in NEUTRAL.items() if settings.get(name) not in usual
    ]
    if settings.get("temperature") not in (None, 0, 1):
        changes.insert(0, f"temperature={settings['temperature']}")
    if not changes:
        return Check("sampling", "same", "neither a temperature nor a cut of the vocabulary was asked for")
    listed = ", ".join(changes)
    if str(settings.get("logprobs_mode", "")).startswith("processed"):
        text = f"the engine applies {listed} before it reports log-probabilities ({settings['logprobs_mode']}); the reference does not"
        return Check("sampling", "differs", text)
    return Check(
        "sampling",
        "same",
        f"the engine samples with {listed}, and reports log-probabilities as they were before",
    )


def _weights(recording: Recording, model: nn.Module) -> Check:
    """Whether the engine has the reference's parameters: fused ones row by row of their parts."""
    same, differing, unknown = 0, list[str](), list[str]()
    tables = recording.facts.tables
    back = {theirs: ours for ours, theirs in tables.renamed.items()}
    for name, value in model.named_parameters():
        dtype = str(value.dtype).removeprefix("torch.")
        digests = _theirs(recording, name, value.shape[0] if value.dim() else 1, dtype, model, back)
        if digests is None or value.is_meta:
            unknown.append(name)
            continue
        plain = value.detach()
        mine = torch_impl.rows(plain[None] if plain.dim() == 0 else plain, (0,)).cpu().numpy()
        if np.array_equal(mine, digests):
            same += 1
        else:
            differing.append(name)
    if differing:
        text = f"{len(differing)} parameters of the engine differ from the reference's, {differing[0]} first; {same} are the same"
        return Check("weights", "differs", text)
    if unknown:
        text = f"{same} parameters are the same, bit for bit; {len(unknown)} could not be compared, {unknown[0]} first"
        return Check("weights", "unknown", text)
    return Check("weights", "same", f"{same} parameters are the same, bit for bit")


def _theirs(
    recording: Recording, name: str, rows: int, dtype: str, model: nn.Module, back: Mapping[str, str]
) -> np.ndarray | None:
    """The digests that the engine has for a parameter of the reference; None where they are not known."""
    weights = recording.weights
    path, _, last = name.rpartition(".")
    parent, _, module = path.rpartition(".")
    direct = weights.get(name) or weights.get(f"{back.get(path, path)}.{last}")
    if (
        direct is not None
        and direct.digests is not None
        and direct.dtype == dtype
        and len(direct.digests) >= rows
    ):
        return direct.digests[:rows]  # a vocabulary may be padded
    for fused, parts in recording.facts.tables.fused.items():
        whole = weights.get(".".join(p for p in (parent, fused, last) if p))
        if module not in parts or whole is None or whole.digests is None or whole.dtype != dtype:
            continue
        start = 0
        for part in parts[: parts.index(module)]:
            other = getattr(model.get_submodule(f"{parent}.{part}" if parent else part), last, None)
            if other is None:
                return None
            start += other.shape[0]
        digests = whole.digests[start : start + rows]
        return digests if len(digests) == rows else None
    return None


def _prefix(recording: Recording) -> Check:
    """Whether the engine computed all tokens, or found keys and values of some in its cache."""
    missing = {}
    for sample in recording.samples:
        computed = recording.first_position(sample)
        if computed:
            missing[sample] = computed
    if not missing:
        return Check(
            "prefix_cache", "same", "every token was computed in this run: none was found in a prefix cache"
        )
    sample, count = next(iter(missing.items()))
    read = "and were recorded" if sample in recording.cached else "and were not recorded"
    text = (
        f"keys and values of the first {count} tokens of sample {sample} were found in the prefix cache {read}; "
        f"so in {len(missing)} samples"
    )
    return Check("prefix_cache", "unknown", text)
