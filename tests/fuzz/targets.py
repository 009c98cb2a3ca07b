"""What reads files from strangers: for each, how to damage its input, and what has to hold then."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.scene.pairs import other_weights
from tests.scene.sessions import save
from torch import Tensor

from forkpoint import scene
from forkpoint.cli.options import read_prompts
from forkpoint.cli.replay import report
from forkpoint.errors import ForkpointError, InputError, SceneError
from forkpoint.models import demo, load
from forkpoint.questions.padding import padding
from forkpoint.scene.format.folder import parsed
from forkpoint.scene.format.manifest import check_header, from_manifest, storages_from
from forkpoint.scene.script.source import ScriptWriter
from forkpoint.support.sizes import parse_size

from . import damage, options, results
from .results import expect_one_line

Input = Callable[[], bool]
"""Reads one damaged input; whether it was read. Raises where something doesn't hold."""
SCENES = ("linear with bias", "setitem", "topk", "embedding", "to another dtype")
FUNCTIONS = [
    "torch.nn.functional.linear", "torch.matmul", "torch.Tensor.add", "torch.Tensor.__getitem__",
    "torch.Tensor.__setitem__", "torch.ops.aten.mm.default", "torch.Tensor.T.__get__", "torch.topk", "torch.cumsum",
    "torch.Tensor.to", "torch.where", "torch.split", "torch.softmax", "torch.Tensor.sum", "torch.stack", "torch.load",
    "os.system", "torch.ops.evil.run", "torch.Tensor.numpy", "torch", "torch.ops", "torch.Tensor.data.__get__",
    "torch.ops.aten.mm", "torch.ops.aten.mm.out", "torch.ops.bitsandbytes.none", "torch.equal", "torch.numel",
]  # fmt: skip


KNOWN = frozenset(["float", "complex", "slice", "range", "bitsandbytes", "paired", "run_b"])
"""Names that a script may have besides those in the scripts of the sound scenes."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        prepare: given an empty folder, makes what turns random numbers into an input.
        share: how many of a thousand inputs it gets.
    """

    name: str
    prepare: Callable[[Path], Callable[[random.Random], Input]]
    share: int


# --- scenes ------------------------------------------------------------------------------------------------


def scenes_in(folder: Path) -> list[Path]:
    """Sound scenes to damage."""
    for number, name in enumerate(SCENES):
        save(*other_weights(name), folder / f"{number}")
    return [folder / f"{number}" for number in range(len(SCENES))]


@dataclass(frozen=True)
class Sound:
    """A scene before it is damaged."""

    path: Path
    manifest: str
    places: list[tuple[Any, ...]]
    loaded: scene.Scene
    extra: dict[str, Tensor]

    @classmethod
    def of(cls, path: Path) -> Sound:
        manifest = (path / "scene.json").read_text(encoding="utf-8")
        extra = load_file(path / "tensors.safetensors")
        return cls(path, manifest, damage.places(json.loads(manifest)), scene.load(path), extra)

    def read(self, changed: bytes, *, whole: bool) -> scene.Scene:
        """Load the scene with another manifest; all from the disk, or the tensors from memory, which is faster."""
        if not whole:
            manifest = parsed(changed, self.path)
            check_header(manifest)
            storages = storages_from(manifest)
            if storages == self.loaded.storages:
                return from_manifest(manifest, storages, self.loaded.data, self.extra)
        (self.path / "scene.json").write_bytes(changed)
        return scene.load(self.path)


def manifests(folder: Path) -> Callable[[random.Random], Input]:
    """scene.json with values changed, or bytes."""
    sound = [Sound.of(path) for path in scenes_in(folder)]
    scripts = [ast.walk(ast.parse(ScriptWriter(one.loaded).text())) for one in sound]
    names = KNOWN.union(node.id for script in scripts for node in script if isinstance(node, ast.Name))

    def draw(rng: random.Random) -> Input:
        one = rng.choice(sound)
        if rng.random() < 0.85:
            changed = damage.damaged_json(one.manifest, one.places, FUNCTIONS, rng)
        else:
            changed = damage.damaged_bytes(one.manifest.encode(), rng)
        whole, thorough = rng.random() < 0.1, rng.random()
        return lambda: is_read(lambda: one.read(changed, whole=whole), thorough, names)

    return draw


