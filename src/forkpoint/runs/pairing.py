"""Pairing samples: which row of run B is which row of run A, by what they hold."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import LayoutError
from forkpoint.runs.layout import Coordinates, Layout, token_tensor
from forkpoint.runs.masks import real_pixels
from forkpoint.support.readable import bare, why_unreadable


@dataclass(frozen=True)
class Pairing:
    """Which sample of run B is which sample of run A.

    Attributes:
        pairs: (sample of A, sample of B).
        only_a, only_b: samples that one run alone has: batch mates.
        by_order: the pairs that were made by order, not by content.
    """

    pairs: tuple[tuple[int, int], ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    by_order: tuple[tuple[int, int], ...] = ()


Held = tuple[tuple[Hashable, tuple[Hashable, ...]], ...]
"""What a sample holds: for each (stream, position), the token ids or hashes of float columns that go in there. A token that
goes in again, as an encoder's do with every step of its decoder, is held once."""
Content = dict[int, Held]
"""What each sample holds."""


def read_content(layout: Layout, calls: Sequence[Mapping[str, Any]]) -> Content:
    """What each sample holds, over all calls and streams."""
    content: dict[int, dict[Hashable, dict[Hashable, None]]] = {sample: {} for sample in layout.samples}
    for entry, inputs in zip(layout.calls, calls, strict=False):
        for stream, coordinates in entry.items():
            carrier = token_tensor(inputs, stream)
            if carrier is None:
                continue
            name, tokens = carrier
            images = real_pixels(name, tokens, inputs)
            if images is not None and coordinates.shape == tokens.shape[:1]:
                values = [
                    (s, 0, _hash(image.cpu()))
                    for s, image in zip(coordinates.sample.tolist(), images, strict=True)
                ]
            else:
                values = _values(tokens, coordinates)
            for sample, position, value in values:
                content[sample].setdefault((stream, position), {})[value] = None
    return {
        sample: tuple((place, tuple(values)) for place, values in sorted(held.items()))
        for sample, held in content.items()
    }


def agree(one: Held, other: Held) -> bool:
    """Whether two samples hold the same wherever both hold something, and they do somewhere.

    So does one that begins as another goes on (fewer decoding steps, more columns), or goes on where it begins (a cache).
    """
    if not one or not other or (one[0][0] == other[0][0] and one[0][1] != other[0][1]):
        return False
    places = dict(other)
    same = [places[place] == values for place, values in one if place in places]
    return bool(same) and all(same)


def _values(tokens: Tensor, coordinates: Coordinates) -> list[tuple[int, int, Hashable]]:
    if tokens.is_nested or tokens.layout is not torch.strided or why_unreadable(tokens):
        return []
    tokens = bare(tokens).cpu()
    shape = coordinates.shape
    if tuple(tokens.shape[: len(shape)]) != shape:
        if tokens.dim() == 3 and len(shape) == 2 and tokens.shape[0] == shape[0]:
            tokens = tokens.transpose(1, 2)[:, : shape[1]]  # columns last
        else:
            return []
    if tuple(tokens.shape[: len(shape)]) != shape:  # features of another length than what becomes of them
        return []
    valid = coordinates.valid.nonzero()
    samples = coordinates.sample[coordinates.valid].tolist()
    positions = coordinates.position[coordinates.valid].tolist()
    if tokens.dim() == len(shape) and not tokens.is_floating_point():
        return list(zip(samples, positions, tokens[coordinates.valid].tolist(), strict=True))
    columns = (_hash(tokens[tuple(index)]) for index in valid.tolist())
    return list(zip(samples, positions, columns, strict=True))


def _hash(values: Tensor) -> str:
    raw = values.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def pair_samples(a: Layout, b: Layout, content_a: Content, content_b: Content) -> Pairing:
    """Pair the samples of two runs: by the names given to them, by what they hold, then by order.

    Equal rows are paired in order. Rows that agree where both hold something (fewer decoding steps,
    more columns) come next. If both runs have as many rows, what is left is paired in order.

    Raises:
        LayoutError: nothing pairs.
    """
    free_a, free_b = a.samples, b.samples
    as_many = len(free_a) == len(free_b)
    pairs: list[tuple[int, int]] = []

    def take(same: Any) -> list[tuple[int, int]]:
        matches: list[tuple[int, int]] = []
        for sample_a in list(free_a):
            for sample_b in list(free_b):
                if same(sample_a, sample_b):
                    matches.append((sample_a, sample_b))
                    free_a.remove(sample_a)
                    free_b.remove(sample_b)
                    break
        return matches

    def named(x: int, y: int) -> bool:
        return x in a.names and y in b.names and a.names[x] == b.names[y]

    def take_equal() -> list[tuple[int, int]]:
        by_content: dict[Any, deque[int]] = {}
        for sample_b in free_b:
            by_content.setdefault(content_b[sample_b], deque()).append(sample_b)
        matches: list[tuple[int, int]] = []
        for sample_a in free_a:
            same = by_content.get(content_a[sample_a]) if content_a[sample_a] else None
            if same:
                matches.append((sample_a, same.popleft()))
        for sample_a, sample_b in matches:
            free_a.remove(sample_a)
            free_b.remove(sample_b)
        return matches

    if a.names and b.names:
        pairs += take(named)
    else:
        pairs += take_equal()
        pairs += take(lambda x, y: agree(content_a[x], content_b[y]))
    by_order: list[tuple[int, int]] = []
    if as_many and not (a.names and b.names):
        by_order = list(zip(free_a, free_b, strict=True))
        free_a, free_b = [], []
    pairs += by_order
    if not pairs and (a.samples or b.samples):
        raise LayoutError(
            f"no row of the first run ({len(a.samples)}) is a row of the second ({len(b.samples)})",
            "runs that share at least one sample",
            "name the samples by hand: fp.Layout.from_mask(mask, samples=[...])",
        )
    return Pairing(tuple(sorted(pairs)), tuple(free_a), tuple(free_b), tuple(by_order))
