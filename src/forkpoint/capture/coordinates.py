"""The coordinate table of one run: an integer id for every token, padding column and set of tokens.

Values that mix several tokens (a pooled vector, a loss) belong to the *set* of tokens they were
made from. Two runs may compare such a value only if the sets are the same, so a set is a
coordinate like any other; a set of one token is that token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.runs.layout import IMAGE, Layout

Ids = NDArray[np.int32]

NONE = -1
"""Id of a value that no token has a part in."""

_TOKEN, _PADDING, _SET = 3, 2, 1


def is_time_major(sample: NDArray[np.int64]) -> bool:
    """Whether coordinates have one sample a column, not one a row: [columns, rows], as recurrent modules take them.

    >>> is_time_major(np.array([[0, 1], [0, 1], [-1, 1]])), is_time_major(np.array([[0, 0], [1, 1]]))
    (True, False)
    """
    if sample.ndim != 2 or len(sample) == 1:
        return False
    # Padding is no sample: -1 in between hides no change from one sample to another.
    return _one_along(sample, 0) and not _one_along(sample, 1)


def are_samples(sample: NDArray[np.int64]) -> bool:
    """Whether coordinates, [rows], have a sample in each row, which is all that there is of it; else they are one row's columns.

    >>> are_samples(np.array([0, 1, 2])), are_samples(np.array([0, 0, -1]))
    (True, False)
    """
    return sample.ndim == 1 and len(np.unique(sample)) == len(sample) and bool((sample >= 0).all())


def _one_along(sample: NDArray[np.int64], axis: int) -> bool:
    """Whether all tokens along a dimension are of one sample."""
    highest = sample.max(axis=axis, keepdims=True)
    return bool(((sample == highest) | (sample < 0)).all())


class CoordinateTable:
    """Ids of a run's coordinates, and what each of them stands for."""

    def __init__(self, layout: Layout) -> None:
        self.time_major = False
        """Whether the first call's columns are the samples. Looked up here, as a mode of the model's own sees tensors."""
        self._ids: dict[Hashable, int] = {}
        self.kinds: list[int] = []
        """How specific each id is: token, set of tokens, padding."""
        self.tokens: list[tuple[str, int, int] | None] = []
        """(stream, sample, position) of a token; None for padding and sets."""
        self.members: list[frozenset[int]] = []
        """Ids of the tokens of a set."""
        self.places: list[tuple[int, int, int]] = []
        """For each column of the input its row, its place in the row over all calls, and how many columns its call has.

        -1 for sets.
        """
        self._arrays: dict[str, np.ndarray] = {}
        self._mixed = self._add(("padding", "mixed"), _PADDING, None, frozenset())
        self._slots: list[dict[str, Ids]] = []
        self._most_rows = 0
        self.grow(layout)

    @classmethod
    def of(
        cls, layout: Layout, kinds: list[int], tokens: list[tuple[str, int, int] | None],
        members: list[frozenset[int]], places: list[tuple[int, int, int]], slots: list[dict[str, Ids]],
    ) -> CoordinateTable:  # fmt: skip
        """A table from what another one holds, with the same ids.

        Args:
            kinds, tokens, members, places: an entry for each id, as the attributes of these names.
            slots: for each call the ids of its columns, by stream.
        """
        table = cls(Layout([]))
        table.kinds, table.tokens, table.members, table.places = kinds, tokens, members, places
        table._slots, table.layout = slots, layout
        for item, (kind, token) in enumerate(zip(kinds, tokens, strict=True)):
            if kind == _PADDING and places[item] == (-1, -1, -1):
                table._mixed = item
            if token is not None:
                table._ids[token] = item
            elif kind == _SET:
                table._ids["set", members[item]] = item
        first = next((c for entry in layout.calls for c in entry.values()), None)
        table.time_major = first is not None and is_time_major(first.sample.numpy())
        sizes = (grid[..., 0].size for entry in slots for grid in entry.values())
        table._most_rows = max(sizes, default=0)
        return table

    def grow(self, layout: Layout) -> None:
        """Add the calls that a layout has beyond those that there are.

        Args:
            layout: begins with the layout of these.
        """
        if not self._slots:
            first = next((c for entry in layout.calls for c in entry.values()), None)
            self.time_major = first is not None and is_time_major(first.sample.numpy())
        self.layout = layout
        for call in range(len(self._slots), len(layout.calls)):
            entry = layout.calls[call]
            grids = {s: self._grid(call, s, c.sample.numpy(), c.position.numpy()) for s, c in entry.items()}
            self._slots.append(grids)
            self._most_rows = max([self._most_rows, *(grid[..., 0].size for grid in grids.values())])

    def _add(
        self, key: Hashable, kind: int, token: tuple[str, int, int] | None, members: frozenset[int],
        place: tuple[int, int, int] = (-1, -1, -1),
    ) -> int:  # fmt: skip
        item = self._ids.get(key)
        if item is None:
            item = self._ids[key] = len(self.kinds)
            self.kinds.append(kind)
            self.tokens.append(token)
            self.members.append(members)
            self.places.append(place)
        return item

    def _grid(self, call: int, stream: str, sample: NDArray[np.int64], position: NDArray[np.int64]) -> Ids:
        columns, nothing = 1 if are_samples(sample) else sample.shape[-1], frozenset[int]()
        across = is_time_major(sample)
        pairs = list(zip(sample.reshape(-1).tolist(), position.reshape(-1).tolist(), strict=True))
        ids: list[int] = []
        for index, (s, p) in enumerate(pairs):
            row, column = divmod(index, columns)[:: -1 if across else 1]
            place = (row, (call << 32) + column, len(pairs) // columns if across else columns)
            if s >= 0 and p >= 0:
                token = (stream, s, p)
                ids.append(self._add(token, _TOKEN, token, nothing, place))
            else:
                ids.append(self._add(("padding", stream, call, index), _PADDING, None, nothing, place))
        return np.array(ids, dtype=np.int32).reshape(sample.shape)

    def _array(self, name: str) -> np.ndarray:
        """A column of the table as an array, with an entry for `NONE` at its end."""
        column = self._arrays.get(name)
        if column is None or len(column) != len(self.kinds) + 1:
            values: list[Any] = [*self.places, (-1, -1, -1)] if name == "places" else [*self.kinds, 0]
            column = self._arrays[name] = np.asarray(values, dtype=np.int64)
        return column

    @property
    def columns(self) -> Ids:
        """Ids of all columns of all calls' inputs."""
        grids = [grid.reshape(-1) for slots in self._slots for grid in slots.values()]
        return np.concatenate(grids) if grids else np.zeros(0, dtype=np.int32)

    def slots(self, call: int, stream: str) -> Ids | None:
        """Ids of a call's columns, in the shape of the layout's coordinates."""
        return self._slots[call].get(stream) if call < len(self._slots) else None

    def slots_so_far(self, call: int, stream: str) -> Ids | None:
        """Ids of all columns up to and including a call, side by side: what a cache holds."""
        grids = [g for g in (self.slots(index, stream) for index in range(call + 1)) if g is not None]
        if not grids or any(g.ndim != grids[0].ndim or g.shape[:-1] != grids[0].shape[:-1] for g in grids):
            return None
        return np.concatenate(grids, axis=-1)

    def kind_of(self, ids: Ids) -> NDArray[np.int8]:
        """How specific each id is: 2 a column of the input (token or padding), 1 a set, 0 none."""
        return np.minimum(self._array("kinds"), _PADDING).astype(np.int8)[ids]

    def is_slot(self, ids: Ids) -> NDArray[np.bool_]:
        """True where an id is one column of the input: a token or padding."""
        return self.kind_of(ids) == _PADDING

    def later(self, x: Ids, y: Ids) -> Ids:
        """Elementwise the later of two columns of one row; otherwise the first operand.

        What a causal layer makes of two tokens belongs to the later one; if that is padding, to the padding.
        """
        places = self._array("places")
        take_y = (places[x, 0] == places[y, 0]) & (places[y, 1] > places[x, 1])
        return np.where(take_y, y, x).astype(np.int32)

    def are_images(self, ids: Ids) -> bool:
        """Whether all ids are of images that go in beside a text."""
        named = [self.tokens[item] for item in np.unique(ids).tolist() if item >= 0]
        return bool(named) and all(token is not None and token[0] == IMAGE for token in named)

    def are_rows(self, ids: Ids) -> bool:
        """Whether each id is all there is of its row, as an image is: rows without columns."""
        whole = [
            grid
            for slots, entry in zip(self._slots, self.layout.calls, strict=False)
            for stream, grid in slots.items()
            if are_samples(entry[stream].sample.numpy())
        ]
        return bool(whole) and bool(np.isin(ids, np.concatenate(whole)).all())

    def one_of_many(self, ids: Ids) -> bool:
        """Whether ids are one column of each of some rows, in a call that has more columns."""
        if ids.size > self._most_rows:
            return False
        items = ids.reshape(-1).tolist()
        rows = {self.places[item][0] for item in items if item >= 0 and self.places[item][2] > 1}
        return len(rows) == len(items)

    def kept_of_earlier(self, ids: Ids) -> NDArray[np.bool_]:
        """True where an id is a column of an earlier call than the latest among them."""
        calls = np.where(ids >= 0, self._array("places")[ids, 1] >> 32, -1)
        return (calls >= 0) & (calls < calls.max(initial=-1))

    def in_place(self, ids: Ids) -> bool:
        """Whether ids are those of a call's columns, each in its place."""
        squeezed = ids.reshape([n for n in ids.shape if n > 1])
        if squeezed.ndim == 0:
            return False
        for slots in self._slots:
            for grid in slots.values():
                if np.array_equal(squeezed, grid.reshape([n for n in grid.shape if n > 1])):
                    return True
        return False

    @property
    def rows(self) -> int:
        """Rows of the first call's input."""
        grid = next((g for slots in self._slots for g in slots.values()), None)
        if grid is None or (grid.ndim != 2 and not self.are_rows(grid)):
            return 1
        return int(grid.shape[1 if self.time_major else 0])

    @property
    def mixed(self) -> int:
        """The id of a value that padding has a part in, so that no other run has it."""
        return self._mixed

    def is_padding(self, item: int) -> bool:
        """Whether an id is a column without a token, or a value that such columns have a part in."""
        return item >= 0 and self.kinds[item] == _PADDING

    def are_padding(self, ids: Ids) -> NDArray[np.bool_]:
        """The same of many ids."""
        return self._array("kinds")[ids] == _PADDING

    def rows_of(self, ids: Ids) -> NDArray[np.int64]:
        """The row of the input that each id is a column of; -1 for others."""
        return self._array("places")[ids, 0]

    def has_padding(self, ids: Ids) -> bool:
        """Whether any of the ids is padding."""
        return any(map(self.is_padding, np.unique(ids).tolist()))

    def union(self, ids: Ids) -> int:
        """The id of a value made from all these ids together; padding has no part in it."""
        unique = np.unique(ids)
        tokens: set[int] = set()
        padded = False
        for item in unique.tolist():
            if item == NONE:
                continue
            kind = self.kinds[item]
            if kind == _TOKEN:
                tokens.add(item)
            elif kind == _SET:
                tokens |= self.members[item]
            else:
                padded = True
        if not tokens:
            return self._mixed if padded else NONE
        if len(tokens) == 1:
            return tokens.pop()
        members = frozenset(tokens)
        return self._add(("set", members), _SET, None, members)

    # ------------------------------------------------------------------ across runs

    def keys(self, samples: Mapping[int, int] | None = None) -> list[Hashable | None]:
        """What each id is called in both runs; None for what only this run can have.

        Args:
            samples: this run's samples to the names both runs share; None for the identity.
        """
        keys: list[Hashable | None] = []
        for kind, token, members in zip(self.kinds, self.tokens, self.members, strict=True):
            if kind == _TOKEN and token is not None:
                stream, sample, position = token
                name = sample if samples is None else samples.get(sample)
                keys.append(None if name is None else (stream, name, position))
            elif kind == _SET:
                keys.append(self._set_key(members, keys))
            else:
                keys.append(None)
        return keys

    def _set_key(self, members: frozenset[int], keys: list[Hashable | None]) -> Hashable | None:
        named = [keys[member] for member in members]
        if any(key is None for key in named):
            return None
        text = "\n".join(sorted(map(repr, named)))
        return ("set", hashlib.blake2b(text.encode(), digest_size=12).hexdigest())

    def sample_of(self, item: int) -> int | None:
        """The one sample that an id belongs to, or None."""
        token = self.tokens[item]
        if token is not None:
            return token[1]
        samples = {t[1] for member in self.members[item] if (t := self.tokens[member]) is not None}
        return samples.pop() if len(samples) == 1 else None