def tensors(folder: Path) -> Callable[[random.Random], Input]:
    """tensors.safetensors or a weight, with its header changed, or bytes."""
    files = [
        (path, file, file.read_bytes())
        for path in scenes_in(folder)
        for file in sorted(path.rglob("*.safetensors"))
    ]

    def draw(rng: random.Random) -> Input:
        path, file, data = rng.choice(files)
        length = int.from_bytes(data[:8], "little")
        if rng.random() < 0.6:
            header = data[8 : 8 + length].decode()
            words = ["F8_E4M3", "F4", "BOOL", "U64", "C64", "I64", "F64", [0, 0], [0, 2**62], [2**40, 2**40]]
            text = damage.damaged_json(header, damage.places(json.loads(header)), words, rng)
            changed = len(text).to_bytes(8, "little") + text + data[8 + length :]
        else:
            changed = rng.choice((damage.damaged_bytes, damage.damaged_number))(data, rng)
        thorough = rng.random()

        def read() -> bool:
            # A new file each time: the old one may still be mapped into memory.
            (folder / "new").write_bytes(changed)
            os.replace(folder / "new", file)
            try:
                return is_read(lambda: scene.load(path), thorough)
            finally:
                (folder / "new").write_bytes(data)
                os.replace(folder / "new", file)

        return read

    return draw


def is_read(read: Callable[[], scene.Scene], thorough: float, names: frozenset[str] | None = None) -> bool:
    """Whether a scene is read; one of some is then written as a script, and one of more replayed."""
    try:
        loaded = read()
        if thorough < 0.1:
            check_script(ScriptWriter(loaded).text(), names)
        if thorough < 0.03:
            check_report(loaded)
    except SceneError as error:
        expect_one_line(error)
        return False
    return True


def check_script(text: str, names: frozenset[str] | None) -> None:
    """A script shows what it is, and nothing of the scene is code in it."""
    assert all(line.isprintable() for line in text.split("\n")), "a script with characters that can't be seen"
    tree = ast.parse(text)
    if names is not None:
        found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert found <= names, f"names in a script: {sorted(found - names)}"


def check_report(loaded: scene.Scene) -> None:
    """Nothing but what the report itself draws reaches the terminal."""
    replays = [scene.replay(loaded, "cpu")]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere, width=120, record=True, force_terminal=True)
        for part in report(loaded, replays):
            console.print(part, highlight=False, soft_wrap=False)
        shown = console.export_text(styles=True)
    plain = "".join(
        part.partition("m")[2] if number else part for number, part in enumerate(shown.split("\x1b["))
    )
    assert all(line.isprintable() for line in plain.split("\n")), f"shown as it is: {plain[:2000]!r}"


# --- other files -------------------------------------------------------------------------------------------


def prompts(folder: Path) -> Callable[[random.Random], Input]:
    """A file of prompts."""
    sound = "Hello\n\n I've got a lovely bunch of coconuts\n日本語\r\nlast".encode()

    def draw(rng: random.Random) -> Input:
        changed = damage.damaged_bytes(sound, rng)

        def read() -> bool:
            (folder / "prompts").write_bytes(changed)
            try:
                found = read_prompts(None, folder / "prompts")
            except InputError as error:
                expect_one_line(error)
                return False
            assert found
            assert all(map(str.strip, found))
            return True

        return read

    return draw


def sizes(_: Path) -> Callable[[random.Random], Input]:
    """The text of a size."""

    def draw(rng: random.Random) -> Input:
        text = rng.choice(("500MB", "1.5 GiB", "4096", "2TB"))
        changed = damage.damaged_bytes(text.encode(), rng).decode(
            "utf-8", rng.choice(("replace", "surrogateescape"))
        )

        def read() -> bool:
            try:
                assert parse_size(changed) >= 1
            except InputError as error:
                expect_one_line(error)
                return False
            return True

        return read

    return draw


