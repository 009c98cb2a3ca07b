"""Sizes in bytes as people write them. Free of torch, so that the command line can refuse one at once."""

from __future__ import annotations

import re

from forkpoint.errors import InputError

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip


def parse_size(amount: int | str, name: str = "max_memory") -> int:
    """A number of bytes.

    >>> parse_size("500MB"), parse_size("1.5 GiB"), parse_size(4096)
    (500000000, 1610612736, 4096)

    Args:
        amount: a number of bytes, or text with a unit.
        name: what the size is for, as the user knows it.

    Raises:
        InputError: it is no size, less than a byte, or more than any machine has.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(amount).strip().lower())
    size = 0
    if match is not None and match[2] in _UNITS and not isinstance(amount, bool):
        number = float(match[1]) * _UNITS[match[2]]
        size = int(number) if number < 1 << 63 else 0
    if size < 1:
        raise InputError(
            f"{name} {amount!r}",
            "a size such as 500MB, 4GB, 2GiB or a number of bytes",
            "leave it out for no limit",
        )
    return size
