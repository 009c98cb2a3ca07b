"""From a comparison to its scene: `Result.save_scene`, and the option `--scene`."""

from __future__ import annotations

import os

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt

import forkpoint as fp
from forkpoint import scene
from forkpoint.cli import main
from forkpoint.cli import scene as option
from forkpoint.errors import SceneError


@pytest.fixture(scope="module")
def result():
    """A tiny Llama whose first normalisation has another weight in run B."""
    architecture = ARCHITECTURES["llama"]
    runs = []
    for weight in (1.0, 2.0):
        model = architecture.build()
        model.model.layers[0].input_layernorm.weight.data.fill_(weight)
        runs.append(fp.Run(model, architecture.inputs([prompt(9)])))
    return fp.compare(*runs, probes=False)


@pytest.fixture(scope="module")
def same():
    architecture = ARCHITECTURES["llama"]
    model = architecture.build()
    a, b = (fp.Run(model, architecture.inputs([prompt(9)])) for _ in "ab")
    return fp.compare(a, b, probes=False)


def test_a_result_saves_its_scene(result, tmp_path):
    result.save_scene(tmp_path / "scene")
    loaded = scene.load(tmp_path / "scene")
    assert loaded.place.op == result.first.op == "model.layers.0.input_layernorm/mul"
    assert (loaded.place.sample, loaded.place.position) == (result.first.sample, result.first.position)
    assert loaded.place.source == result.first.source
    found = scene.replay(loaded)
    assert found.reproduces
    assert (found.first.value_a, found.first.value_b) == (result.first.value_a, result.first.value_b)
    assert (found.first.index_a, found.first.index_b) == (result.first.index_a, result.first.index_b)
    assert loaded.versions["torch"] == torch.__version__


def test_the_option_says_where_the_scene_is(result, tmp_path):
    assert option.save(result, None) == ()
    assert option.save(result, tmp_path / "scene") == (
        f"`forkpoint replay {tmp_path / 'scene'}` repeats the op alone",
    )
    assert sorted(os.listdir(tmp_path / "scene")) == ["scene.json", "tensors.safetensors", "weights"]


def test_no_scene_where_nothing_differs(same, tmp_path):
    assert option.save(same, tmp_path / "scene") == ("No scene was saved: no op differs.",)
    with pytest.raises(SceneError, match="no op differs between the runs"):
        same.save_scene(tmp_path / "scene")
    assert os.listdir(tmp_path) == []


def test_a_scene_that_cant_be_saved_loses_no_report(result, tmp_path):
    (tmp_path / "scene").write_text("mine")
    [note] = option.save(result, tmp_path / "scene")
    assert note.startswith(f"No scene was saved: {tmp_path / 'scene'} is there already and is no folder")


def test_a_folder_that_cant_be_written_fails_before_the_model_is_loaded(tmp_path, capsys):
    (tmp_path / "scene").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        main(["padding", str(tmp_path / "no-model"), "-p", "hello", "--scene", str(tmp_path / "scene")])
    assert caught.value.code == 2
    assert "scene is there already and is no folder" in capsys.readouterr().err


def test_gigabytes_are_asked_about(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert not option._confirmed(5 << 30)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = []
    monkeypatch.setattr(option.typer, "confirm", lambda text, **_: asked.append(text) or True)
    assert option._confirmed(5 << 30)
    assert asked == ["The scene takes 5.0 GiB. Write it?"]
