"""Numbers as text: exact where two values are told apart, short where only their size counts."""

from __future__ import annotations

import math
from collections.abc import Iterable

from forkpoint.printable import NO_BREAK

EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}
"""Machine epsilon of the dtypes in which models run: the spacing of the numbers at 1."""


def exact(value: complex | None) -> str:
    """The shortest text from which the value can be read back, bit for bit.

    A value of a narrower dtype is shown as the float64 number that it is, so that two neighbours
    never look alike.

    >>> exact(0.11561134457588196), exact(0.11561146378517151)
    ('0.11561134457588196', '0.11561146378517151')
    >>> exact(7), exact(float("nan")), exact(None)
    ('7', 'nan', '?')
    """
    if value is None:
        return "?"
    return repr(value)


def short(value: float) -> str:
    """Three significant digits, for sizes.

    >>> short(0.6875), short(1.6e-13), short(0.0), short(12.0)
    ('0.688', '1.6e-13', '0', '12')
    """
    return f"{value:.3g}"


def size(value: float) -> str:
    """Exact if that is at most eight characters long, else three significant digits.

    >>> size(0.6875), size(0.00048828125), size(0.0)
    ('0.6875', '0.000488', '0')
    """
    text = f"{value:.17g}"
    return text if len(text) <= 8 else short(value)


def pair(a: float, b: float) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart, and at least six.

    >>> pair(2.2719120979, 2.2886083126)
    ('2.27191', '2.28861')
    >>> pair(2.2338910, 2.2338932)
    ('2.233891', '2.233893')
    >>> pair(1.5, 1.5)
    ('1.5', '1.5')
    """
    digits = 6
    while a != b and digits < 17 and f"{a:.{digits}g}" == f"{b:.{digits}g}":
        digits += 1
    return f"{a:.{digits}g}", f"{b if a != b else a:.{digits}g}"


def narrower(a: str, b: str) -> str | None:
    """Of two dtypes the one of fewer digits, or None where one has no known precision.

    >>> narrower("float32", "bfloat16"), narrower("int8", "float32")
    ('bfloat16', None)
    """
    names = [name.removeprefix("torch.") for name in (a, b)]
    return max(names, key=EPSILON.__getitem__) if all(name in EPSILON for name in names) else None


def count(number: int) -> str:
    """With its thousands parted.

    >>> count(1671)
    '1,671'
    """
    return f"{number:,}"


def times(factor: float) -> str:
    """Three significant digits without an exponent, while that can be read.

    >>> times(2.8160001), times(5452595.2), times(3e12)
    ('2.82', '5,450,000', '3e+12')
    """
    if not 100 <= factor < 1e9:
        return short(factor)
    return count(int(float(f"{factor:.3g}")))


def share(part: int, whole: int) -> str:
    """A percentage that says neither 0 nor 100 unless it is.

    >>> share(38, 8640).replace(NO_BREAK, " ")
    '0.44 %'
    >>> share(1, 10**9), share(10**9 - 1, 10**9), share(0, 5), share(5, 5)  # doctest: +ELLIPSIS
    ('<0.01...%', '>99.99...%', '0...%', '100...%')
    """
    if whole <= 0:
        return f"0{NO_BREAK}%"
    percent = 100 * part / whole
    if 0 < part < whole:
        if percent < 0.01:
            return f"<0.01{NO_BREAK}%"
        if percent > 99.99:
            return f">99.99{NO_BREAK}%"
    text = f"{percent:.2f}" if percent < 10 or percent > 99 else f"{percent:.1f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{NO_BREAK}%"


def ulps(distance: float) -> str:
    """A distance in units in the last place.

    >>> ulps(1.0), ulps(1234.0), ulps(0.25), ulps(3.2e9)
    ('1', '1,234', '0.25', '3.2e+09')
    """
    if not math.isfinite(distance):
        return str(distance)
    if distance == int(distance) and distance < 1e7:
        return count(int(distance))
    return short(distance)


def shape(dimensions: tuple[int, ...]) -> str:
    """The sizes of a tensor.

    >>> shape((1, 15)).replace(NO_BREAK, " "), shape(())
    ('[1, 15]', '[]')
    """
    return _bracketed(str(size) for size in dimensions)


def shapes(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> str:
    """The sizes of a tensor in both runs; an arrow leads from run A's to run B's.

    >>> shapes((1, 15, 576), (1, 50, 576)).replace(NO_BREAK, " ")
    '[1, 15→50, 576]'
    >>> shapes((15,), (1, 15)).replace(NO_BREAK, " "), shapes(None, (3,))
    ('[15] → [1, 15]', '[3]')
    """
    if a is None or b is None:
        return "".join(shape(dimensions) for dimensions in (a, b) if dimensions is not None)
    if len(a) != len(b):
        return f"{shape(a)} → {shape(b)}"
    return _bracketed(str(x) if x == y else f"{x}→{y}" for x, y in zip(a, b, strict=True))


def _bracketed(sizes: Iterable[str]) -> str:
    return "[" + f",{NO_BREAK}".join(sizes) + "]"


def either(a: str | None, b: str | None) -> str:
    """A dtype in both runs.

    >>> either("float32", "float32"), either("float32", "bfloat16"), either(None, "bool")
    ('float32', 'float32 → bfloat16', 'bool')
    """
    return " → ".join(dict.fromkeys(name.removeprefix("torch.") for name in (a, b) if name))


def common_prefix(a: str, b: str) -> int:
    """How many characters two texts share at their beginning.

    >>> common_prefix("0.115611344", "0.115611463")
    8
    """
    shared = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        shared += 1
    return shared