def models(folder: Path) -> Callable[[random.Random], Input]:
    """A model's folder with a file damaged, or a GGUF file; what is read is padded and compared."""
    torch.manual_seed(0)
    sound = folder / "sound"
    demo.save_random_llama(str(sound))
    pickled = folder / "pickled"  # the same with PyTorch's own file
    shutil.copytree(sound, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    marker = folder / "ran"
    for path in (sound, pickled):
        (path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    ggufs = _gguf(folder)
    files = [
        path for where in (sound, pickled) for path in sorted(where.iterdir()) if path.suffix != ".py"
    ] + ggufs

    def draw(rng: random.Random) -> Input:
        file = rng.choice(files)
        changed = _damaged_model_file(file, rng)
        thorough = rng.random() < 0.3

        def read() -> bool:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder / "damaged")
            shutil.copytree(file.parent, folder / "damaged")
            (folder / "damaged" / file.name).write_bytes(changed)
            name = folder / "damaged" / file.name if file in ggufs else folder / "damaged"
            try:
                model, tokenizer = load(name)
                if thorough:
                    _padded(model, tokenizer)
            except ForkpointError as error:
                expect_one_line(error)
                return False
            finally:
                assert not marker.exists(), "code of the model's was run"
            return True

        return read

    return draw


def _damaged_model_file(file: Path, rng: random.Random) -> bytes:
    data = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.8:
        text = data.decode()
        words = [
            "LlamaForCausalLM", "GPT2LMHeadModel", "llama", "t5", "evil.Model", "evil", {"AutoConfig": "evil.Config"},
            {"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}, "evil.py", "../evil.py",
            "kernels-community/evil", "torch.load", "{{ x.__class__ }}", "float32", "bfloat16", "bitsandbytes", "gelu", "relu",
        ]  # fmt: skip
        if rng.random() < 0.1:  # where code is named
            tree = json.loads(text)
            tree[
                rng.choice(
                    ("auto_map", "architectures", "custom_pipelines", "attn_implementation", "model_type")
                )
            ] = rng.choice(words)
            text = json.dumps(tree)
        return damage.damaged_json(text, damage.places(json.loads(text)), words, rng)
    return rng.choice((damage.damaged_bytes, damage.damaged_number))(data, rng)


def _padded(model: Any, tokenizer: Any) -> None:
    """Compare a prompt with the same one padded; what the model or its tokenizer raises is its own matter."""
    try:
        padding(model, tokenizer, "Hello", pad_to=8, probes=False)
    except ForkpointError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(where).is_relative_to(Path(demo.__file__).parent):
            raise


def _gguf(folder: Path) -> list[Path]:
    """A GGUF file in a folder of its own: a Llama of one layer."""
    import gguf
    import numpy as np

    (folder / "gguf").mkdir()
    path = folder / "gguf" / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    words = ["<unk>", "<s>", "</s>", *map(chr, range(97, 123))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3] + [1] * 26)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    sizes = {"token_embd": (len(words), 16), "output_norm": (16,), "output": (len(words), 16)}
    layer = {
        "attn_norm": (16,),
        "ffn_norm": (16,),
        "ffn_gate": (32, 16),
        "ffn_up": (32, 16),
        "ffn_down": (16, 32),
    }
    layer |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (16, 16))
    sizes |= {f"blk.0.{name}": size for name, size in layer.items()}
    for name, size in sizes.items():
        writer.add_tensor(f"{name}.weight", np.ones(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path]


TARGETS = (
    Target("manifests", manifests, 300),
    Target("tensors", tensors, 180),
    Target("results", results.results, 200),
    Target("traces", results.traces, 20),
    Target("records", results.records, 100),
    Target("configurations", options.configurations, 100),
    Target("prompts", prompts, 59),
    Target("sizes", sizes, 40),
    Target("models", models, 1),
)
