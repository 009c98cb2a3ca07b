"""The JSON of a scene's manifest: written and checked here, field by field.

Nothing that is read from a manifest is used before it has been checked; whatever doesn't fit raises a
`SceneError` that says what was found and what was expected.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.scene.format import flags
from forkpoint.scene.format.arguments import dtype_named, from_json, refs_in, short, to_json
from forkpoint.scene.format.functions import resolve_function
from forkpoint.scene.format.kernels import Kernels
from forkpoint.scene.format.machine import Machine
from forkpoint.scene.format.parts import Inside, inside_from_json
from forkpoint.scene.format.records import InputPair, Location, Scene, SceneCall
from forkpoint.scene.format.sharing import Sharing
from forkpoint.scene.format.tensors import Storage, TensorLayout, check_layout

FORMAT = "forkpoint scene"
VERSION = 1
"""Version of the format; its history is in docs/scene-format.md."""
_FILE = re.compile(r"tensors\.safetensors|weights/[0-9a-f]{64}\.safetensors")


# ---------------------------------------------------------------------- writing


def to_manifest(scene: Scene) -> dict[str, Any]:
    """The manifest, as JSON; alignments and tensors are in the other files."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "place": _plain(asdict(scene.place)),
        "output": scene.output,
        "runs": {"a": _side(scene.a), "b": _side(scene.b)},
        "inputs": [
            {
                "name": i.name,
                "a": i.a,
                "b": i.b,
                "parameter": i.parameter,
                "reason": i.sharing.reason,
                "repeat_a": _plain(i.sharing.repeat_a),
                "repeat_b": _plain(i.sharing.repeat_b),
            }
            for i in scene.inputs
        ],
        "tensors": [_plain(asdict(layout)) for layout in scene.layouts],
        "storages": [
            {"file": s.file, "key": s.key, "dtype": short(s.dtype), "elements": s.elements}
            for s in scene.storages
        ],
        "machine": asdict(scene.machine),
        "versions": scene.versions,
        "notes": list(scene.notes),
        "inside": None if scene.inside is None else _plain(asdict(scene.inside)),
    }


