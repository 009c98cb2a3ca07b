"""Writing files so that they appear whole or not at all.

What is being written has a name of its own, `.forkpoint-….unfinished`, beside the place where it will be, and a lock
for as long as its process lives. So what a killed process has left can be told from the rest, and the next
that writes to the folder removes it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Generator

_PREFIX, _SUFFIX = ".forkpoint-", ".unfinished"
_AT_LEAST = 60
"""Seconds for which nothing unfinished is removed: its process may not have locked it yet."""


def reason(error: Exception) -> str:
    """What the system says of a file, for a line that names the file: without its number and the name once more.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.txt")), reason(ValueError("no number"))
    ('No such file or directory', 'no number')
    """
    return getattr(error, "strerror", None) or str(error)


def is_path(name: str) -> bool:
    """Whether the name of a model can only be a place on this machine, and no id on the hub.

    >>> is_path("./mine"), is_path("a/b/c"), is_path("org/model"), is_path("demo")
    (True, True, False, False)
    """
    return Path(name).is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1


def check_writable(*paths: Path | None) -> None:
    """Fail before hours of work rather than after: whether `write_atomically` can write there; None is nowhere.

    Raises:
        InputError: there is no folder for it, or what is there can't be written.
    """
    for path in paths:
        if path is not None:
            with _one_line(path):
                _replaceable(path)


def write_atomically(path: Path, text: str) -> None:
    """Write text in UTF-8 to a file that appears whole or not at all.

    A link is followed. A terminal, a pipe, a device such as /dev/null and the file that standard output goes to are
    written to as they are. A lone surrogate, which UTF-8 lacks, is written as JSON and Python escape it.

    Raises:
        InputError: there is no folder for it, what is there can't be written, or there is no room; whatever was
            there before is still there.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a file that appears whole or not at all; the rest is as for `write_atomically`.

    Raises:
        InputError: as `write_atomically`.
    """
    with _one_line(path):
        target = _replaceable(path)
        if target is None:
            _write_into(path, data)
        else:
            _replace(target, data)


def write_json(path: Path, data: Any) -> None:
    """Write plain JSON types to a file that appears whole or not at all.

    Characters that can't be seen are escaped, so that it may be shown on a terminal.

    Raises:
        InputError: as `write_atomically`.
    """
    text = json.dumps(data, ensure_ascii=False, indent=1)
    lines = (line if line.isprintable() else _escaped(line) for line in text.split("\n"))
    write_atomically(path, "\n".join(lines) + "\n")


def _escaped(text: str) -> str:
    """JSON with escapes for what can't be seen; it reads as the same."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def is_file(path: Path) -> bool:
    """Whether `write_atomically` makes or replaces a file there, rather than writing to what is there."""
    with _one_line(path):
        return _replaceable(path) is not None


@contextmanager
def _one_line(path: Path) -> Generator[None]:
    """What the system says, as one line that names the file."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(
            f"{path} can't be written: {reason(error)}", "room and permission to write"
        ) from error


def _replaceable(path: Path) -> Path | None:
    """The file to make or to replace, links followed; None for what is written to as it is."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    if status is not None and not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode) or not (
            stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode)
        ):
            raise InputError(f"{path} can't be written", "a file, not a folder, a disk or a socket")
        if not os.access(path, os.W_OK):
            raise InputError(f"{path} can't be written", "what you may write to")
        return None
    if status is not None and _standard(status) is not None:
        return None
    target = Path(os.path.realpath(path))
    folder = target.parent
    if not folder.is_dir():
        raise InputError(
            f"{path}: no folder {folder}", "a file in a folder that exists", f"mkdir -p {folder}"
        )
    if status is not None and not os.access(target, os.W_OK):
        raise InputError(f"{path} is read-only", "a file that you may write to")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path} can't be written", "a file in a folder that you may write to")
    return target


def _standard(status: os.stat_result) -> int | None:
    """Whether a file is the one that standard output or standard error goes to: its descriptor."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def _write_into(path: Path, data: bytes) -> None:
    """Write to what is there, after whatever this process has written to it before."""
    descriptor = _standard(path.stat())
    if descriptor is None:
        handle = os.open(path, os.O_WRONLY)
    else:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        handle = os.dup(descriptor)
    with open(handle, "wb") as file:
        file.write(data)


def _replace(target: Path, data: bytes) -> None:
    """Put a whole file in the place of another one, whose permissions it keeps."""
    temporary = _unfinished_in(target.parent)
    try:
        with temporary.open("xb") as file:  # one call: an interrupt between two would leave a descriptor open
            _lock(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            with suppress(OSError):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------- what is unfinished


@contextmanager
def unfinished_folder(parent: Path) -> Generator[Path]:
    """A folder for what is being written, beside the place where it will be; moved away or removed in the end.

    Raises:
        OSError: the folder above can't be written.
    """
    folder = _unfinished_in(parent)
    handle = -1
    try:
        folder.mkdir()
        if os.name == "posix":
            handle = os.open(folder, os.O_RDONLY)
            _lock(handle)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def _unfinished_in(folder: Path) -> Path:
    """A name for something unfinished, in a folder from which others' remains have been removed."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                with suppress(OSError):
                    _remove_if_left(Path(entry.path))
    return folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"


def _remove_if_left(path: Path) -> None:
    """Remove what a process of this user has left unfinished, if that process has ended."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _AT_LEAST or not _lock(handle):
            return
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock a file or a folder until it is closed, or the process ends; whether nobody else had."""
    if os.name != "posix":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or a file system without locks
        return False
    return True
