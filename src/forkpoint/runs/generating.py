"""Calls that generate: `call=` asks `generate` of a model, which calls it once for each step, with tokens of its own.

The layout of such a run knows the prompt alone. So what goes into each of these forward calls is noted while the run is
made the first time, and they are made again as the calls of another run, each token at its own position. Two runs that
both generate are compared up to the first token that differs: what comes after it goes on from something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.errors import InputError
from forkpoint.runs.layout import MAIN, PADDING, Coordinates, Layout
from forkpoint.runs.listening import HINT, GenerationStep, Listening, encoder_of, stream_of_tokens
from forkpoint.runs.randomness import RandomState
from forkpoint.runs.returned import CACHES, cached_tokens, caches_in, fields_of
from forkpoint.runs.run import Run, token_ids
from forkpoint.runs.texts import Text, text_of

CHOSEN = "chosen_token"
"""What the result is called that has the tokens which `generate` chose by a call."""
_STEP, _READ = "step", "read_by_encoder"
"""What a call holds besides the model's arguments: which it is, and what the encoder takes."""
Choosing = tuple[int, int, "Tensor | None"]
"""Which columns choose tokens, counted from the last, first and behind the last; and the tokens, where they are noted."""


def unrolled(runs: tuple[Run, Run], heard: tuple[Listening, Listening]) -> tuple[Run, Run, tuple[str, ...]]:
    """Runs whose calls generate, as runs of the forward calls that they made.

    Args:
        runs: the two, of which one at least generates.
        heard: what was generated as they were made. Where random numbers were drawn, the run is made once more: if it
            gives other tokens then, both are left as they are.

    Returns:
        The runs, and what a report should say of them.

    Raises:
        InputError: a call that generates more than once, besides something else, or with beams.
    """
    if any(one.drew and not _repeats_itself(run, one) for run, one in zip(runs, heard, strict=True)):
        return (*runs, ())
    texts: list[Text | None] = []
    for run, listening in zip(runs, heard, strict=True):
        generations = listening.outermost
        if not generations:
            texts.append(None)
            continue
        if len(generations) > 1 or len(run.calls) > 1 or listening.others:
            raise InputError(
                f"a run that generates {len(generations)} times in {len(run.calls)} calls, with {listening.others} forward calls besides",
                "a call that generates once, and does nothing else",
                HINT,
            )
        texts.append(text_of(generations[0]))
    mine, theirs = (_rows(run, text) for run, text in zip(runs, texts, strict=True))
    pairs = _paired(mine, theirs)
    limits, notes, apart = _limits(mine, theirs, pairs)
    both = all(text is not None for text in texts)
    greedy = both and all(text is None or text.greedy for text in texts)
    fixed = both and not greedy and _chosen_apart(texts[0], texts[1], apart)
    if fixed:
        notes.append(
            "From the same logits they choose other tokens: another seed, or other settings of generate."
        )
    elif apart and not greedy:
        notes.append(
            "How tokens are chosen from their logits, by sampling or after changing them, is not compared."
        )
    how = "made" if greedy else "noted" if fixed else ""
    made_again = [
        run if text is None else _again(run, text, limits[side], how)
        for side, (run, text) in enumerate(zip(runs, texts, strict=True))
    ]
    return made_again[0], made_again[1], tuple(notes)


def _repeats_itself(run: Run, heard: Listening) -> bool:
    """Whether a run that generates gives the same tokens once again; the random state is left as it is found."""
    before = RandomState.take()
    again = Listening()
    try:
        run.execute(around=partial(again.to, run))
    finally:
        before.restore()
    mine, others = ([one.whole for one in listening.outermost] for listening in (heard, again))
    return len(mine) == len(others) and all(
        x is not None and y is not None and torch.equal(x, y) for x, y in zip(mine, others, strict=True)
    )


@dataclass(frozen=True)
class Row:
    """One row of a run.

    Attributes:
        read: what went into the encoder, if there is one.
        prompt, new: token ids that were given, and that were generated; of a run that does not generate all are given.
        fed: how many of them the model was given.
    """

    read: Hashable
    prompt: list[int]
    new: list[int]
    fed: int

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.new


def _rows(run: Run, text: Text | None) -> list[Row]:
    if text is not None:
        fed = (text.position[:, : text.stops[-1]] >= 0).sum(1).tolist()
        return [Row(_read(text, row), *text.tokens(row), fed[row]) for row in range(len(text.ids))]
    ids: dict[int, list[int]] = {}
    for (sample, _), token in sorted(token_ids(run).items()):
        ids.setdefault(sample, []).append(token)
    return [Row((), tokens, [], len(tokens)) for _, tokens in sorted(ids.items())]


