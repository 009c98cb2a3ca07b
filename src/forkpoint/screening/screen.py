"""The screening: which of the known causes explains how two lists of log-probabilities differ.

Of a sampled token, engine A recorded log p and engine B log q. Each cause leaves marks. Other weights could lay them by
chance, or by being trained to; so what is said is how the records lie, not what was done.

- A *cut of the vocabulary* (top-p, top-k) spreads what was cut over the rest: q = p / m, where m is the share that was
  kept. So no token loses, beyond rounding. Of top-p, the kept share is at least p_top, and without its least likely member
  it is less: m - p < p_top <= m for every token, since a token that was kept is at least as likely as that member.
  One p_top that fits all tokens is top-p; where none does, it is another cut.
- A *temperature* T sharpens or flattens: with s = 1/T, the odds of q are those of p to the power of s where one other token
  has all the rest, and else more extreme if s > 1, less if s < 1. So of likely tokens logit(q)/logit(p) is at least s, of
  unlikely ones at most (s > 1; the reverse if s < 1): one s fits all tokens, and it is not 1.
- A *shift* makes the lists agree when one is moved by some positions.
- *Rounding* moves logits by a few units of the dtype's epsilon, whatever the token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forkpoint.errors import InputError
from forkpoint.screening.answer import Screening
from forkpoint.screening.reading import Sequence_, Source, paired, read

Floats = NDArray[np.float64]

EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
NOISE = 10
"""Units of the dtype's epsilon by which rounding may move a logit, in the median. Logits of 10 to 30 of models in bfloat16
are some 0.01 to 0.05 apart from those of another engine, which is 1 to 6 units (of SmolLM2 in bfloat16 against float32, 6)."""
LEAST_NOISE = 1e-4
"""That much is rounding in any dtype: engines sum in other orders, through dozens of layers."""
FAR = 10
"""Times `noise` by which no token's gap exceeds it where all is rounding: a median says nothing of a few tokens."""
MAX_SHIFT = 4
LEAST_DOUBT = 0.1
"""1 - p of a token whose gap says something of its logit."""
FEW = 8
"""Tokens below which no cause but the plain ones is looked for."""


@dataclass(frozen=True)
class _Tokens:
    """The tokens of all sequences whose log-probabilities are finite in both: [tokens] each."""

    p: Floats
    q: Floats
    only_a: int
    only_b: int
    noise: float
    """Size in logits up to which a gap is rounding."""

    @property
    def gap(self) -> Floats:
        return self.q - self.p


def logprobs(a: Source, b: Source, *, dtype: str = "bfloat16") -> Screening:
    """Tell from recorded log-probabilities alone how two engines differ, of one text each.

    Args:
        a, b: files with one JSON object a line, or lists of mappings: `token_ids` and `logprobs` of one sequence, as many of
            both; null for one that was not recorded. Sequences are paired by `id` where all have one, else in order.
        dtype: the narrowest that either engine computes in: `float32`, `float16` or `bfloat16`; it says what rounding makes.

    Returns:
        The cause, as far as it can be told, with figures.

    Raises:
        InputError: something that is no such list, lists of unequal lengths, another number of sequences.

    >>> ours = [{"token_ids": [3, 5], "logprobs": [-0.5, -2.0]}]
    >>> logprobs(ours, ours).cause
    'identical'
    """
    if dtype not in EPSILON:
        raise InputError(f"dtype {dtype!r}", f"one of {', '.join(EPSILON)}")
    sequences = read(a, "A"), read(b, "B")
    pairs = paired(*sequences)
    screening = _cause(pairs, dtype)
    alone = sum(map(len, sequences)) - 2 * len(pairs)
    note = (f"{alone} sequences that only one of both has were not compared",) if alone else ()
    return replace(screening, evidence=(*screening.evidence, *note))


def _cause(pairs: list[tuple[Sequence_, Sequence_]], dtype: str) -> Screening:
    """The cause that explains how these differ; see `logprobs`."""
    other = _other_tokens(pairs)
    if other is not None:
        return _of_other_tokens(pairs, *other)
    tokens = _gather(pairs, dtype)
    plain = _figures(tokens, len(pairs))
    if not len(tokens.p):
        return replace(plain, cause="unknown", summary="no token has a log-probability in both")
    if not (tokens.only_a or tokens.only_b or bool(tokens.gap.any())):
        return replace(plain, cause="identical", summary="the log-probabilities are the same, bit for bit")
    tried: list[str] = []
    screening = _shifted(plain, tokens, pairs, tried)
    if screening is None:
        screening = _cut(plain, tokens, tried)
    if screening is None:
        screening = _temperature(plain, tokens, tried)
    return _rest(plain, tokens, pairs, dtype, tuple(tried)) if screening is None else screening


