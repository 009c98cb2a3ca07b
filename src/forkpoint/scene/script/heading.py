"""The words above a script."""

from __future__ import annotations

import textwrap

import torch

from forkpoint.scene.format.arguments import short
from forkpoint.scene.format.functions import package_of
from forkpoint.scene.format.records import Scene
from forkpoint.scene.replaying.replay import compare_input
from forkpoint.scene.script.expressions import plain_text


def head(scene: Scene, *, synthetic: bool) -> str:
    """What a script says first: the two calls, what to expect of them, and how to run it."""
    place = scene.place
    differing = [c.name for i in range(len(scene.inputs)) if (c := compare_input(scene, i)).equal is False]
    first = (
        f"{place.function} in two runs of a model: what goes in differs already ({', '.join(differing)})."
        if differing
        else f"{place.function} gives the same tokens other bits in two runs of a model."
    )
    what = (
        f"It is called in {place.module or 'the model'} ({place.source}). Run A: {scene.a.run}, output "
        f"{_shape(scene, 'a')}; run B: {scene.b.run}, output {_shape(scene, 'b')}. Recorded on "
        f"{scene.machine.device}, {scene.machine.text}, torch {scene.machine.libraries.get('torch', '?')}."
    )
    if not synthetic:
        expect = (
            f"Expect there: both outputs are the recorded ones, bit for bit, and {_expected(scene)} Another machine "
            "or version of torch may choose other kernels, and so give other bits."
        )
        usage = f"    python script.py SCENE    # the folder with scene.json; needs {_needs(scene, synthetic=synthetic)}"
    else:
        expect = (
            "The data are random: shapes, strides, dtypes, spread and masks are those of the model's run, and what "
            "both runs have is equal in both. Expect that their outputs differ all the same; on another machine or "
            "version of torch they may agree."
        )
        usage = f"    python script.py    # needs {_needs(scene, synthetic=synthetic)}"
    wrapped = ["\n".join(textwrap.wrap(plain_text(text), 100)) for text in (first, what, expect)]
    return "\n\n".join([*wrapped, usage]) + "\n"


def packages(scene: Scene) -> list[str]:
    """The packages beside torch whose functions the two calls are."""
    owners = {package_of(side.function) for side in (scene.a, scene.b)}
    return sorted(package for package in owners if package is not None)


def _needs(scene: Scene, *, synthetic: bool) -> str:
    return ", ".join(["torch", *([] if synthetic else ["safetensors"]), *packages(scene)])


def _shape(scene: Scene, run: str) -> str:
    layout = scene.layouts[scene.side(run).outputs[scene.output]]
    return f"{list(layout.shape)} {short(scene.storages[layout.storage].dtype)}"


def _expected(scene: Scene) -> str:
    """What the recorded outputs show."""
    left, right = scene.sharing.take(*(scene.recorded(run)[scene.output] for run in "ab"))
    differ = ~((left == right) | ((left != left) & (right != right)))
    count = int(differ.sum())
    if not count:
        return "they are equal in all shared elements."
    at = int(differ.to(torch.uint8).argmax())
    return (
        f"they differ in {count:,} of {differ.numel():,} shared elements, first {left[at].item()!r} in A against "
        f"{right[at].item()!r} in B."
    )
