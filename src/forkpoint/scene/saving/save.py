"""Saving the scene of a divergence: from two traced runs to a folder that replays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.recorder import CopiedCall
from forkpoint.errors import SceneError
from forkpoint.explain.locate import Located, named_inputs
from forkpoint.explain.session import Session, Traced
from forkpoint.match import Joined
from forkpoint.match.pairs import Pairs
from forkpoint.result import Divergence
from forkpoint.scene.format import folder
from forkpoint.scene.format.arguments import tensors_in_order, with_refs
from forkpoint.scene.format.functions import function_path
from forkpoint.scene.format.kernels import Kernels
from forkpoint.scene.format.machine import machine
from forkpoint.scene.format.records import InputPair, Location, Scene, SceneCall
from forkpoint.scene.format.sharing import Sharing
from forkpoint.scene.format.tensors import Packer, Placement, placement
from forkpoint.scene.replaying.calling import run_side, side_kernels
from forkpoint.scene.replaying.replay import equal_elements
from forkpoint.scene.saving.alignment import share_input, share_output
from forkpoint.scene.saving.choice import choose
from forkpoint.scene.saving.inside import look_inside
from forkpoint.scene.saving.witness import Witnessed, witness

SIZE_LIMIT = 2 << 30
"""Bytes beyond which a scene is written only if that is confirmed."""
Confirm = Callable[[int], bool]
"""Asked with a size in bytes."""


def save(
    session: Session,
    located: Located,
    directory: str | Path,
    *,
    versions: Mapping[str, str],
    size_limit: int = SIZE_LIMIT,
    confirm: Confirm | None = None,
) -> Scene:
    """Save all that is needed to replay an op alone, and check that it replays.

    Where nobody looked at how the op's inputs lie in memory when it was kept (`look`), the runs are made once more.

    Args:
        session: the two traced runs.
        located: the op, as `locate` found it; the one of the origin where the verdict is semantic.
        directory: a folder that is new, empty, or a scene to replace; it appears whole or not at all.
        versions: of the packages that took part.
        size_limit: bytes beyond which to ask first.
        confirm: asked with the size in bytes; None refuses.

    Returns:
        The scene as it was written, with its data.

    Raises:
        SceneError: no op of the divergence can be replayed, an input that a scene can't hold, a scene too large, or
            a folder that can't be written.
    """
    folder.check_directory(directory)
    scene = _assemble(session, located, dict(versions))
    _check_size(scene, size_limit, confirm)
    trusted = _namespaces(scene)
    return folder.write(directory, scene, lambda written: _tried(folder.load(written, namespaces=trusted)))


def build(session: Session, located: Located, *, versions: Mapping[str, str] | None = None) -> Scene:
    """The scene without its folder: what `save` would write, tried already.

        built = forkpoint.scene.build(session, located)
        built.kernel_evidence, built.inside, forkpoint.scene.replay(built)

    Raises:
        SceneError: as `save`, but for what concerns the folder.
    """
    return _tried(_assemble(session, located, dict(versions or {})))


def _namespaces(scene: Scene) -> tuple[str, ...]:
    paths = [side.function.split(".") for side in (scene.a, scene.b)]
    return tuple(parts[2] for parts in paths if parts[:2] == ["torch", "ops"])


def _check_size(scene: Scene, limit: int, confirm: Confirm | None) -> None:
    if scene.bytes > limit and (confirm is None or not confirm(scene.bytes)):
        raise SceneError(
            f"a scene of {scene.bytes / (1 << 30):.1f} GiB",
            f"at most {limit / (1 << 30):.1f} GiB unless it is confirmed",
        )


# ---------------------------------------------------------------------- assembling


def _assemble(session: Session, located: Located, versions: dict[str, str]) -> Scene:
    """The scene, before it was tried: without kernels, and without whether it reproduces the runs."""
    chosen = choose(session, located)
    a, b = witness(session.a, chosen.a), witness(session.b, chosen.b)
    packer = Packer()
    extra: dict[str, Tensor] = {}
    side_a, numbers_a = _side(session.a, "a", a, packer, extra)
    side_b, numbers_b = _side(session.b, "b", b, packer, extra)
    output = chosen.row.op.output
    notes = [chosen.remark, *(f"run {run}: {w.note}" for run, w in (("A", a), ("B", b)) if w.note)]
    scene = Scene(
        place=_place(located, chosen.row),
        a=side_a,
        b=side_b,
        output=output,
        sharing=share_output(session, chosen.row, a.call, b.call, output),
        inputs=tuple(_inputs(session, a.call, numbers_a, b.call, numbers_b)),
        layouts=tuple(packer.layouts),
        storages=tuple(packer.storages),
        machine=machine(a.call.outputs[output].device),
        versions=versions,
        notes=tuple(note for note in notes if note),
        inside=look_inside(session, a.call, b.call, a.circumstances.flags, b.circumstances.flags),
        data=tuple(packer.data),
        extra=extra,
    )
    return replace(scene, trusted=_namespaces(scene))


def _side(
    traced: Traced, run: str, witnessed: Witnessed, packer: Packer, extra: dict[str, Tensor]
) -> tuple[SceneCall, dict[int, int]]:
    """One run's call, its tensors added to the packer; with the number of each by the id of the copy."""
    call, seen = witnessed.call, witnessed.circumstances
    names = {id(tensor): name for name, tensor in named_inputs(call).items()}
    distinct: dict[int, tuple[Tensor, Placement]] = {}
    for tensor, place in zip(tensors_in_order((call.args, call.kwargs)), seen.placements, strict=True):
        at = place or placement(tensor)
        if at is None:
            raise SceneError("an input of the op has no memory of its own", "plain dense tensors")
        distinct.setdefault(id(tensor), (tensor, at))
    tensors = [tensor for tensor, _ in distinct.values()]
    numbers = packer.add(
        tensors,
        [at for _, at in distinct.values()],
        [f"{run}.{names.get(key, f'input {i}')}" for i, key in enumerate(distinct)],
        [call.owned.get(key) for key in distinct],
    )
    by_id = dict(zip(distinct, numbers, strict=True))
    outputs: list[int] = []
    for index, value in enumerate(call.outputs):
        at = placement(value)
        if at is None:
            raise SceneError("an output of the op has no memory of its own", "plain dense tensors")
        outputs += packer.add([value], [at], [f"{run}.output{index or ''}"], [None])
    random: str | None = None
    if seen.random is not None:
        random = f"random.{run}"
        extra[random] = _random_state(seen.random, call.outputs[0].device)
    refs = with_refs((call.args, call.kwargs), lambda tensor: by_id[id(tensor)])
    return (
        SceneCall(
            run=traced.run.name or run.upper(),
            function=function_path(call.func),
            args=refs[0],
            kwargs=refs[1],
            outputs=tuple(outputs),
            flags=seen.flags,
            random=random,
            kernels=Kernels((), "not looked at yet"),
            reproduced=None,
            note=witnessed.note,
        ),
        by_id,
    )