# ---------------------------------------------------------------------- the same question?


def _other_tokens(pairs: list[tuple[Sequence_, Sequence_]]) -> tuple[int, int] | None:
    """(sequence, token) of the first token that is another one."""
    for number, (one, other) in enumerate(pairs):
        shorter = min(len(one.ids), len(other.ids))
        differing = np.flatnonzero(one.ids[:shorter] != other.ids[:shorter])
        if len(differing):
            return number, int(differing[0])
        if len(one.ids) != len(other.ids):
            raise InputError(
                f"sequence {number}: {len(one.ids)} log-probabilities in A, {len(other.ids)} in B",
                "as many in both",
                "cut both to the tokens that both engines scored",
            )
    return None


def _of_other_tokens(pairs: list[tuple[Sequence_, Sequence_]], sequence: int, token: int) -> Screening:
    others = sum(not np.array_equal(one.ids, other.ids) for one, other in pairs)
    text = f"the token ids differ in {others} of {len(pairs)} sequences, first in sequence {sequence} at token {token}"
    return Screening(
        "tokenisation", text, len(pairs), 0, math.nan, math.nan, math.nan, first=(sequence, token),
        evidence=("log-probabilities of other tokens can't be compared",),
    )  # fmt: skip


def _gather(pairs: list[tuple[Sequence_, Sequence_]], dtype: str) -> _Tokens:
    p = np.concatenate([one.logprobs for one, _ in pairs])
    q = np.concatenate([other.logprobs for _, other in pairs])
    both = ~(np.isnan(p) | np.isnan(q))
    finite = np.isfinite(p) & np.isfinite(q)
    noise = max(NOISE * EPSILON[dtype], LEAST_NOISE)
    only_a = int((both & np.isfinite(p) & ~np.isfinite(q)).sum())
    only_b = int((both & np.isfinite(q) & ~np.isfinite(p)).sum())
    return _Tokens(p[finite], q[finite], only_a, only_b, noise)


def _figures(tokens: _Tokens, sequences: int) -> Screening:
    gap = tokens.gap
    return Screening(
        "unknown", "", sequences, len(gap), _mean(np.abs(gap)), float(np.abs(gap).max(initial=0.0)),
        _mean(np.exp(np.minimum(gap, 700))), logit_noise=_logit_noise(tokens), only_a=tokens.only_a, only_b=tokens.only_b,
    )  # fmt: skip


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _logit_noise(tokens: _Tokens) -> float | None:
    """|gap| / (1 - p): a logit that moves by x moves log p by (1 - p) x."""
    doubt = -np.expm1(np.maximum(tokens.p, tokens.q))
    uncertain = doubt > LEAST_DOUBT
    if not uncertain.any():
        return None
    return float(np.median(np.abs(tokens.gap[uncertain]) / doubt[uncertain]))


def _far(pairs: list[tuple[Sequence_, Sequence_]], limit: float) -> list[tuple[int, int]]:
    """(sequence, token) of each token whose gap is larger than a logit that moves by `limit` makes it."""
    places: list[tuple[int, int]] = []
    for number, (one, other) in enumerate(pairs):
        p, q = one.logprobs, other.logprobs
        at = np.flatnonzero(np.isfinite(p) & np.isfinite(q))
        doubt = np.maximum(-np.expm1(np.maximum(p[at], q[at])), LEAST_DOUBT)
        places += [(number, int(token)) for token in at[np.abs(q[at] - p[at]) / doubt > limit]]
    return places


# ---------------------------------------------------------------------- causes


def _shifted(
    plain: Screening, tokens: _Tokens, pairs: list[tuple[Sequence_, Sequence_]], tried: list[str]
) -> Screening | None:
    """Whether the lists agree when one is moved by some positions, and not as they are.

    Args:
        tried: is told what was tried in vain.
    """
    here = _distance(pairs, 0)
    if here is None or here <= tokens.noise:
        return None
    moved = {shift: _distance(pairs, shift) for shift in range(-MAX_SHIFT, MAX_SHIFT + 1) if shift}
    distances = {shift: distance for shift, distance in moved.items() if distance is not None}
    if not distances:
        return None
    shift = min(distances, key=lambda s: (distances[s], abs(s)))
    if distances[shift] > min(tokens.noise, here / 10):
        tried.append(f"no shift by up to {MAX_SHIFT} positions brings the lists together")
        return None
    where = "later" if shift > 0 else "earlier"
    text = f"the log-probabilities of B are those of A, {abs(shift)} positions {where}"
    shown = f"the median gap is {here:.3g} nats as they are, {distances[shift]:.3g} when moved"
    return replace(plain, cause="shifted", summary=text, shift=shift, evidence=(shown,))


