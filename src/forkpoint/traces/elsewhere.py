"""Traces that fsspec keeps elsewhere: copied from there to be read, and to there when they were written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forkpoint.errors import CaptureError, InputError, reraise_out_of_memory
from forkpoint.traces.schema import MANIFEST

_PREFIX = "forkpoint-trace-"


def is_elsewhere(folder: str | Path) -> bool:
    """Whether a folder is one that fsspec has to find.

    >>> is_elsewhere("s3://bucket/trace"), is_elsewhere("traces/a")
    (True, False)
    """
    return "://" in str(folder)


def copied(folder: str, expected: str) -> tempfile.TemporaryDirectory[str]:
    """A copy of a folder.

    Args:
        expected: what should be there, for the error.

    Raises:
        InputError: there is none, or it can't be copied.
    """
    target = tempfile.TemporaryDirectory(prefix=_PREFIX)
    try:
        system, path = _located(folder)
        system.get(path.rstrip("/") + "/", target.name + "/", recursive=True)
    except Exception as error:
        target.cleanup()
        reraise_out_of_memory(error)
        raise InputError(f"{folder}: {error}", expected) from error
    return target


@contextmanager
def local(folder: str | Path) -> Generator[Path]:
    """Where to write a trace that is to be in a folder: there, or in a temporary folder that is copied after the block.

    It is copied whatever ends the block, the manifest last: without it what lies there is no trace.

    Raises:
        InputError: there is something already, or the place can't be looked at.
        CaptureError: it could not be copied; the error says where it lies.
    """
    if not is_elsewhere(folder):
        yield Path(folder)
        return
    address = str(folder)
    try:
        system, path = _located(address)
        occupied = system.exists(path) and bool(system.ls(path))
    except Exception as error:
        reraise_out_of_memory(error)
        raise InputError(f"{address}: {error}", "a place that fsspec can write to") from error
    if occupied:
        raise InputError(f"{address}, where there is something already", "a folder that is new or empty")
    written, process = Path(tempfile.mkdtemp(prefix=_PREFIX)), os.getpid()
    try:
        yield written / "trace"
    finally:
        if os.getpid() == process:  # else it is one that was forked
            if (written / "trace" / MANIFEST).exists():
                _put(written / "trace", system, path, address)
            shutil.rmtree(written, ignore_errors=True)


def _located(folder: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    return fsspec.url_to_fs(folder)


def _put(written: Path, system: Any, path: str, address: str) -> None:
    files = sorted((file for file in written.rglob("*") if file.is_file()), key=lambda f: f.name == MANIFEST)
    try:
        for file in files:
            target = f"{path.rstrip('/')}/{file.relative_to(written).as_posix()}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(file), target)
    except Exception as error:
        reraise_out_of_memory(error)
        raise CaptureError(
            f"the trace can't be copied to {address}: {error}", "room and permission to write", f"it lies in {written}"
        ) from error  # fmt: skip
