"""A scene's folder: written whole or not at all, read without trusting what is in it.

scene/
scene.json              the manifest
tensors.safetensors     storages, alignments, random states
weights/HASH.safetensors   one weight each, named by its content
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.scene.format.arguments import short
from forkpoint.scene.format.manifest import check_header, from_manifest, storages_from, to_manifest
from forkpoint.scene.format.records import Scene
from forkpoint.scene.format.tensors import Storage, content_hash, restored, storable, stored_dtype
from forkpoint.support.files import unfinished_folder

MANIFEST = "scene.json"
TENSORS = "tensors.safetensors"
MAX_MANIFEST = 1 << 26
"""Longest manifest that is read, in bytes."""
MAX_EXTRA = 1 << 34
"""Most bytes of alignments that are read."""
_WEIGHT = re.compile(r"[0-9a-f]{64}\.safetensors")
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
"""Names of dtypes in a safetensors header."""


# ---------------------------------------------------------------------- writing


def check_directory(directory: str | Path) -> Path:
    """Whether a scene can be written there: before hours of work rather than after.

    A folder that doesn't exist, an empty one, or one that holds nothing but a scene, which is then replaced.

    Returns:
        The folder, links followed.

    Raises:
        SceneError: anything else is there, or the folder above can't be written.
    """
    if "\0" in str(directory):
        raise SceneError(f"{str(directory)!r} is no name of a folder", "a new folder")
    with _one_line(directory):
        path = Path(os.path.realpath(directory))
        parent = path.parent
        if not parent.is_dir():
            raise SceneError(
                f"{directory}: no folder {parent}", "a new folder in one that exists", f"mkdir -p {parent}"
            )
        if not os.access(parent, os.W_OK):
            raise SceneError(f"{directory}: {parent} can't be written", "a folder that you may write to")
        if os.path.lexists(path) and not path.is_dir():
            raise SceneError(f"{directory} is there already and is no folder", "a new folder")
        if path.exists() and not _holds_only_a_scene(path):
            raise SceneError(
                f"{directory} holds other files",
                "a new folder, an empty one or a scene",
                "choose another name",
            )
    return path


@contextmanager
def _one_line(directory: str | Path) -> Generator[None]:
    """What the system or safetensors says of writing, as one line that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SceneError(f"{directory} can't be written: {reason}", "room and permission to write") from error


def _holds_only_a_scene(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return True
    if not names <= {MANIFEST, TENSORS, "weights"} or MANIFEST not in names:
        return False
    weights = path / "weights"
    return not weights.exists() or all(_WEIGHT.fullmatch(entry.name) for entry in weights.iterdir())


def write(directory: str | Path, scene: Scene, finish: Callable[[Path], Scene]) -> Scene:
    """Write a scene; the folder appears whole or not at all.

    Args:
        directory: where.
        scene: with its data.
        finish: given the folder with the scene in it, under a name for the time being, returns the scene with
            what only a written scene can tell (whether it replays); its manifest is what stays.

    Raises:
        SceneError: there is no room or no permission to write; whatever was there before is still there.
    """
    path = check_directory(directory)
    with _one_line(directory), unfinished_folder(path.parent) as temporary:
        _write_tensors(temporary, scene)
        _write_manifest(temporary, scene)
        finished = finish(temporary)
        _write_manifest(temporary, finished)
        _put_in_place(temporary, check_directory(directory))
    return finished


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _put_in_place(temporary: Path, directory: Path) -> None:
    if not directory.exists():
        temporary.rename(directory)
        return
    # Not called unfinished: between the two steps the old scene is nowhere else.
    aside = directory.parent / f".{directory.name[:200]}.replaced-{secrets.token_hex(4)}"
    try:
        aside.mkdir(0o700)
        directory.rename(aside / "old")
        temporary.rename(directory)
    except BaseException:  # wherever it comes: the old scene may be aside already, or the new one be there
        with suppress(OSError):  # one of them is there
            (aside / "old").rename(directory)
        if directory.exists():
            shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _write_tensors(folder: Path, scene: Scene) -> None:
    (folder / "weights").mkdir()
    shared: dict[str, Tensor] = dict(scene.extra)
    shared["alignment.output"] = scene.sharing.runs
    for index, pair in enumerate(scene.inputs):
        if pair.a is not None and pair.b is not None:
            shared[f"alignment.input.{index}"] = pair.sharing.runs
    for storage, data in zip(scene.storages, scene.data, strict=True):
        if storage.file == TENSORS:
            shared[storage.key] = storable(data).contiguous()
        else:
            save_file({storage.key: storable(data).contiguous()}, folder / storage.file)
    save_file(shared, folder / TENSORS)
    if not any((folder / "weights").iterdir()):
        (folder / "weights").rmdir()
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o666 & ~_umask())


def _write_manifest(folder: Path, scene: Scene) -> None:
    text = json.dumps(to_manifest(scene), ensure_ascii=False, indent=1, allow_nan=False)
    # A lone surrogate (of a file's name, say), which UTF-8 lacks, becomes the escape that JSON has for it.
    (folder / MANIFEST).write_bytes((text + "\n").encode("utf-8", "backslashreplace"))


