"""Scenes that were damaged, or made to harm: one clear error each."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from forkpoint import scene
from forkpoint.cli import main
from forkpoint.errors import SceneError
from forkpoint.scene.format import folder as folder_module
from forkpoint.scene.script import script as script_module
from forkpoint.scene.script.expressions import expression
from forkpoint.scene.script.script import Script, scene_script
from forkpoint.scene.script.source import ScriptWriter

from .pairs import other_weights
from .sessions import save


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sound") / "scene"
    save(*other_weights("linear with bias"), directory)
    return directory


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    shutil.copytree(sound, tmp_path / "scene")
    return tmp_path / "scene"


def change(folder: Path, edit) -> None:
    path = folder / "scene.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def refused(folder: Path) -> str:
    with pytest.raises(SceneError) as caught:
        scene.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_the_sound_one(folder):
    assert scene.replay(scene.load(folder)).reproduces


# --- the manifest ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON"),
        ("scene", "is not JSON"),
        ('{"format": "forkpoint scene"', "is not JSON"),
        ("[1]", "no manifest of a scene"),
        ("{}", "no manifest of a scene"),
        ('{"format": "forkpoint scene", "version": NaN}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\ud800".encode("utf-16", "surrogatepass"), "is not JSON"),
    ],
    ids=["empty", "a word", "cut off", "a list", "an object", "NaN", "deep", "not UTF-8"],
)
def test_no_manifest(folder, text, complaint):
    (folder / "scene.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert complaint in refused(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_version(folder, version):
    change(folder, lambda m: m.update(version=version))
    assert refused(folder).startswith(f"a scene of version {version}; expected version 1")


def first_tensor(manifest) -> dict:
    return manifest["tensors"][0]


EDITS = {
    "path upwards": (lambda m: m["storages"][0].update(file="../weights.safetensors"), "tensors in the file '../weights"),
    "absolute path": (lambda m: m["storages"][0].update(file="/etc/passwd"), "tensors in the file '/etc/passwd'"),
    "path within": (lambda m: m["storages"][0].update(file="weights/../tensors.safetensors"), "tensors in the file"),
    "path with a newline": (lambda m: m["storages"][0].update(file="tensors.safetensors\n"), "tensors in the file"),
    "missing weight": (lambda m: m["storages"][0].update(file=f"weights/{'0' * 64}.safetensors"), "no weights/0000"),
    "other dtype": (lambda m: m["storages"][0].update(dtype="int32"), "is F32; expected int32, as scene.json says"),
    "no dtype": (lambda m: m["storages"][0].update(dtype="load"), "the dtype 'load'"),
    "huge storage": (lambda m: m["storages"][0].update(elements=10**15), "elements; expected [1000000000000000]"),
    "negative storage": (lambda m: m["storages"][0].update(elements=-1), "elements is -1; expected a number from 0"),
    "fractional storage": (lambda m: m["storages"][0].update(elements=1.5), "elements is 1.5"),
    "unknown key": (lambda m: m["storages"][0].update(key="none"), "no tensor 'none' in"),
    "huge tensor": (lambda m: first_tensor(m).update(shape=[1 << 40, 1 << 19], stride=[0, 0]), "elements"),
    "long tensor": (lambda m: first_tensor(m).update(shape=[1000], stride=[1]), "that ends at element 1,000"),
    "offset": (lambda m: first_tensor(m).update(offset=1 << 50), "that ends at element"),
    "negative stride": (lambda m: first_tensor(m).update(stride=[-1] * len(first_tensor(m)["shape"])), "stride is [-1"),
    "no stride": (lambda m: first_tensor(m).pop("stride"), "tensor: stride is missing"),
    "other storage": (lambda m: first_tensor(m).update(storage=99), "a tensor in storage 99"),
    "device": (lambda m: first_tensor(m).update(device="meta"), "a tensor on the device 'meta'"),
    "alignment": (lambda m: first_tensor(m).update(alignment=1 << 40), "an alignment of"),
    "function": (lambda m: m["runs"]["a"].update(function="torch.load"), "the function 'torch.load'"),
    "other function": (lambda m: m["runs"]["b"].update(function="os.system"), "the function 'os.system'"),
    "operator": (lambda m: m["runs"]["b"].update(function="torch.ops.evil.run"), "the operator torch.ops.evil.run"),
    "no function": (lambda m: m["runs"]["a"].update(function=None), "run a: function is missing"),
    "reference": (lambda m: m["runs"]["a"].update(args=[{"tensor": 99}]), "a reference to tensor 99"),
    "argument": (lambda m: m["runs"]["a"].update(args=[{"call": "x"}]), "the argument"),
    "keyword": (lambda m: m["runs"]["a"].update(kwargs={"x=1, **os": 1}), "the keyword arguments"),
    "outputs": (lambda m: m["runs"]["a"].update(outputs=[]), "output 0; expected one of 0 outputs"),
    "output": (lambda m: m.update(output=7), "output 7; expected one of 1 outputs"),
    "flag": (lambda m: m["runs"]["a"]["flags"].update(threads="all"), "the setting threads is 'all'"),
    "threads": (lambda m: m["runs"]["a"]["flags"].update(threads=10**9), "1000000000 threads"),
    "flag of code": (
        lambda m: m["runs"]["a"]["flags"].update(default_dtype="float32)\nimport os\nprint(1"), "the setting default_dtype"
    ),
    "autocast of code": (lambda m: m["runs"]["a"]["flags"].update(autocast="cpu x"), "the setting autocast"),
    "random state": (lambda m: m["runs"]["a"].update(random="alignment.output"), "a random state"),
    "no random state": (lambda m: m["runs"]["a"].update(random="random.z"), "no 'random.z'"),
    "machine": (lambda m: m["machine"].update(device='cpu": 1}; import os #'), "a scene of the device"),
    "no runs": (lambda m: m.pop("runs"), "manifest: runs is missing"),
    "runs": (lambda m: m.update(runs=[1, 2]), "manifest: runs is [1, 2]; expected an object"),
    "input": (lambda m: m["inputs"][0].update(a=99), "an input that is tensor 99"),
    "repeated": (lambda m: m["inputs"][0].update(repeat_a=[0, 1 << 40]), "repeated"),
    "inside": (lambda m: m.update(inside={"summary": "x"}), "inside: KeyError"),
    "place": (lambda m: m["place"].update(sample=[1]), "place: sample is [1]"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_a_changed_manifest(folder, name):
    edit, complaint = EDITS[name]
    change(folder, edit)
    assert complaint in refused(folder)


def test_a_manifest_without_end(folder, monkeypatch):
    monkeypatch.setattr(folder_module, "MAX_MANIFEST", 100)
    assert "expected at most 100" in refused(folder)


# --- the tensors -------------------------------------------------------------------------------------------


def weight(folder: Path) -> Path:
    return next((folder / "weights").iterdir())


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_tensors(folder, keep):
    for path in (folder / "tensors.safetensors", weight(folder)):
        whole = path.read_bytes()
        path.write_bytes(whole[:keep])
        assert "expected a whole safetensors file (save the scene again)" in refused(folder)
        path.write_bytes(whole)


def test_a_header_that_declares_too_much(folder):
    path = folder / "tensors.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = next(key for key in header if key.startswith("a."))
    header[name]["shape"] = [1 << 50]
    header[name]["data_offsets"] = [0, 1 << 52]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert "expected a whole safetensors file" in refused(folder)
    path.write_bytes((1 << 62).to_bytes(8, "little") + whole[8:])
    assert "expected a whole safetensors file" in refused(folder)


def rewrite(path: Path, edit) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_a_changed_dtype(folder):
    def narrow(tensors):
        tensors["a.input"] = tensors["a.input"].half()

    rewrite(folder / "tensors.safetensors", narrow)
    assert "a.input in tensors.safetensors is F16; expected float32" in refused(folder)


def test_a_changed_weight(folder):
    rewrite(weight(folder), lambda tensors: tensors["data"].add_(1))
    assert "doesn't hold what its name says" in refused(folder)


def test_a_changed_value_is_noticed_by_the_replay(folder):
    rewrite(folder / "tensors.safetensors", lambda tensors: tensors["a.output"].add_(1))
    found = scene.replay(scene.load(folder))
    assert (found.recorded_a.equal, found.recorded_b.equal, found.reproduces) == (False, True, False)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("alignment.output", torch.tensor([[0, 0, 1 << 40]]), "an alignment of the output up to elements"),
        ("alignment.output", torch.tensor([[-5, 0, 1]]), "numbers out of range"),
        ("alignment.output", torch.zeros(0, 3, dtype=torch.int64), "over no element"),
        ("alignment.output", torch.zeros(3, dtype=torch.float32), "[n, 3] of int64"),
        ("alignment.input.0", torch.tensor([[0, 0, 1 << 40]]), "an alignment of the input input"),
    ],
)
def test_a_changed_alignment(folder, key, value, complaint):
    rewrite(folder / "tensors.safetensors", lambda tensors: tensors.update({key: value}))
    assert complaint in refused(folder)


def test_no_alignment(folder):
    rewrite(folder / "tensors.safetensors", lambda tensors: tensors.pop("alignment.output"))
    assert "no 'alignment.output' in tensors.safetensors" in refused(folder)


# --- the folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scene.json", "tensors.safetensors", "weights"])
def test_a_link_that_leads_elsewhere(folder, name, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    os.rename(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere)
    assert "is a link; expected a file of the scene's own folder" in refused(folder)


def test_a_weight_that_is_a_link(folder, tmp_path):
    path = weight(folder)
    shutil.move(path, tmp_path / "weight")
    path.symlink_to(tmp_path / "weight")
    assert "is a link" in refused(folder)


def test_missing_files(folder, tmp_path):
    assert "is no folder; expected the folder of a scene" in refused(tmp_path / "none")
    os.remove(folder / "tensors.safetensors")
    assert "no tensors.safetensors in" in refused(folder)
    os.remove(folder / "scene.json")
    assert "no scene.json in" in refused(folder)
    os.mkdir(folder / "scene.json")
    assert "is no plain file" in refused(folder)


# --- what runs ---------------------------------------------------------------------------------------------


def test_arguments_that_the_function_refuses(folder):
    change(folder, lambda m: m["runs"]["a"]["args"].append("x"))
    with pytest.raises(SceneError, match=r"torch.nn.functional.linear refuses the arguments of run A on cpu"):
        scene.replay(scene.load(folder))


def test_text_in_a_scene_is_never_code_in_its_script(folder, tmp_path):
    """Quotes, backslashes and newlines in every text that a script repeats."""
    marker = tmp_path / "marker"
    evil = f'"""\nopen({str(marker)!r}, "w").close()\n"""\\'

    def edit(manifest):
        manifest["place"].update(module=evil, source=evil, code=evil, function=evil)
        for run in "ab":
            manifest["runs"][run]["run"] = evil
        manifest["machine"].update(name=evil, capability=evil)
        manifest["machine"]["libraries"]["torch"] = evil
        manifest["inputs"][0]["name"] = evil
        manifest["runs"]["a"]["flags"]["MKL_CBWR"] = evil
        manifest["runs"]["b"]["flags"]["MKL_CBWR"] = evil

    change(folder, edit)
    script = scene_script(scene.load(folder), folder)
    assert not marker.exists()
    assert script.reproduced, script


# --- what is shown -----------------------------------------------------------------------------------------

SHOWN = "\x1b]8;;http://example.org\x07a\x1b[2J\u202e[link=http://example.org]b[/link][/]\x9b31m\nend\ud800"
"""A link, a screen wiped, the direction of writing turned, rich's own markup, a line of its own."""


