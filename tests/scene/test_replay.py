"""Replaying, in Python and on the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from forkpoint import scene
from forkpoint.cli import main
from forkpoint.errors import SceneError
from forkpoint.scene.format import flags
from forkpoint.scene.replaying.exactness import errors_in_ulps
from forkpoint.scene.replaying.replay import TOLERANCES


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    code = caught.value.code
    assert isinstance(code, int)
    return code


def text(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


# --- in Python ---------------------------------------------------------------------------------------------


def test_what_a_replay_tells(linear_scene):
    found = scene.replay(scene.load(linear_scene))
    assert found.device == "cpu"
    assert found.recorded_here
    assert found.reproduces
    assert [check.name for check in found.weights] == ["weight"]
    assert found.weights[0].equal is False
    assert [(check.name, check.equal, check.compared) for check in found.inputs] == [("input", True, 40)]
    assert found.outputs.compared == 40
    assert found.outputs.differing == 40
    assert found.first is not None
    assert found.first.index_a == found.first.index_b == (0, 0, 0)
    assert [atol for atol, _ in found.allclose] == list(TOLERANCES) == [10.0**-k for k in range(3, 9)]
    assert not any(close for _, close in found.allclose)
    assert found.kernels_a.names
    assert found.exact_a.median is not None
    assert found.exact_a.median < 1
    with pytest.raises(FrozenInstanceError):
        found.device = "cuda"  # pyright: ignore[reportAttributeAccessIssue]


def test_checks_against_an_independent_computation(padded_scene):
    loaded = scene.load(padded_scene)
    found = scene.replay(loaded)
    a, b = (loaded.recorded(side)[0] for side in "ab")
    left, right = a, b[:, :, : a.shape[2]]
    assert found.outputs.differing == int((left != right).sum())
    assert found.outputs.max_abs == float((left.double() - right.double()).abs().max())
    for atol, close in found.allclose:
        assert close == torch.allclose(left.double(), right.double(), atol=atol)
    q, k, v = (loaded.tensor(number).double() for number in loaded.a.tensors)
    exact = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
    unit = torch.finfo(torch.float32).eps * 2.0 ** exact.abs().log2().floor()
    assert found.exact_a.largest == pytest.approx(
        float(((left.double() - exact).abs() / unit).max()), rel=1e-6
    )
    assert found.exact_a.median == pytest.approx(
        float(((left.double() - exact).abs() / unit).median()), rel=1e-6
    )


def test_errors_in_ulps():
    exact = torch.tensor([1.0, 1.5, -0.75, 0.0, 3.0], dtype=torch.float64)
    value = torch.tensor([1.0 + 2**-7, 1.5, -0.75 - 2**-8, 0.0, 3.0 + 2**-6], dtype=torch.bfloat16)
    assert errors_in_ulps(value, exact).tolist() == [1, 0, 1, 0, 1]


def test_replaying_changes_nothing(linear_scene):
    loaded = scene.load(linear_scene)
    before = [data.clone() for data in loaded.data]
    settings, random = flags.read(), torch.get_rng_state()
    scene.replay(loaded)
    scene.replay(loaded)
    assert all(bool((x == y).all()) for x, y in zip(before, loaded.data, strict=True))
    assert flags.read() == settings
    assert bool((torch.get_rng_state() == random).all())


def test_settings_are_put_in_force_and_back(linear_scene):
    loaded = scene.load(linear_scene)
    seen: list[object] = []
    original = torch.nn.functional.linear

    def spy(*args, **kwargs):
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return original(*args, **kwargs)

    changed = {**loaded.a.flags, "threads": 2, "deterministic": True}
    loaded = replace(loaded, a=replace(loaded.a, flags=changed), b=replace(loaded.b, flags=changed))
    torch.nn.functional.linear = spy
    try:
        scene.replay(loaded)
    finally:
        torch.nn.functional.linear = original
    assert set(seen) == {(2, True)}
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_variable_of_the_environment_that_is_not_as_it_was(linear_scene, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    found = scene.replay(scene.load(linear_scene))
    [remark] = found.remarks
    assert remark.startswith(
        "MKL_CBWR was not set when the scene was saved, and is COMPATIBLE here; it has to be"
    )


def test_no_such_device(linear_scene):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SceneError, match=r"no cuda device here; expected one of: cpu"):
        scene.replay(scene.load(linear_scene), "cuda")


# --- on the command line -----------------------------------------------------------------------------------


def test_the_report(padded_scene, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert run("replay", str(padded_scene)) == 0
    out = text(capsys)
    assert "encoder.layer.0.attention.self/scaled_dot_product_attention" in out
    assert (
        "run B: padded on the right, torch.nn.functional.scaled_dot_product_attention, output [1, 4, 50, 8]"
        in out
    )
    assert "query equal where shared yes" in out
    assert "attn_mask equal where shared only run B has it" in out
    assert "A's output as recorded yes B's output as recorded yes" in out
    assert "outputs equal to each other no: " in out
    assert "allclose, atol 1e-03 yes" in out
    assert "ULP apart" in out
    assert "Inside the op, when the scene was saved" in out
    assert out.endswith("It reproduces: on cpu both outputs are the recorded ones, bit for bit.")


def test_a_scene_that_does_not_reproduce(linear_scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shutil.copytree(linear_scene, tmp_path / "scene")
    path = tmp_path / "scene" / "scene.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["runs"]["b"]["function"] = "torch.matmul"
    manifest["machine"]["libraries"]["torch"] = "2.0.1"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert run("replay", str(tmp_path / "scene")) == 1
    out = text(capsys)
    assert "on cpu the output of B is not the recorded one (torch 2.0.1 then" in out
    assert "B's output as recorded no: 40 of 40 differ, by up to" in out


def test_a_scene_of_another_device(linear_scene, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("it is here")
    shutil.copytree(linear_scene, tmp_path / "scene")
    path = tmp_path / "scene" / "scene.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["machine"]["device"] = "cuda"
    for tensor in manifest["tensors"]:
        tensor["device"] = "cuda"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert run("replay", str(tmp_path / "scene")) == 1
    assert text(capsys).endswith("It was recorded on cuda, and was not replayed there.")


def test_no_scene(tmp_path, capsys):
    assert run("replay", str(tmp_path)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"forkpoint: no scene.json in {tmp_path}; expected the folder of a scene\n"
