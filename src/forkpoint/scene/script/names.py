"""What a script calls tensors and storages of its scene."""

from __future__ import annotations

from forkpoint.scene.format.folder import TENSORS
from forkpoint.scene.format.records import Scene


def tensors(scene: Scene, run: str) -> dict[int, str]:
    """What the tensors of a run are called, by their numbers."""
    found: dict[int, str] = {}
    for pair in scene.inputs:
        number = pair.a if run == "a" else pair.b
        if number is not None:
            found.setdefault(number, pair.name)
    for number in scene.side(run).tensors:
        found.setdefault(number, f"tensor {number}")
    return found


def storages(scene: Scene, names: dict[str, dict[int, str]]) -> dict[int, str]:
    """The key of each storage in the script's `data`."""
    keys: dict[int, str] = {}
    for run in "ab":
        for number in (*scene.side(run).tensors, *scene.side(run).outputs):
            storage = scene.layouts[number].storage
            stored = scene.storages[storage]
            name = stored.key if stored.file == TENSORS else names[run].get(number, "weight")
            while storage not in keys and name in keys.values():
                name += "_"
            keys.setdefault(storage, name)
    return keys


def leads(scene: Scene, keys: dict[int, str]) -> dict[str, int]:
    """By storage, how many elements after an aligned address it began."""
    found: dict[str, int] = {}
    for run in "ab":
        for number in scene.side(run).tensors:
            layout = scene.layouts[number]
            lead = layout.alignment // scene.storages[layout.storage].dtype.itemsize
            if lead:
                found[keys[layout.storage]] = lead
    return found


def staying(scene: Scene, keys: dict[int, str]) -> list[str]:
    """Storages that were on the CPU although the op ran on another device."""
    if scene.machine.device == "cpu":
        return []
    numbers = (*scene.a.tensors, *scene.b.tensors)
    stay = [keys[scene.layouts[n].storage] for n in numbers if scene.layouts[n].device == "cpu"]
    return list(dict.fromkeys(stay))