def _distance(pairs: list[tuple[Sequence_, Sequence_]], shift: int) -> float | None:
    """Median |gap| with B moved back by some positions; of tokens that are in doubt, since all lists agree on the others."""
    parts: list[Floats] = []
    for one, other in pairs:
        p = one.logprobs[: len(one.logprobs) - shift] if shift >= 0 else one.logprobs[-shift:]
        q = other.logprobs[shift:] if shift >= 0 else other.logprobs[:shift]
        with np.errstate(invalid="ignore"):
            gap = np.abs(p - q)
        parts.append(gap[np.isfinite(gap) & (np.minimum(p, q) < -0.1)])
    gaps = np.concatenate(parts)
    return float(np.median(gaps)) if len(gaps) >= FEW else None


def _cut(plain: Screening, tokens: _Tokens, tried: list[str]) -> Screening | None:
    """Whether one side has spread the probability over a part of the vocabulary."""
    if len(tokens.p) < FEW:
        return None
    for side, p, q, lost in (
        ("b", tokens.p, tokens.q, tokens.only_a),
        ("a", tokens.q, tokens.p, tokens.only_b),
    ):
        gain = q - p
        doubt = np.maximum(-np.expm1(p), 1e-9)
        room = np.maximum(_spread(gain), 1e-12)  # what rounding makes, read from the tokens that lose
        loses, gains = gain < -tokens.noise * doubt, gain > np.maximum(4 * room, 1e-6)
        far = gain < -FAR * tokens.noise * np.maximum(doubt, LEAST_DOUBT)
        if far.any() or loses.mean() > 0.01:
            continue
        if gains.sum() < FEW or gain.mean() < 4 * room / math.sqrt(len(p)):
            continue
        if _mean(gain[gains]) < 6 * room and not lost:
            continue
        shares = np.exp(-np.maximum(gain, 0.0))
        mass = float(np.exp(-gain).mean())
        top_p = _fitting_top_p(shares, np.exp(p), max(room, tokens.noise / 6))
        run, share = side.upper(), f"{100 * mass:.3g}"
        shown = (
            f"{int(gains.sum())} of {len(p)} tokens gain, {int((gain < -4 * room).sum())} lose beyond {4 * room:.2g} nats",
            "one p fits the kept shares of all tokens" if top_p is not None else "no top-p fits the kept shares of all tokens",
        )  # fmt: skip
        if top_p is not None:
            text = f"the probabilities of {run} lie as if spread over a top-p of {top_p:.3g}: {share} % are kept in the mean"
        else:
            text = (
                f"the probabilities of {run} lie as if spread over a part of the vocabulary, by top-k or another cut that is no top-p: "
                f"{share} % are kept in the mean"
            )
        return replace(
            plain, cause="top_k" if top_p is None else "top_p", summary=text, side=side, top_p=top_p, kept_mass=mass,
            evidence=shown,
        )  # fmt: skip
    tried.append("no side spreads its probabilities over a part of the vocabulary")
    return None


def _spread(gain: Floats) -> float:
    """The size of rounding, from the tokens that lose: those that gain are as large by chance, or gain for a reason."""
    losing = gain[gain < 0]
    return float(np.sqrt((losing**2).mean())) if len(losing) >= 3 else 0.0


def _fitting_top_p(shares: Floats, p: Floats, room: float) -> float | None:
    """The p_top for which m - p < p_top <= m holds for all tokens, but for one in a hundred; None if there is none."""
    slack = 4 * room + 1e-6
    least = float(np.quantile(shares - p, 0.99)) - slack
    most = float(np.quantile(shares, 0.01)) + slack
    if least > most or most > 1 - 1e-4:
        return None
    return float(np.clip(np.quantile(shares, 0.01), 0.0, 1.0))


def _temperature(plain: Screening, tokens: _Tokens, tried: list[str]) -> Screening | None:
    """Whether one s = 1/T other than 1 fits the odds of all tokens."""
    if tokens.only_a or tokens.only_b:
        return None
    fit = _power_of_all(tokens) or _power_by_trend(tokens)
    if fit is None:
        if len(tokens.p) >= ENOUGH:
            tried.append("no temperature fits the odds of all tokens")
        return None
    power, shown = fit
    text = (
        f"B's log-probabilities lie as those of A do at a temperature of about {1 / power:.2g} in place of 1 (or A's those of B at "
        f"{power:.2g})"
    )
    return replace(plain, cause="temperature", summary=text, temperature=1 / power, evidence=(shown,))


