"""The names of tensors and storages in the script of a scene."""

from __future__ import annotations

from forkpoint.scene.format.folder import TENSORS
from forkpoint.scene.format.records import Scene


def tensors(scene: Scene, run: str) -> dict[int, str]:
    """The name of each tensor that goes into a run's call, by its number."""
    names: dict[int, str] = {}
    for pair in scene.inputs:
        number = pair.a if run == "a" else pair.b
        if number is not None:
            names.setdefault(number, pair.name)
    for number in scene.side(run).tensors:
        names.setdefault(number, f"tensor {number}")
    return names


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
    """By the key of a storage, how many elements after an aligned address it began; without those that were aligned."""
    elements: dict[str, int] = {}
    for run in "ab":
        for number in scene.side(run).tensors:
            layout = scene.layouts[number]
            lead = layout.alignment // scene.storages[layout.storage].dtype.itemsize
            if lead:
                elements[keys[layout.storage]] = lead
    return elements


def staying(scene: Scene, keys: dict[int, str]) -> list[str]:
    """The keys of storages that were on the CPU although the op ran on another device."""
    if scene.machine.device == "cpu":
        return []
    numbers = (*scene.a.tensors, *scene.b.tensors)
    stay = [keys[scene.layouts[n].storage] for n in numbers if scene.layouts[n].device == "cpu"]
    return list(dict.fromkeys(stay))