def with_hostile_text(manifest: Any) -> None:
    """Every text in a manifest that nothing but a report reads."""
    manifest["place"].update(
        dict.fromkeys(
            ["op", "module", "function", "source", "code", "variable", "sample", "token", "note"], SHOWN
        )
    )
    manifest["place"]["between"] = [SHOWN]
    for side in manifest["runs"].values():
        side.update(run=SHOWN, note=SHOWN, kernels=[SHOWN], kernels_unknown=SHOWN)
    for pair in manifest["inputs"]:
        pair.update(name=SHOWN, parameter=None if pair["parameter"] is None else SHOWN)
    manifest["machine"].update(
        name=SHOWN, capability=SHOWN, system=SHOWN, libraries={"torch": SHOWN, SHOWN: SHOWN}
    )
    manifest.update(notes=[SHOWN], versions={SHOWN: SHOWN})


def assert_only_colours(shown: str) -> None:
    """Whether all that can't be seen is newlines and colours, which are the report's own."""
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert [line for line in plain.split("\n") if not line.isprintable()] == []


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("terminal")
def test_a_replay_shows_nothing_of_a_scene_as_it_is(folder, capsys):
    change(folder, with_hostile_text)
    with pytest.raises(SystemExit) as done:
        main(["replay", str(folder)])
    said = capsys.readouterr()
    assert done.value.code == 0, said.err
    assert_only_colours(said.out)
    assert said.out.count("[link=http://example.org]b[/link][/]") >= 8