def _paired(a: list[Row], b: list[Row]) -> list[tuple[int, int]]:
    """Rows of both runs that begin alike, equal ones in order; all in order where none do."""
    free = list(range(len(b)))
    pairs: list[tuple[int, int]] = []
    for row, one in enumerate(a):
        partner = next((other for other in free if _begin_alike(one, b[other])), None)
        if partner is not None:
            free.remove(partner)
            pairs.append((row, partner))
    return pairs if pairs or len(a) != len(b) else [(row, row) for row in range(len(a))]


def _begin_alike(one: Row, other: Row) -> bool:
    if one.new and other.new:
        return (one.read, one.prompt) == (other.read, other.prompt)
    least = min(len(one.prompt), len(other.prompt))  # one of them does not generate
    return one.read == other.read and one.prompt[:least] == other.prompt[:least]


def _read(text: Text, row: int) -> Hashable:
    """What the encoder was given of a row, but for padding."""
    encoder = text.call.encoder or {}
    mask = encoder.get("attention_mask")
    contents: list[Hashable] = []
    for name, value in encoder.items():
        if value.dim() and name != "attention_mask":
            at = row * len(value) // len(text.ids)
            one = value[at]
            if mask is not None and mask.shape == value.shape:
                one = one[mask[at].bool()]
            contents.append((name, tuple(one.flatten().tolist())))
    return tuple(contents)


Limits = tuple[dict[int, int], dict[int, int]]
"""For each run, up to which position the rows are compared that both have."""


def _limits(
    a: list[Row], b: list[Row], pairs: Sequence[tuple[int, int]]
) -> tuple[Limits, list[str], list[tuple[int, int, int]]]:
    """How far rows are compared, what to say of it, and (row of A, row of B, position) of each first token that differs."""
    limits: Limits = ({}, {})
    notes: list[str] = []
    apart: list[tuple[int, int, int]] = []
    for row, other in pairs:
        mine, theirs = a[row].tokens, b[other].tokens
        first = next((i for i, (x, y) in enumerate(zip(mine, theirs, strict=False)) if x != y), None)
        ends = [a[row].fed, b[other].fed] + ([] if first is None else [first])
        limits[0][row] = limits[1][other] = max(min(ends), 1)
        if first is not None:
            apart.append((row, other, first))
    for row, other, first in apart[:4]:
        notes.append(
            f"Of the tokens generated for row {row}, number {first - len(a[row].prompt)} is the first that differs: "
            f"{a[row].tokens[first]} in run A, {b[other].tokens[first]} in run B; what comes after it is not compared."
        )
    if pairs and not apart:
        notes.append("Both runs generate the same tokens, as far as both go.")
    return limits, notes, apart


def _chosen_apart(a: Text | None, b: Text | None, apart: Sequence[tuple[int, int, int]]) -> bool:
    """Whether other tokens were chosen from the same logits."""
    if a is None or b is None:
        return False
    for row, other, first in apart:
        mine, theirs = (
            text.chosen_by(at, int((text.position[at] == first).nonzero()[0]))
            for text, at in ((a, row), (b, other))
        )
        if mine is None or theirs is None or torch.equal(mine, theirs):
            return True
    return False


# --- the forward calls again ---------------------------------------------------------------------------------


