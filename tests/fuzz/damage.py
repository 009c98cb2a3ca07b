"""Damage to JSON and to bytes, drawn from a generator of random numbers."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any

HOSTILE = [
    "\x1b[31mred", "\x1b]8;;http://example.org\x07link\x1b]8;;\x07", "\u202eright to left", "\x9b2J", "\x00",
    "\ud800", "a\nb", '"""', "'''", "\\", "{}", "%s", "[link=x]y[/link]", "[/]", "__import__('os')", "../../etc/passwd",
    "/etc/passwd", "lambda", "class", "__class__", "é" * 10, "x" * 10_000, "",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 7, 255, 4096, 2**31, 2**32, 2**53 + 1, 2**60, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63), 10**400, 0.5,
    -0.0, 1e308, 1e-320,
]  # fmt: skip
RAW = [
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "9" * 5000,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 900 + "1" + "}" * 900,
    "",
]
"""Text that takes the place of a value, JSON or not."""
VALUES: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"": None}, [0, 0], [1, 2, 3], {"tensor": 0}, {"tensor": 1}, {"tensor": -1},
    {"tensor": 10**6}, {"tensor": True}, {"dtype": "float64"}, {"dtype": "int8"}, {"dtype": "float4_e2m1fn_x2"},
    {"float": "nan"}, {"float": "inf"}, {"complex": ["nan", "1"]}, {"complex": ["1", "x"]}, {"size": [2, 3]},
    {"size": [2**47] * 3}, {"slice": [0, None, 2]}, {"slice": [{"tensor": 0}, None, None]}, {"ellipsis": True},
    {"tuple": [{"tensor": 0}, 1]}, {"dict": [["a", 1]]}, {"dict": [["a"]]}, {"device": "cuda"}, {"device": ["cpu"]},
    {"float": []}, {"memory_format": {}}, {"layout": "strided"}, {"tuple": {"tuple": [1]}}, *HOSTILE, *NUMBERS,
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, ...]]:
    """The path to every value in a tree of JSON but the whole."""
    items: Iterator[tuple[Any, Any]]
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    else:
        return []
    return [path for key, item in items for path in ((key,), *((key, *rest) for rest in places(item)))]


def damaged_json(text: str, paths: list[tuple[Any, ...]], words: list[Any], rng: random.Random) -> bytes:
    """A document with one to three values changed.

    Args:
        text: the sound one.
        paths: its `places`.
        words: values that mean something to the reader, besides `VALUES`.
        rng: what to change, and into what.
    """
    tree = json.loads(text)
    raw: str | None = None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *above, key = rng.choice(paths)
        try:
            holder = tree
            for step in above:
                holder = holder[step]
            raw = _change(holder, key, tree, paths, words, rng) or raw
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    found = json.dumps(tree).encode()
    return found if raw is None else found.replace(b'"RAW"', raw.encode(), 1)


def _change(
    holder: Any, key: Any, tree: Any, paths: list[tuple[Any, ...]], words: list[Any], rng: random.Random
) -> str | None:
    """Change one value of a list or an object; returns the text that is to stand for `"RAW"`."""
    way = rng.randrange(8)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder[key], (int, float)):
        holder[key] += rng.choice((-1, 1, 8, 1 << 20))
    elif way == 2 and isinstance(holder, MutableMapping):
        holder[rng.choice(HOSTILE)] = holder.pop(key)
    elif way == 2 and isinstance(holder, MutableSequence):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way == 3:
        other = tree
        for step in rng.choice(paths):
            other = other[step]
        holder[key] = copy.deepcopy(other)
    elif way == 4 and words:
        holder[key] = rng.choice(words)
    elif way == 5:
        holder[key] = "RAW"
        return rng.choice(RAW)
    elif way == 6 and isinstance(holder[key], str):
        at = rng.randrange(len(holder[key]) + 1)
        holder[key] = holder[key][:at] + rng.choice(HOSTILE) + holder[key][at:]
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return None


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut out, repeated, put in, or all from some place on lost."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 8, 100))
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + length] = rng.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                changed[at:at] = rng.choice(
                    (b"\x00", b"\xff", b'"', b"{", b"\x1b", b"\xed\xa0\x80", b"9" * 30)
                )
            case _:
                if rng.random() < 0.2:
                    del changed[at:]
    return bytes(changed)


def damaged_number(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a little-endian number of 4 or 8 bytes replaced, as counts and lengths are written."""
    size = rng.choice((4, 8))
    at = rng.randrange(max(len(data) - size, 1))
    number = rng.choice((0, 1, 2, 12, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)))
    return data[:at] + (number & ((1 << 8 * size) - 1)).to_bytes(size, "little") + data[at + size :]


def is_one_line(message: str) -> bool:
    """Whether a message is one line of a length that can be read."""
    return len(message) < 2000 and not re.search(r"[\r\n]", message)
