"""Records to plain JSON types and back: dataclasses of numbers, texts, enums, tuples and other such records."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, Union, cast

from forkpoint.support.files import write_json

NOT_FINITE = ("nan", "inf", "-inf")
"""How floats that are no numbers are written."""


class JsonRecord:
    """Base of dataclasses that are written as JSON and read back."""

    _derived: ClassVar[tuple[str, ...]] = ()
    """Names of properties that stand in the JSON beside the fields, for whoever reads it without this class."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types, enums as their values (docs/json-schema.md)."""
        return {**to_plain(self), **{name: to_plain(getattr(self, name)) for name in self._derived}}

    def to_json(self, path: str | Path) -> None:
        """Write it as JSON; the file appears whole or not at all.

        Characters that can't be seen are escaped, so that it may be shown on a terminal.
        """
        write_json(Path(path), self.to_dict())

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """What `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        return from_plain(cls, data)


def to_plain(value: Any) -> Any:
    """A record as plain JSON types; enums as their values, fields that begin with `_` left out."""
    if isinstance(value, enum.Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def from_plain(kind: Any, data: Any, place: str = "") -> Any:
    """What `to_plain` was given, from what it returned.

    Keys that the record has no field for are left out, so that what a later version adds can be read.

    Args:
        kind: the type that is expected: a dataclass, or the type of one of its fields.
        data: plain JSON types.
        place: where in the whole it stands, for errors.

    Raises:
        ValueError: it is something else; the message begins with the place.
    """
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(typing.get_args(kind), data, place)
    if is_dataclass(kind):
        return _record(cast("type[Any]", kind), data, place)
    if origin is tuple:
        return _items(typing.get_args(kind), data, place)
    if origin is dict:
        if not isinstance(data, dict):
            raise _wrong(kind, data, place)
        _, values = typing.get_args(kind)
        pairs = cast("dict[str, Any]", data).items()
        return {key: from_plain(values, item, f"{place}.{key}") for key, item in pairs}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            raise _wrong(kind, data, place) from None
    return _scalar(kind, data, place)


def _record(kind: type[Any], data: Any, place: str) -> Any:
    if not isinstance(data, Mapping):
        raise _wrong(kind, data, place)
    values: dict[str, Any] = {}
    field_types = _types(kind)
    for item in fields(kind):
        if item.name.startswith("_"):
            continue
        if item.name in data:
            where = f"{place}.{item.name}" if place else item.name
            values[item.name] = from_plain(field_types[item.name], data[item.name], where)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{place or 'it'} lacks {item.name!r}")
    return kind(**values)


@cache
def _types(kind: type[Any]) -> dict[str, Any]:
    """The types of a record's fields; those of private fields may name what only type checkers import."""
    return typing.get_type_hints(kind, localns={"Tensor": object})


def _items(kinds: tuple[Any, ...], data: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _wrong(tuple, data, place)
    items = cast("list[Any]", data)
    if kinds[-1:] == (Ellipsis,):
        kinds = (kinds[0],) * len(items)
    if len(kinds) != len(items):
        raise ValueError(f"{place} has {len(items)} entries, not {len(kinds)}")
    pairs = enumerate(zip(kinds, items, strict=True))
    return tuple(from_plain(kind, item, f"{place}[{index}]") for index, (kind, item) in pairs)


def _one_of(kinds: tuple[Any, ...], data: Any, place: str) -> Any:
    """The first that fits, those that are written as something else last: a number is not read as a text."""
    if data is None and type(None) in kinds:
        return None
    error: ValueError | None = None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return from_plain(kind, data, place)
        except ValueError as wrong:
            error = error or wrong
    raise error or _wrong(type(None), data, place)


def _scalar(kind: Any, data: Any, place: str) -> Any:
    if isinstance(data, int) and kind is not bool:
        try:
            float(data)  # which comparing and writing it takes
        except OverflowError:
            raise ValueError(f"{place or 'it'} is an integer beyond every float") from None
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return data  # an integer stays one, as it was written
    if kind is float and data in NOT_FINITE:
        return float(data)
    if kind is complex and isinstance(data, list):
        real, imaginary = _items((float, float), data, place)
        return complex(real, imaginary)
    if kind in (int, bool, str) and type(data) is kind:
        return data
    if kind is Hashable and isinstance(data, list):  # a name that was a tuple
        return tuple(from_plain(kind, item, place) for item in cast("list[Any]", data))
    if kind not in (int, bool, str, float, complex) and (data is None or isinstance(data, (str, int, float))):
        return data  # Hashable: a sample goes by its index or by a name
    raise _wrong(kind, data, place)


def _wrong(kind: Any, data: Any, place: str) -> ValueError:
    name = getattr(kind, "__name__", str(kind))
    return ValueError(f"{place or 'it'} is a {type(data).__name__}, not a {name}")