def _power_of_all(tokens: _Tokens) -> tuple[float, str] | None:
    """The one power of the odds that all likely and all unlikely tokens fit, if it is not 1; and what shows it."""
    odds_p, odds_q = _logit(tokens.p), _logit(tokens.q)
    sizeable = (np.abs(odds_p) > 1.0) & np.isfinite(odds_p) & np.isfinite(odds_q) & (odds_p < 12)
    likely, unlikely = sizeable & (odds_p > 0), sizeable & (odds_p < 0)
    if likely.sum() < FEW or unlikely.sum() < FEW:
        return None
    of_likely, of_unlikely = odds_q[likely] / odds_p[likely], odds_q[unlikely] / odds_p[unlikely]
    slack = tokens.noise
    for sign, bound, other in (
        (1, np.quantile(of_unlikely, 0.99), np.quantile(of_likely, 0.01)),
        (-1, np.quantile(of_unlikely, 0.01), np.quantile(of_likely, 0.99)),
    ):
        fits = (other - bound) * sign >= -2 * slack
        if fits and (bound - 1) * sign > 2 * slack and (other - 1) * sign > slack:
            shown = f"the odds of {int(likely.sum())} likely and {int(unlikely.sum())} unlikely tokens fit one power, {bound:.3g}"
            return float(bound), shown
    return None


TREND = 0.7
"""Correlation of gap and log-probability from which on a temperature is said to be behind it. A temperature makes the gap
(s - 1) (log p + H), where H is the entropy; other weights move each token by something of its own."""
ENOUGH = 40


def _power_by_trend(tokens: _Tokens) -> tuple[float, str] | None:
    """The same where hardly a token is likely: the gap grows with the log-probability."""
    p, gap = tokens.p, tokens.gap
    if len(p) < ENOUGH or (plain := _logit_noise(tokens)) is None or plain <= tokens.noise / 2:
        return None
    trend = float(np.corrcoef(p, gap)[0, 1])
    unlikely = p < -1
    if abs(trend) < TREND or unlikely.sum() < FEW:
        return None
    ratio = tokens.q[unlikely] / p[unlikely]
    power = float(np.quantile(ratio, 0.99 if trend > 0 else 0.01))
    if (power - 1) * trend <= 0:
        return None
    return (
        power,
        f"the gap grows with the log-probability (correlation {trend:.2f}), as a temperature makes it",
    )


def _logit(logp: Floats) -> Floats:
    """log(p / (1 - p))."""
    with np.errstate(divide="ignore"):
        return logp - np.log(-np.expm1(np.minimum(logp, 0.0)))


def _rest(
    plain: Screening,
    tokens: _Tokens,
    pairs: list[tuple[Sequence_, Sequence_]],
    dtype: str,
    tried: tuple[str, ...],
) -> Screening:
    """Rounding, if the gap is of its size at every token; else something that changes the function.

    Args:
        tried: what was tried in vain.
    """
    noise = plain.logit_noise
    if tokens.only_a or tokens.only_b:
        text = f"{tokens.only_a + tokens.only_b} tokens are ruled out on one side, and no known cut explains the others"
        return replace(plain, cause="unknown", summary=text, evidence=tried)
    size = noise if noise is not None else plain.mean_abs
    if size <= tokens.noise:
        far = _far(pairs, FAR * tokens.noise)
        if far:
            text = (
                f"the gap is of the size that rounding in {dtype} makes in the median, and {len(far)} of {plain.tokens} tokens are "
                f"more than {FAR} times as far apart, first token {far[0][1]} of sequence {far[0][0]}"
            )
            return replace(plain, cause="unknown", summary=text, first=far[0], evidence=tried)
        text = (
            f"the gap is of the size that rounding in {dtype} makes: {size:.3g} of a logit; weights that differ by as little "
            "can't be told from that"
        )
        return replace(plain, cause="rounding", summary=text, evidence=tried)
    if plain.tokens < FEW:
        text = f"{plain.tokens} tokens are too few to tell the cause of a gap of {size:.3g} of a logit"
        return replace(plain, cause="unknown", summary=text, evidence=tried)
    text = (
        f"the gap is {size:.3g} of a logit, {size / tokens.noise * NOISE:.0f} times the epsilon of {dtype}: the engines compute "
        "something else, as with stale weights"
    )
    return replace(plain, cause="other_weights", summary=text, evidence=tried)
