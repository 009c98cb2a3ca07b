"""Damage to JSON and to bytes, drawn from a generator of random numbers."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator, MutableMapping, MutableSequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

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
        holder[key] = copy.deepcopy(rng.choice(words))
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


CELLS = [0, -1, -2, -3, 1, 2, 3, 7, 10**6, 2**31 - 1, -(2**31), 2**62]
"""What a damaged cell of a table may hold."""


def damaged_table(data: bytes, rng: random.Random) -> bytes:
    """A stream of Arrow with one to three cells changed, or a row left out or repeated, all of the right types."""
    try:
        batches = list(pa.ipc.open_stream(data))
    except pa.ArrowException:
        return data
    schema = pa.ipc.open_stream(data).schema
    rows = [row for batch in batches for row in batch.to_pylist()]
    if not rows:
        return data[: len(data) // 2]
    for _ in range(rng.randint(1, 3)):
        number = rng.randrange(len(rows))
        if rng.random() < 0.2:
            rows[number : number + 1] = rng.choice(([], [rows[number]] * 2))
            if not rows:
                break
            continue
        rows[number] = dict(rows[number])
        name = rng.choice(list(rows[number]))
        rows[number][name] = _other(rows[number][name], rng)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        for row in rows:  # a cell that its column can't hold leaves the row out
            with suppress(pa.ArrowException, OverflowError, TypeError):
                stream.write_batch(pa.RecordBatch.from_pylist([row], schema))
    return sink.getvalue().to_pybytes()


def _other(cell: Any, rng: random.Random) -> Any:
    """Another cell of a table."""
    if rng.random() < 0.1:
        return None
    if isinstance(cell, list):
        cells: list[Any] = list(cell)
        if cells and rng.random() < 0.6:
            cells[rng.randrange(len(cells))] = rng.choice(CELLS)
            return cells
        return rng.choice(([], cells * 2, cells[1:], [*cells, 0]))
    if isinstance(cell, str):
        return rng.choice(
            ("", cell * 2, "digest", "alias", "open", "pair", "rows", "float32", "bool", "no\x1bne")
        )
    if isinstance(cell, bool):
        return not cell
    return rng.choice(CELLS)


def damaged_tensors(data: bytes, rng: random.Random) -> bytes:
    """A file of tensors with one of another shape or dtype, left out or under another name, or with other metadata."""
    try:
        tensors: dict[str, Any] = load(data)
    except SafetensorError:
        return data
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if not tensors or (about and rng.random() < 0.4):
        key = rng.choice([*about, "about"])
        try:
            tree = json.loads(about.get(key, "{}"))
            about[key] = damaged_json(json.dumps(tree), places(tree), ["result", "logits"], rng).decode()
        except (ValueError, IndexError):
            about[key] = "{"
    else:
        name = rng.choice(list(tensors))
        value = tensors.pop(name)
        kind = rng.randrange(5)
        if kind == 0:
            tensors[name] = value.reshape(-1)[: max(value.numel() - 1, 0)].clone()
        elif kind == 1:
            tensors[name] = value.to(rng.choice((torch.float16, torch.int32, torch.int64, torch.bool)))
        elif kind == 2:
            tensors[name] = value[None].repeat(2, *[1] * value.dim())
        elif kind == 3:
            tensors[rng.choice(("layout.x", "input.input_ids", "label.logits.k", "q", name + ".q"))] = value
    return save(tensors, about)
