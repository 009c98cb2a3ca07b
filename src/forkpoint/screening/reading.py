"""Reading recorded log-probabilities: one JSON object a line, with `token_ids` and `logprobs`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.errors import InputError
from forkpoint.support.files import reason

_EXPECTED = 'one object a line, {"token_ids": [...], "logprobs": [...]}'

Source = str | Path | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Sequence_:  # noqa: N801 - beside collections.abc's
    """One sequence: [tokens] each; a log-probability that was not recorded is NaN."""

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    key: Any = None


def read(source: Source, name: str) -> list[Sequence_]:
    """The sequences of a file or of a list of mappings.

    Raises:
        InputError: something that is no such object, with its line.
    """
    where = str(source) if isinstance(source, (str, Path)) else name
    rows: Iterable[Any] = _lines(Path(source), where) if isinstance(source, (str, Path)) else source
    sequences = [_sequence(row, f"{where}, sequence {index}") for index, row in enumerate(rows)]
    if not sequences:
        raise InputError(f"{where}, which holds no sequence", _EXPECTED)
    return sequences


def _lines(path: Path, where: str) -> Iterable[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}, which can't be read: {reason(error)}", _EXPECTED) from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}, line {number}: {error}", _EXPECTED) from error


def _sequence(row: Any, where: str) -> Sequence_:
    if not isinstance(row, Mapping) or "token_ids" not in row or "logprobs" not in row:
        raise InputError(f"{where}, which has no token_ids and logprobs", _EXPECTED)
    ids, logprobs = _list(row["token_ids"], where), _list(row["logprobs"], where)
    if len(ids) != len(logprobs):
        raise InputError(
            f"{where}: {len(ids)} token_ids and {len(logprobs)} logprobs", "as many of both",
            "null stands for a log-probability that the engine does not give, as for the first token",
        )  # fmt: skip
    if not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 1 << 62 for i in ids):
        raise InputError(f"{where}: token_ids that are no whole numbers", _EXPECTED)
    values = [math.nan if v is None else v for v in logprobs]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise InputError(f"{where}: logprobs that are no numbers", _EXPECTED)
    try:
        array = np.asarray(values, dtype=np.float64)
    except OverflowError as error:
        raise InputError(f"{where}: logprobs beyond all bounds", _EXPECTED) from error
    beyond = np.flatnonzero(array > 1e-3)
    if len(beyond):
        raise InputError(
            f"{where}: the log-probability {array[beyond[0]]:.6g} at token {int(beyond[0])}",
            "natural logarithms of probabilities, at most 0",
        )  # fmt: skip
    return Sequence_(np.asarray(ids, dtype=np.int64), np.minimum(array, 0.0), row.get("id"))


def _list(value: Any, where: str) -> list[Any]:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(plain, Sequence) or isinstance(plain, (str, bytes)):
        raise InputError(f"{where}: a {type(value).__name__} in place of a list", _EXPECTED)
    return list(plain)


def paired(a: list[Sequence_], b: list[Sequence_]) -> list[tuple[Sequence_, Sequence_]]:
    """The sequences that belong together: by their `id` where all have one, else in order.

    Raises:
        InputError: an id twice in one list, another number of sequences, or none belong together.
    """
    if all(s.key is not None for s in (*a, *b)):
        by_a, by_b = _by_id(a, "A"), _by_id(b, "B")
        pairs = [(one, by_b[key]) for key, one in by_a.items() if key in by_b]
        if not pairs:
            raise InputError("sequences whose ids are all others in the second file", "ids that both have")
        return pairs
    if len(a) != len(b):
        raise InputError(
            f"{len(a)} sequences in A, {len(b)} in B",
            "as many in both",
            'or an "id" for each, to pair them by',
        )
    return list(zip(a, b, strict=True))


def _by_id(sequences: list[Sequence_], name: str) -> dict[str, Sequence_]:
    by_id: dict[str, Sequence_] = {}
    for one in sequences:
        key = json.dumps(one.key, sort_keys=True, default=str)
        if key in by_id:
            raise InputError(f"two sequences of {name} with the id {key}", "an id for each")
        by_id[key] = one
    return by_id