def _again(run: Run, text: Text, limits: Mapping[int, int], chosen: str) -> Run:
    """A run of the forward calls up to the last that chooses a token which is compared."""
    rows = range(len(text.ids))
    compared = text.position >= 0
    for row in rows:
        compared[row] &= text.position[row] < limits.get(row, text.ids.shape[1])
    counted = [row for row in rows if row in limits] or list(rows)
    last = int(compared[counted].any(0).nonzero().max())  # the column of the last token that is compared
    used = [
        (step, stop)
        for index, (step, stop) in enumerate(zip(text.call.steps, text.stops, strict=True))
        if not index or (step.cached <= last and (text.cached or stop <= last + 1))
    ]
    used = used if text.cached else used[-1:]  # without a cache each call has all tokens
    calls: list[dict[str, Any]] = []
    layout: list[dict[str, Coordinates]] = []
    plan: list[tuple[int, Choosing | None]] = []
    stream = stream_of_tokens(text.call.steps[0].inputs)
    for index, (step, stop) in enumerate(used):
        call = dict(step.inputs)
        entry = {stream: _coordinates(text, compared, step, stop)}
        read = text.call.encoder or {}
        if read:
            call.pop("encoder_outputs", None)
        if read and index == 0:
            call[_READ] = tuple(read)
            for name, value in read.items():
                call[name] = (
                    value.repeat_interleave(len(text.ids) // max(len(value), 1), 0) if value.dim() else value
                )
            entry = {**_of_encoder(call), **entry}
        if index == 0 and text.call.cache is not None:
            call[_cache_name(text.call.module)] = text.call.cache
        calls.append({**call, _STEP: index})
        plan.append((step.cached, _chosen(text, step, stop, chosen)))
        layout.append(entry)
    return Run(
        text.call.module,
        calls,
        layout=Layout(layout, _names(run, len(rows))),
        call=Again(plan),
        name=run.name,
    )


def _names(run: Run, rows: int) -> dict[int, Hashable]:
    """The names that the samples in the rows of a run were given by hand."""
    coordinates = None if run.layout_is_read else run.layout.calls[0].get(MAIN)
    if coordinates is None or coordinates.sample.dim() != 2 or len(coordinates.sample) != rows:
        return {}
    return {row: run.layout.name(int(sample)) for row, sample in enumerate(coordinates.sample.max(1).values)}


def _coordinates(text: Text, compared: Tensor, step: GenerationStep, stop: int) -> Coordinates:
    """Where the tokens of a step are; a candidate that was rejected is none."""
    columns = slice(step.cached, step.cached + step.columns)
    position = torch.full((len(text.ids), step.columns), PADDING)
    positions = text.position[:, columns].masked_fill(~compared[:, columns], PADDING)[
        :, : max(stop - step.cached, 0)
    ]
    position[:, : positions.shape[1]] = positions
    sample = torch.arange(len(text.ids))[:, None].expand_as(position)
    return Coordinates(torch.where(position >= 0, sample, PADDING), position)


def _of_encoder(call: Mapping[str, Any]) -> dict[str, Coordinates]:
    read = {name: value for name, value in call.items() if not name.startswith("decoder_")}
    return {name: coordinates for name, coordinates in Layout.read([read]).calls[0].items() if name == MAIN}


def _chosen(text: Text, step: GenerationStep, stop: int, how: str) -> Choosing | None:
    """Which of a step's columns choose tokens, counted from the last, and the tokens where these are to be noted."""
    first = max(text.prompt - 1, step.cached) if text.cached else stop - 1
    if not how or stop <= first:
        return None
    end = step.cached + step.columns
    noted = text.ids[:, first + 1 : stop + 1] if how == "noted" else None
    return first - end, stop - end, noted


def _cache_name(module: nn.Module) -> str:
    takes = inspect.signature(module.forward).parameters
    return next((name for name in CACHES if name in takes), CACHES[-2])


class Again:
    """Makes the forward calls that `generate` made: with the cache of those before, less the tokens that it took back."""

    def __init__(self, plan: Sequence[tuple[int, Choosing | None]]) -> None:
        self._plan = plan
        self._cache: Any = None
        self._encoded: Any = None

    def __call__(self, model: Any, inputs: dict[str, Any]) -> Any:
        inputs = dict(inputs)
        step = inputs.pop(_STEP)
        (cached, chosen), begins = self._plan[step], step == 0
        read = inputs.pop(_READ, ())
        name = next((name for name in CACHES if inputs.get(name) is not None), _cache_name(model))
        cache = inputs.get(name)
        if begins:
            self._encoded = _encoded(model, {name: inputs[name] for name in read}) if read else None
            inputs = {
                key: value for key, value in inputs.items() if key not in read or key == "attention_mask"
            }
        elif cache is None:
            cache = self._cache  # the model fills it, and does not return it
        if cache is not None:
            held = cached_tokens(cache)
            if held is not None and held > cached:
                cache.crop(cached - held)
            inputs[name] = cache
        if self._encoded is not None:
            inputs["encoder_outputs"] = self._encoded
        output = model(**inputs)
        self._cache = next(iter(caches_in(output, model).values()), cache)
        keep = getattr(self._cache, "activate_past_recording", None) if begins else None
        if keep is not None:  # so that what slid out of a window can be taken back
            keep()
        return output if chosen is None else {**(fields_of(output) or {}), CHOSEN: _choice(output, *chosen)}


def _encoded(model: Any, inputs: dict[str, Any]) -> Any:
    """What the encoder gives, as `generate` asks for it: some refuse to be asked together with a cache."""
    encoder = encoder_of(model)
    return encoder(**inputs, return_dict=True)


def _choice(output: Any, first: int, stop: int, noted: Tensor | None) -> Tensor:
    """The tokens of largest logit, [rows, columns]; or those noted, which belong where they were chosen."""
    logits = output["logits"]
    columns = logits.shape[1]
    tokens = logits[:, max(columns + first, 0) : columns + stop].argmax(-1)
    return tokens if noted is None else tokens * 0 + noted[:, -tokens.shape[1] :].to(tokens.device)