def _random_state(state: Any, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return state.cpu
    return state.cuda[device.index or 0]


def _inputs(
    session: Session, a: CopiedCall, numbers_a: dict[int, int], b: CopiedCall, numbers_b: dict[int, int]
) -> list[InputPair]:
    inputs_a, inputs_b = named_inputs(a), named_inputs(b)
    pairs: list[InputPair] = []
    for name in [*inputs_a, *(name for name in inputs_b if name not in inputs_a)]:
        mine, theirs = inputs_a.get(name), inputs_b.get(name)
        if mine is None or theirs is None:
            sharing = Sharing.of(Pairs.none("only one run has it"))
        else:
            sharing = share_input(session, a, mine, b, theirs)
        pairs.append(
            InputPair(
                name,
                None if mine is None else numbers_a[id(mine)],
                None if theirs is None else numbers_b[id(theirs)],
                sharing,
                (a.owned.get(id(mine)) if mine is not None else None)
                or (b.owned.get(id(theirs)) if theirs is not None else None),
            )
        )
    return pairs


def _place(located: Located, row: Joined) -> Location:
    divergence, op = located.divergence, row.op
    own = op.name == divergence.op
    sample = (
        divergence.sample
        if isinstance(divergence.sample, (str, int)) or divergence.sample is None
        else str(divergence.sample)
    )
    return Location(
        op=op.name, module=op.module, function=op.function, source=op.site.short, code=op.site.code,
        variable=op.site.variable, sample=sample if own else None, position=divergence.position if own else None,
        token=divergence.token if own else None, first=_first(divergence) if own else None, between=divergence.between,
        note=divergence.note,
    )  # fmt: skip


def _first(divergence: Divergence) -> tuple[int, int] | None:
    if (
        divergence.shape_a is None
        or divergence.shape_b is None
        or not divergence.index_a
        or not divergence.index_b
    ):
        return None
    flat = (
        np.ravel_multi_index(divergence.index_a, divergence.shape_a),
        np.ravel_multi_index(divergence.index_b, divergence.shape_b),
    )
    return int(flat[0]), int(flat[1])


# ---------------------------------------------------------------------- trying it


def _tried(scene: Scene) -> Scene:
    """The scene after its op was called alone here: with the kernels that ran, and whether the recorded bits came again."""
    device = torch.device(scene.machine.device)
    sides: list[SceneCall] = []
    for run in "ab":
        side = scene.side(run)
        try:
            outputs = run_side(scene, run, device)
            recorded = scene.recorded(run)
            same = len(outputs) == len(recorded) and all(
                x.shape == y.shape and x.dtype == y.dtype and bool(equal_elements(x.cpu(), y).all())
                for x, y in zip(outputs, recorded, strict=True)
            )
            sides.append(replace(side, reproduced=same, kernels=side_kernels(scene, run, device)))
        except SceneError as error:
            sides.append(replace(side, reproduced=False, note=str(error)))
    notes = list(scene.notes)
    for run, side in zip("AB", sides, strict=True):
        if not side.reproduced:
            notes.append(
                f"the op alone does not give run {run}'s recorded bits: something else took part in it"
            )
    return replace(scene, a=sides[0], b=sides[1], notes=tuple(notes))