def test_a_script_shows_nothing_of_a_scene_as_it_is(folder, capsys, monkeypatch):
    change(folder, with_hostile_text)
    error = Script("text", synthetic=False, reproduced=False, output="", note=f"it failed: {SHOWN}")
    monkeypatch.setattr(script_module, "run_script", lambda *_, **__: error)
    with pytest.raises(SystemExit):
        main(["script", str(folder)])
    said = capsys.readouterr()
    assert said.out == "text"
    assert all(line.isprintable() for line in said.err.split("\n"))
    assert "[link=http://example.org]" in said.err
    text = ScriptWriter(scene.load(folder)).text()
    assert all(line.isprintable() for line in text.split("\n"))
    compile(text, "script.py", "exec")


def test_an_error_shows_nothing_of_a_scene_as_it_is(folder, capsys):
    change(folder, lambda m: m["runs"]["a"].update(function=SHOWN))
    with pytest.raises(SystemExit) as done:
        main(["replay", str(folder)])
    said = capsys.readouterr().err
    assert done.value.code == 2
    assert said.startswith("forkpoint: the function '\\x1b]8;;http://example.org\\x07a")
    assert said.count("\n") == 1
    assert said[:-1].isprintable()


# --- odd arguments, found by damaging manifests at random --------------------------------------------------

