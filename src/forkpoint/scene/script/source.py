"""The source of a scene's script, part by part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.scene.format import flags
from forkpoint.scene.format.arguments import Ref, short
from forkpoint.scene.format.folder import TENSORS
from forkpoint.scene.format.records import Scene, SceneCall
from forkpoint.scene.format.sharing import Sharing, as_indexing, index_text, repeat_text
from forkpoint.scene.format.tensors import stored_dtype
from forkpoint.scene.replaying.calling import run_result
from forkpoint.scene.replaying.exactness import computes_in_float64
from forkpoint.scene.script import heading, names, template
from forkpoint.scene.script.expressions import call_source, mentions_device, quoted
from forkpoint.scene.script.synthetic import Copy, Recipe

WIDTH = 110
MAX_RUNS = 64
"""Most runs of shared elements that are written into a script without a folder."""
_IN_PLACE = "in place"


class ScriptWriter:
    """Writes the source of one script.

    Args:
        scene: what it shows.
        recipe: how the data are made; None where they are read from the scene's folder.
        seed: for the recipe.
        aligned: make memory begin where it began, relative to an aligned address.
    """

    def __init__(
        self, scene: Scene, *, recipe: Recipe | None = None, seed: int = 0, aligned: bool = False
    ) -> None:
        self._scene = scene
        self._recipe = recipe
        self._seed = seed
        self._names = {run: names.tensors(scene, run) for run in "ab"}
        self._keys = names.storages(scene, self._names)
        self._leads = names.leads(scene, self._keys) if aligned else {}
        self._on_cpu = names.staying(scene, self._keys)
        self._paired = False
        sides = (scene.a, scene.b)
        self._random = any(side.random for side in sides)
        self._device = any(mentions_device((s.args, s.kwargs)) or s.flags.get(flags.AUTOCAST) for s in sides)
        floating = all(scene.recorded(run)[scene.output].dtype.is_floating_point for run in "ab")
        self._wide = floating and not self._random and all(computes_in_float64(scene, run) for run in "ab")

    def text(self) -> str:
        """The whole script."""
        head = heading.head(self._scene, synthetic=self._recipe is not None)
        shared = self._shared()  # says whether `paired` is needed
        parts = [
            f'"""{head}"""\n\n{self._imports()}\n\n{self._settings()}\n{self._data()}',
            self._specs(),
            template.PAIRED.strip() if self._paired else "",
            shared,
            *self._calls(),
            self._helpers(),
            self._check(),
            self._end(),
        ]
        text = parts[0]
        for part in filter(None, parts[1:]):
            after_function = text.rstrip().split("\n")[-1].startswith("    ")
            text += ("\n\n\n" if part.startswith("def ") or after_function else "\n\n") + part
        return text + "\n"

    # ------------------------------------------------------------------ the head

    def _imports(self) -> str:
        packed = self._recipe is not None and any(f.kind == "packed" for f in self._recipe.fillings.values())
        environment = {k: v for k, v in self._scene.a.flags.items() if k in flags.ENVIRONMENT}
        standard = ["base64", *(["os"] if environment else []), "sys", "zlib"] if packed else ["sys"]
        standard = sorted({*standard, *(["os"] if environment else [])})
        lines = [f"import {name}" for name in standard] + [""]
        if environment:
            lines += [*(f"os.environ[{quoted(k)}] = {quoted(str(v))}" for k, v in environment.items()), ""]
        lines += [f"import {name}" for name in sorted(["torch", *heading.packages(self._scene)])]
        return "\n".join(
            [*lines, *(["from safetensors.torch import load_file"] if self._recipe is None else [])]
        )

    def _settings(self) -> str:
        return "\n".join(["torch.set_grad_enabled(False)", *flags.statements(self._scene.a.flags)])

    # ------------------------------------------------------------------ data

    def _data(self) -> str:
        if self._recipe is not None:
            lines = [f"torch.manual_seed({self._seed})", "data = {"]
            lines += [
                f"    {quoted(self._keys[i])}: {filling.code},"
                for i, filling in self._recipe.fillings.items()
            ]
            return "\n".join([*lines, "}"])
        lines = [
            "if len(sys.argv) != 2:",
            '    sys.exit(f"usage: python {sys.argv[0]} SCENE, the folder that forkpoint saved")',
            "folder = sys.argv[1]",
            f'data = load_file(f"{{folder}}/{TENSORS}")',
        ]
        for number, key in self._keys.items():
            storage, source = self._scene.storages[number], f"data[{quoted(key)}]"
            if storage.file != TENSORS:
                lines.append(f'{source} = load_file(f"{{folder}}/{storage.file}")[{quoted(storage.key)}]')
            if stored_dtype(storage.dtype) != storage.dtype:
                lines.append(f"{source} = {source}.view(torch.{short(storage.dtype)})")
        return "\n".join(lines)

    def _specs(self) -> str:
        lines = ["# Each tensor: its storage, shape, strides and offset."]
        for run in "ab":
            lines.append(f"{run.upper()} = {{")
            lines += [
                f"    {quoted(name)}: {self._spec(number)}," for number, name in self._names[run].items()
            ]
            lines.append("}")
        if self._recipe is None:
            specs = [self._spec(self._scene.side(run).outputs[self._scene.output]) for run in "ab"]
            lines.append(f"RECORDED = [{', '.join(specs)}]")
        if self._leads:
            lines.append(
                f"LEADS = {_dict(self._leads)}  # elements after an aligned address at which memory began"
            )
        if self._on_cpu:
            lines.append(f"ON_CPU = {{{', '.join(map(quoted, self._on_cpu))}}}")
        return "\n".join(lines)

    def _spec(self, number: int) -> str:
        layout = self._scene.layouts[number]
        return f"({quoted(self._keys[layout.storage])}, {layout.shape}, {layout.stride}, {layout.offset})"

    # ------------------------------------------------------------------ what is shared

    def _shared(self) -> str:
        scene = self._scene
        lines = ["# What both runs have, in one order.", "SHARED = {"]
        for index, pair in enumerate(scene.inputs):
            if pair.a is not None and pair.b is not None and len(pair.sharing):
                shapes = scene.layouts[pair.a].shape, scene.layouts[pair.b].shape
                taking = self._taking(pair.sharing, shapes, f"alignment.input.{index}")
                lines.append(f"    {quoted(self._names['a'][pair.a])}: {taking},")
        a, b = (scene.layouts[scene.side(run).outputs[scene.output]].shape for run in "ab")
        lines.append(f'    "output": {self._taking(scene.sharing, (a, b), "alignment.output")},')
        return "\n".join([*lines, "}"])

    def _taking(self, sharing: Sharing, shapes: tuple[Any, Any], key: str) -> str:
        index = as_indexing(sharing, *shapes)
        if index is not None:
            a = f"a{repeat_text(sharing.repeat_a)}{index_text(index[0])}"
            return f"lambda a, b: ({a}, b{repeat_text(sharing.repeat_b)}{index_text(index[1])})"
        self._paired = True
        if self._recipe is None:
            return f"paired(data[{quoted(key)}].tolist())"
        if len(sharing.runs) > MAX_RUNS:
            raise SceneError("shared elements that lie scattered", "blocks of them for --synthetic")
        return f"paired({sharing.runs.tolist()})"

    # ------------------------------------------------------------------ calls

    def _calls(self) -> list[str]:
        a, b = self._call("a"), self._call("b")
        return [a, b] if a != b else [a, "run_b = run_a"]

    def _call(self, run: str) -> str:
        side, names = self._scene.side(run), self._names[run]
        call = call_source(side.function, side.args, side.kwargs, lambda number: names[number])
        path = self._path(run)
        if path == _IN_PLACE:
            body = [*call, f"return t[{quoted(names[side.args[0].index])}]"]
        else:
            body = [f"return {call[0]}", *call[1:]]
            body[-1] += path
        autocast = side.flags.get(flags.AUTOCAST)
        if isinstance(autocast, str):
            how = f"torch.{autocast.split()[1]}, enabled=wide is None, cache_enabled=False"
            body = [f'with torch.autocast(t["device"], {how}):', *(f"    {line}" for line in body)]
        body = [*self._before(side), *body]
        return "\n".join(
            [f"def run_{run if self._differ() else 'a'}(t, wide=None):", *(f"    {line}" for line in body)]
        )

    def _differ(self) -> bool:
        a, b = self._scene.a, self._scene.b
        mine, theirs = ([n[i] for i in s.tensors] for n, s in ((self._names["a"], a), (self._names["b"], b)))
        same = (a.function, a.flags, len(a.outputs)) == (
            b.function,
            b.flags,
            len(b.outputs),
        ) and not self._random
        calls = [
            call_source(s.function, s.args, s.kwargs, lambda i, n=self._names[run]: n[i])
            for run, s in (("a", a), ("b", b))
        ]
        return not (same and mine == theirs and calls[0] == calls[1])

    def _before(self, side: SceneCall) -> list[str]:
        """Statements before one run's call: its random state, and settings that only it had."""
        lines: list[str] = []
        if side.random is not None:
            setter = (
                "torch.cuda.set_rng_state" if self._scene.machine.device == "cuda" else "torch.set_rng_state"
            )
            lines.append(f"{setter}(data[{quoted(side.random)}])  # as it was before the call")
        own = flags.statements(side.flags)
        return lines + (own if own != flags.statements(self._scene.a.flags) else [])

    def _path(self, run: str) -> str:
        """How to get at the output from what the function returns."""
        side, output = self._scene.side(run), self._scene.output
        result = run_result(self._scene, run, torch.device("cpu"))
        if result is None and side.args and isinstance(side.args[0], Ref):
            return _IN_PLACE
        paths = _paths(result)
        if output >= len(paths):
            raise SceneError(f"{side.function} returned {len(paths)} tensors", f"at least {output + 1}")
        return paths[output]

    # ------------------------------------------------------------------ the rest

    def _helpers(self) -> str:
        view = template.VIEW_LEAD if self._leads else template.VIEW
        source = (
            "torch.cat([data[key].new_zeros(LEADS.get(key, 0)), data[key]])" if self._leads else "data[key]"
        )
        device = '"cpu" if key in ON_CPU else device' if self._on_cpu else "device"
        body = template.TENSORS.replace("SOURCE", source).replace("DEVICE", device)
        body = body.replace("LEFT", "[LEADS.get(key, 0) :]" if self._leads else "")
        body = body.replace("MORE", ' | {"device": device}' if self._device else "")
        text = f"{view}\n\n\n{body}"
        if self._recipe is not None and self._recipe.copies:
            lines = [self._copy_line(copy) for copy in self._recipe.copies]
            text += "\n\n\n" + "\n".join(["# What both runs have is equal in both.", *lines])
        return f"{text}\n\n\n{template.SAME}"

    def _copy_line(self, copy: Copy) -> str:
        source, target = ("a", "b") if copy.from_a else ("b", "a")
        left = f"view(data, {target.upper()}[{quoted(self._names[target][copy.target])}])"
        right = f"view(data, {source.upper()}[{quoted(self._names[source][copy.source])}])"
        right += repeat_text(copy.repeat) + index_text(copy.at_source)
        return f"{left}{index_text(copy.at_target) or '[...]'} = {right}"

    def _check(self) -> str:
        recorded = self._recipe is None
        parts = [
            template.CHECK_BEGIN,
            *([template.CHECK_RECORDED] if recorded else []),
            template.CHECK_OUTPUTS,
        ]
        if self._scene.recorded("a")[self._scene.output].is_complex():
            parts[-1] = parts[-1].replace(
                "out.cpu().flatten()", "torch.view_as_real(out.cpu().resolve_conj()).flatten()"
            )
        parts += [template.CHECK_FLOAT64] if self._wide else []
        return "\n".join(
            [
                *(part.strip("\n") for part in parts),
                f"    return {'all(repeats)' if recorded else 'len(differ) > 0'}",
            ]
        )

    def _end(self) -> str:
        device = self._scene.machine.device
        what = "The recorded bits" if self._recipe is None else "Other bits in the two runs"
        return template.END.strip().replace("WHAT", what).replace("HOME", device)


def _paths(result: Any, path: str = "") -> list[str]:
    """The expression for each tensor in a result, in the order in which a scene numbers them."""
    if isinstance(result, Tensor):
        return [path]
    if isinstance(result, (tuple, list)):
        return [p for i, item in enumerate(result) for p in _paths(item, f"{path}[{i}]")]
    if isinstance(result, dict):
        return [p for key, item in result.items() for p in _paths(item, f"{path}[{key!r}]")]
    return []


def _dict(values: dict[str, int]) -> str:
    return "{" + ", ".join(f"{quoted(key)}: {value}" for key, value in values.items()) + "}"