def _side(side: SceneCall) -> dict[str, Any]:
    return {
        "run": side.run,
        "function": side.function,
        "args": [to_json(value) for value in side.args],
        "kwargs": {name: to_json(value) for name, value in side.kwargs.items()},
        "outputs": list(side.outputs),
        "flags": side.flags,
        "random": side.random,
        "kernels": list(side.kernels.names),
        "kernels_unknown": side.kernels.reason,
        "reproduced": side.reproduced,
        "note": side.note,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


# ---------------------------------------------------------------------- reading


def check_header(manifest: Any) -> None:
    """The format and its version, before anything else is looked at.

    Raises:
        SceneError: not a scene, or one of a later version.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SceneError("scene.json is no manifest of a scene", f'an object with "format": "{FORMAT}"')
    if manifest.get("version") != VERSION:
        raise SceneError(
            f"a scene of version {str(manifest.get('version'))[:40]}",
            f"version {VERSION}",
            "a later forkpoint may read it",
        )


def storages_from(manifest: dict[str, Any]) -> tuple[Storage, ...]:
    """What the tensors' files should hold.

    Raises:
        SceneError: not as `to_manifest` writes it.
    """
    return tuple(_storage(_Fields(entry, "storage")) for entry in _list(manifest, "storages"))


def from_manifest(
    manifest: dict[str, Any],
    storages: tuple[Storage, ...],
    data: tuple[Tensor, ...],
    extra: dict[str, Tensor],
    trusted: tuple[str, ...] = (),
) -> Scene:
    """The scene of a manifest and the tensors that go with it.

    Args:
        manifest: the JSON.
        storages: as `storages_from` gave them.
        data: their contents.
        extra: what the tensors' file holds besides the storages: alignments and random states.
        trusted: namespaces of operators that may be called besides torch's own.

    Raises:
        SceneError: anything that isn't as `to_manifest` writes it.
    """
    layouts = tuple(_layout(_Fields(entry, "tensor"), storages) for entry in _list(manifest, "tensors"))
    runs = _Fields(_object(manifest, "runs"), "runs")
    a, b = (_read_side(_Fields(runs.object(run), f"run {run}"), len(layouts), trusted, extra) for run in "ab")
    top = _Fields(manifest, "manifest")
    output = top.number("output")
    if output >= len(a.outputs) or output >= len(b.outputs):
        raise SceneError(f"output {output}", f"one of {min(len(a.outputs), len(b.outputs))} outputs")
    sharing = Sharing(_extra(extra, "alignment.output"))
    sharing.check(layouts[a.outputs[output]].shape, layouts[b.outputs[output]].shape, "the output")
    if not len(sharing):
        raise SceneError("an alignment of the output over no element", "at least one shared element")
    return Scene(
        place=_place(_Fields(top.object("place"), "place")),
        a=a,
        b=b,
        output=output,
        sharing=sharing,
        inputs=tuple(
            _input(_Fields(entry, "input"), index, (a, b), layouts, extra)
            for index, entry in enumerate(_list(manifest, "inputs"))
        ),
        layouts=layouts,
        storages=storages,
        machine=_machine(_Fields(top.object("machine"), "machine")),
        versions=top.texts("versions"),
        notes=tuple(top.strings("notes")),
        inside=None if manifest.get("inside") is None else _inside(top.object("inside")),
        data=data,
        extra={key: value for key, value in extra.items() if key.startswith("random.")},
        trusted=trusted,
    )


class _Fields:
    """The fields of an object of the manifest, each with its type."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SceneError(f"a {where} that is {_shown(value)}", "an object")
        self._value: dict[str, Any] = value
        self._where = where

    def _get(self, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self._value.get(name)
        if not fits(value):
            raise SceneError(f"{self._where}: {name} is {_shown(value)}", expected)
        return value

    def text(self, name: str) -> str:
        return self._get(name, lambda v: isinstance(v, str), "text")

    def text_or_none(self, name: str) -> str | None:
        return self._get(name, lambda v: v is None or isinstance(v, str), "text or null")

    def number(self, name: str) -> int:
        return self._get(name, lambda v: type(v) is int and 0 <= v < 1 << 60, "a number from 0")

    def number_or_none(self, name: str) -> int | None:
        return None if self._value.get(name) is None else self.number(name)

    def numbers(self, name: str) -> list[int]:
        return self._get(
            name,
            lambda v: (
                isinstance(v, list) and len(v) <= 4096 and all(type(n) is int and 0 <= n < 1 << 60 for n in v)
            ),
            "a list of numbers from 0",
        )

    def strings(self, name: str) -> list[str]:
        return self._get(
            name, lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v), "a list of text"
        )

    def object(self, name: str) -> dict[str, Any]:
        return self._get(name, lambda v: isinstance(v, dict), "an object")

    def texts(self, name: str) -> dict[str, str]:
        return self._get(
            name,
            lambda v: isinstance(v, dict) and all(isinstance(s, str) for s in v.values()),
            "an object of text",
        )

    def list(self, name: str) -> list[Any]:
        return self._get(name, lambda v: isinstance(v, list), "a list")

    def truth_or_none(self, name: str) -> bool | None:
        return self._get(name, lambda v: v is None or isinstance(v, bool), "true, false or null")

    def pair(self, name: str) -> tuple[int, int] | None:
        if self._value.get(name) is None:
            return None
        numbers = self.numbers(name)
        if len(numbers) != 2:
            raise SceneError(f"{self._where}: {name} is {_shown(numbers)}", "two numbers")
        return numbers[0], numbers[1]

    def any(self, name: str) -> Any:
        return self._value.get(name)


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def _list(manifest: dict[str, Any], name: str) -> Sequence[Any]:
    return _Fields(manifest, "manifest").list(name)


def _object(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return _Fields(manifest, "manifest").object(name)


def _storage(fields: _Fields) -> Storage:
    file = fields.text("file")
    if not _FILE.fullmatch(file):
        raise SceneError(
            f"tensors in the file {file[:80]!r}", "tensors.safetensors or weights/HASH.safetensors"
        )
    return Storage(file, fields.text("key"), dtype_named(fields.text("dtype")), fields.number("elements"))


def _layout(fields: _Fields, storages: tuple[Storage, ...]) -> TensorLayout:
    device = fields.text("device")
    if device not in ("cpu", "cuda", "mps", "xpu"):
        raise SceneError(f"a tensor on the device {device[:40]!r}", "cpu, cuda, mps or xpu")
    alignment = fields.number("alignment")
    if alignment >= 4096:
        raise SceneError(f"an alignment of {alignment} bytes", "less than 4096")
    layout = TensorLayout(
        fields.number("storage"),
        tuple(fields.numbers("shape")),
        tuple(fields.numbers("stride")),
        fields.number("offset"),
        device,
        alignment,
        fields.text_or_none("parameter"),
    )
    check_layout(layout, storages)
    return layout


def _read_side(
    fields: _Fields, tensors: int, trusted: tuple[str, ...], extra: dict[str, Tensor]
) -> SceneCall:
    function = fields.text("function")
    resolve_function(function, trusted)
    args = tuple(from_json(value) for value in fields.list("args"))
    kwargs = {name: from_json(value) for name, value in fields.object("kwargs").items()}
    if not all(name.isidentifier() and not keyword.iskeyword(name) for name in kwargs):
        raise SceneError(f"the keyword arguments {sorted(kwargs)}", "names of parameters")
    outputs = tuple(fields.numbers("outputs"))
    for number in (*refs_in((args, kwargs)), *outputs):
        if number >= tensors:
            raise SceneError(f"a reference to tensor {number}", f"one of the {tensors} tensors")
    random = fields.text_or_none("random")
    if random is not None:
        state = _extra(extra, random)
        if not random.startswith("random.") or state.dtype != torch.uint8 or state.dim() != 1:
            raise SceneError(f"a random state of {state.dtype}", "bytes")
    try:
        settings = flags.check(fields.object("flags"))
    except ValueError as error:
        raise SceneError(f"run {fields.text('run')}: {error}", "settings as forkpoint writes them") from None
    return SceneCall(
        run=fields.text("run"),
        function=function,
        args=args,
        kwargs=kwargs,
        outputs=outputs,
        flags=settings,
        random=random,
        kernels=Kernels(tuple(fields.strings("kernels")), fields.text("kernels_unknown")),
        reproduced=fields.truth_or_none("reproduced"),
        note=fields.text("note"),
    )


def _input(
    fields: _Fields,
    index: int,
    sides: tuple[SceneCall, SceneCall],
    layouts: tuple[TensorLayout, ...],
    extra: dict[str, Tensor],
) -> InputPair:
    a, b = fields.number_or_none("a"), fields.number_or_none("b")
    for number, side in zip((a, b), sides, strict=True):
        if number is not None and number not in side.tensors:
            raise SceneError(f"an input that is tensor {number}", f"one that goes into {side.function}")
    name, reason = fields.text("name"), fields.text("reason")
    sharing = Sharing(torch.zeros((0, 3), dtype=torch.int64), reason)
    if a is not None and b is not None:
        sharing = Sharing(
            _extra(extra, f"alignment.input.{index}"),
            reason,
            fields.pair("repeat_a"),
            fields.pair("repeat_b"),
        )
        sharing.check(layouts[a].shape, layouts[b].shape, f"the input {name}")
    return InputPair(name, a, b, sharing, fields.text_or_none("parameter"))


def _place(fields: _Fields) -> Location:
    sample = fields.any("sample")
    if not (sample is None or isinstance(sample, (str, int))):
        raise SceneError(f"place: sample is {_shown(sample)}", "text or a number")
    return Location(
        op=fields.text("op"),
        module=fields.text("module"),
        function=fields.text("function"),
        source=fields.text("source"),
        code=fields.text("code"),
        variable=fields.text_or_none("variable"),
        sample=sample,
        position=fields.number_or_none("position"),
        token=fields.text_or_none("token"),
        first=fields.pair("first"),
        between=tuple(fields.strings("between")),
        note=fields.text("note"),
    )


def _machine(fields: _Fields) -> Machine:
    device = fields.text("device")
    if device not in ("cpu", "cuda", "mps", "xpu"):
        raise SceneError(f"a scene of the device {device[:40]!r}", "cpu, cuda, mps or xpu")
    return Machine(
        device, fields.text("name"), fields.text("capability"), fields.text("system"),
        fields.texts("libraries"),
    )  # fmt: skip


def _inside(value: dict[str, Any]) -> Inside:
    try:
        return inside_from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise SceneError(f"inside: {type(error).__name__} {error}", "what forkpoint writes there") from None


def _extra(extra: dict[str, Tensor], key: str) -> Tensor:
    if key not in extra:
        raise SceneError(
            f"no {key[:80]!r} in tensors.safetensors", "the alignment that belongs to the manifest"
        )
    return extra[key]
