"""Sizes as people write them."""

import pytest

from forkpoint import InputError
from forkpoint.support.sizes import parse_size


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (1, 1), ("4096", 4096), ("7B", 7), ("500MB", 500_000_000), ("500 mb", 500_000_000), (" 4GB ", 4 * 10**9),
        ("2GiB", 2 << 30), ("0.5kib", 512), ("1.5TB", 1_500_000_000_000), ("1KB", 1000),
    ],
)  # fmt: skip
def test_sizes(given, size):
    assert parse_size(given) == size


@pytest.mark.parametrize(
    "given", ["", "plenty", "GB", "-1", -1, 0, "0GB", "0.1B", "4G", "4 GB RAM", "1e9", "1,5GB", True, "nan"]
)
def test_what_is_no_size(given):
    with pytest.raises(InputError) as caught:
        parse_size(given)
    assert str(caught.value) == (
        f"max_memory {given!r}; expected a size such as 500MB, 4GB, 2GiB or a number of bytes "
        "(leave it out for no limit)"
    )