ODD = {
    "a keyword of Python": (lambda m: m["runs"]["a"]["kwargs"].update({"lambda": 1}), "the keyword arguments"),
    "an input that does not go in": (lambda m: m["inputs"][0].update(a=m["runs"]["a"]["outputs"][0]), "one that goes into"),
    "a keyword that it lacks": (lambda m: m["runs"]["a"]["kwargs"].update(none=1), "refuses the arguments of run A"),
    "no arguments": (lambda m: (m["runs"]["a"].update(args=[], kwargs={}), m.update(inputs=[])), "refuses the arguments"),
    "the environment": (lambda m: m["runs"]["a"]["flags"].update(MKL_CBWR="a\0b"), "the setting MKL_CBWR"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_scene_is_one_error(folder, name):
    edit, complaint = ODD[name]
    change(folder, edit)
    for use in (scene.replay, lambda loaded: scene_script(loaded, folder)):
        with pytest.raises(SceneError) as caught:
            use(scene.load(folder))
        assert complaint in str(caught.value)


def test_numbers_that_are_no_numbers_are_calls_in_a_script():
    """The words `nan` and `inf` would be names."""
    for value in (float("nan"), -float("inf"), complex(float("inf"), float("nan")), complex(0.0, -1.5)):
        found = eval(expression(value, str), {"__builtins__": {"float": float, "complex": complex}})
        assert repr(found) == repr(value)


@pytest.mark.parametrize("error", [MemoryError("out"), RecursionError("deep"), PermissionError(13, "denied")])
def test_what_the_machine_refuses_is_one_error(folder, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(folder_module, "from_manifest", fail)
    assert "can't be read" in refused(folder)