# ---------------------------------------------------------------------- reading


def load(directory: str | Path, *, namespaces: Sequence[str] = ()) -> Scene:
    """Read a scene. Nothing in it is executed, and nothing outside its folder is read.

        scene = forkpoint.scene.load("scene")
        scene.place.op, scene.a.function

    Args:
        directory: the folder.
        namespaces: of operators registered in this process that the scene may call besides torch's own.

    Raises:
        SceneError: no scene, one of another version, or one that is damaged or not as forkpoint writes it.
    """
    folder = Path(directory)
    try:
        if not folder.is_dir():
            raise SceneError(
                f"{folder} is no folder",
                "the folder of a scene",
                "forkpoint padding MODEL -p PROMPT --scene DIR",
            )
        manifest = _read_manifest(folder)
        check_header(manifest)
        storages = storages_from(manifest)
        data, extra = _read_tensors(folder, storages)
        return from_manifest(manifest, storages, data, extra, tuple(namespaces))
    except (OSError, MemoryError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
        raise SceneError(f"{folder} can't be read: {reason}", "the folder of a scene") from error


def _read_manifest(folder: Path) -> Any:
    path = _inside(folder, MANIFEST)
    size = path.stat().st_size
    if size > MAX_MANIFEST:
        raise SceneError(f"{MANIFEST} of {size:,} bytes", f"at most {MAX_MANIFEST:,}")
    return parsed(path.read_bytes(), path)


def parsed(data: bytes, path: Path) -> Any:
    """The JSON of a manifest.

    Raises:
        SceneError: it is none.
    """
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        what = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise SceneError(f"{path} is not JSON: {what}", "the manifest of a scene") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder that is a plain file there, not a link that leads elsewhere."""
    path = folder
    for part in Path(name).parts:
        path /= part
        try:
            mode = path.lstat().st_mode
        except OSError:
            raise SceneError(f"no {name} in {folder}", "the folder of a scene") from None
        if stat.S_ISLNK(mode):
            raise SceneError(f"{path} is a link", "a file of the scene's own folder")
    if not stat.S_ISREG(path.lstat().st_mode):
        raise SceneError(f"{path} is no plain file", "a file of the scene's own folder")
    return path


def _read_tensors(folder: Path, storages: Sequence[Storage]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    wanted: dict[str, list[int]] = {TENSORS: []}
    for number, storage in enumerate(storages):
        wanted.setdefault(storage.file, []).append(number)
    data: dict[int, Tensor] = {}
    extra: dict[str, Tensor] = {}
    for file, numbers in wanted.items():
        path = _inside(folder, file)
        try:
            with safe_open(path, framework="pt") as content:
                keys = set(content.keys())
                for number in numbers:
                    data[number] = _read_storage(content, keys, storages[number])
                if file == TENSORS:
                    extra = _read_extra(content, keys)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise SceneError(
                f"{path} can't be read: {error}", "a whole safetensors file", "save the scene again"
            ) from None
    return tuple(data[number] for number in range(len(storages))), extra


def _read_storage(content: Any, keys: set[str], storage: Storage) -> Tensor:
    if storage.key not in keys:
        raise SceneError(
            f"no tensor {storage.key[:80]!r} in {storage.file}", "the tensors that scene.json names"
        )
    piece = content.get_slice(storage.key)
    shape, dtype = tuple(piece.get_shape()), _DTYPES.get(piece.get_dtype())
    expected = stored_dtype(storage.dtype)
    if dtype != expected:
        raise SceneError(
            f"{storage.key} in {storage.file} is {piece.get_dtype()}",
            f"{short(storage.dtype)}, as scene.json says",
        )
    length = storage.elements if expected == storage.dtype else storage.bytes
    if shape != (length,):
        raise SceneError(
            f"{storage.key} in {storage.file} holds {list(shape)} elements", f"[{length}], as scene.json says"
        )
    data = restored(content.get_tensor(storage.key), storage.dtype)
    if storage.file != TENSORS and content_hash(data) != Path(storage.file).stem:
        raise SceneError(
            f"{storage.file} doesn't hold what its name says", "the weight with that BLAKE2b hash"
        )
    return data


def _read_extra(content: Any, keys: set[str]) -> dict[str, Tensor]:
    extra: dict[str, Tensor] = {}
    total = 0
    for key in sorted(keys):
        if key.startswith(("alignment.", "random.")):
            piece = content.get_slice(key)
            count = 1
            for size in piece.get_shape():
                count *= size
            total += 8 * count
            if total > MAX_EXTRA:
                raise SceneError(f"alignments of {total:,} bytes", f"at most {MAX_EXTRA:,}")
            extra[key] = content.get_tensor(key)
    return extra


def size_of(parts: Mapping[str, Tensor] | Sequence[Tensor]) -> int:
    """Bytes of some tensors."""
    tensors = parts.values() if isinstance(parts, Mapping) else parts
    return sum(t.numel() * t.dtype.itemsize for t in tensors)
