"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from forkpoint.errors import InputError


def check_writable(path: Path) -> None:
    """Fail before hours of work rather than after: the folder must exist and take a file."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(
            f"{path}: no folder {folder}", "a file in a folder that exists", f"mkdir -p {folder}"
        )
    if not os.access(folder, os.W_OK) or path.is_dir():
        raise InputError(f"{path} can't be written", "a file in a folder that you may write to")


def write_atomically(path: Path, text: str) -> None:
    """Write text in UTF-8 to a file that appears whole or not at all.

    Raises:
        InputError: the folder does not exist or can't be written.
    """
    check_writable(path)
    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
