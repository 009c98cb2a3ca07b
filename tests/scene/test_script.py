"""The script of a scene: it runs alone, and says what the scene shows."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from forkpoint import scene
from forkpoint.cli import main
from forkpoint.errors import SceneError
from forkpoint.runs.run import Run
from forkpoint.scene.script import source, synthetic
from forkpoint.scene.script.expressions import plain_text
from forkpoint.scene.script.script import run_script
from forkpoint.scene.script.source import ScriptWriter
from forkpoint.scene.script.synthetic import Filling, _filling, plan

from .pairs import OPS, One, other_weights
from .sessions import save

BARE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("forkpoint", "transformers", "accelerate", "numba"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
exec(compile(open(sys.argv[0], encoding="utf-8").read(), sys.argv[0], "exec"), {"__name__": "__main__"})
"""


def alone(script, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script where neither forkpoint nor transformers can be imported."""
    return subprocess.run(
        [sys.executable, "-I", "-c", BARE, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    code = caught.value.code
    assert isinstance(code, int)
    return code


# --- with the scene's own data -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_alone_gives_the_recorded_bits(padded_scene, tmp_path):
    done = scene.write_script(padded_scene, tmp_path / "script.py")
    assert done.reproduced
    assert done.note == ""
    found = alone(tmp_path / "script.py", str(padded_scene))
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert found.stdout == done.output
    replayed = scene.replay(scene.load(padded_scene))
    assert replayed.first is not None
    lines = found.stdout.splitlines()
    assert lines[0] == "cpu"
    assert "  query equal: True" in lines
    assert "  A as recorded: True; B as recorded: True" in lines
    outputs = replayed.outputs
    assert (
        f"  outputs: {outputs.differing} of {outputs.compared} shared elements differ, by up to {outputs.max_abs:.3g}"
        in lines
    )
    assert f"  first unequal: {replayed.first.value_a!r} in A, {replayed.first.value_b!r} in B" in lines
    close = "  ".join(f"1e-{k} {holds}" for k, (_, holds) in zip(range(3, 9), replayed.allclose, strict=True))
    assert f"  allclose with atol  {close}" in lines
    assert any(line.startswith("  error of A against float64, in ULP: median") for line in lines)
    assert lines[-1] == "The recorded bits on cpu: yes"


@pytest.mark.slow
def test_what_the_script_looks_like(padded_scene):
    text = scene.write_script(padded_scene).text
    tree = ast.parse(text)
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    } | {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"sys", "torch", "safetensors"}
    code = [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]
    assert len(code) <= 80
    head = ast.get_docstring(tree)
    assert head.startswith(
        "scaled_dot_product_attention gives the same tokens other bits in two runs of a model."
    )
    assert "sdpa_attention.py" in head
    assert "Run A: unpadded" in head
    assert "shared elements, first" in " ".join(head.split())
    assert "python script.py SCENE" in head
    assert str(padded_scene.parent) not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "setitem",
        "topk",
        "fft",
        "batch_norm",
        "conv1d",
        "+= in place",
        "softmax to float64",
        "to another dtype",
    ],
)
def test_scripts_of_odd_ops(name, tmp_path):
    save(*other_weights(name), tmp_path / "scene")
    done = scene.write_script(tmp_path / "scene")
    assert done.reproduced, done


@pytest.mark.slow
def test_a_script_that_does_not_reproduce_says_so(linear_scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(source.template, "SAME", source.template.SAME.replace("==", "!="))
    assert command("script", str(linear_scene), "-o", str(tmp_path / "script.py")) == 1
    assert "it did not reproduce the recorded bits" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "script.py").exists()


@pytest.mark.slow
def test_a_script_that_fails_says_so(linear_scene, monkeypatch):
    monkeypatch.setattr(source.template, "SAME", "def same(a, b):\n    raise RuntimeError('why')")
    done = scene.write_script(linear_scene)
    assert not done.reproduced
    assert done.note == "it failed: RuntimeError: why"


@pytest.mark.slow
def test_the_script_needs_a_folder(linear_scene, tmp_path):
    scene.write_script(linear_scene, tmp_path / "script.py")
    ended = alone(tmp_path / "script.py")
    assert ended.returncode == 1
    assert ended.stderr.startswith("usage: python ")
    assert "SCENE" in ended.stderr


@pytest.mark.slow
def test_memory_that_began_elsewhere(tmp_path):
    """A weight in a file that is mapped to memory begins anywhere, and some kernels then add up otherwise."""
    x = torch.randn(1, 5, 8)
    runs = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        model = One(nn.functional.linear, torch.randn(69, generator=generator)[5:].view(8, 8))
        assert model.weight.data_ptr() % 64 == 20
        runs.append(Run(model, {"input": x}))
    save(*runs, tmp_path / "scene")
    loaded = scene.load(tmp_path / "scene")
    assert scene.replay(loaded).reproduces
    text = ScriptWriter(loaded, aligned=True).text()
    assert 'LEADS = {"weight": 5, "weight_": 5}' in text
    assert run_script(text, loaded, [str(tmp_path / "scene")]).reproduced
    assert scene.write_script(tmp_path / "scene").reproduced


# --- with random data --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_data_that_show_the_effect(padded_scene, tmp_path, capsys):
    assert command("script", str(padded_scene), "--synthetic", "-o", str(tmp_path / "script.py")) == 0
    assert "on random data the two runs differ, too" in " ".join(capsys.readouterr().err.split())
    found = alone(tmp_path / "script.py")
    assert found.returncode == 0, found.stderr
    assert "  query equal: True" in found.stdout
    assert "as recorded" not in found.stdout
    assert found.stdout.endswith("Other bits in the two runs on cpu: yes\n")
    text = (tmp_path / "script.py").read_text(encoding="utf-8")
    assert "load_file" not in text
    assert "torch.manual_seed(0)" in text


def test_random_data_hold_no_value_of_the_scene(padded_scene):
    loaded = scene.load(padded_scene)
    recipe = plan(loaded)
    made = recipe.make(loaded, seed=1)
    for number in (*loaded.a.tensors, *loaded.b.tensors):
        layout = loaded.layouts[number]
        old, new = loaded.data[layout.storage], made.data[layout.storage]
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        if old.dtype == torch.bool:
            assert bool((old == new).all())
        else:
            assert float((old == new).double().mean()) < 0.01
            assert float(new.std()) == pytest.approx(float(old.std()), rel=0.5)
    for pair in made.inputs:
        if pair.a is not None and pair.b is not None:
            a, b = pair.sharing.take(made.tensor(pair.a), made.tensor(pair.b))
            assert bool((a == b).all())


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (torch.randn(100), "normal"),
        (torch.tensor([float("nan"), float("inf")] + [0.1 * i for i in range(50)]), "normal"),
        (torch.ones(100), "runs"),
        (torch.tensor([0.0] * 20 + [float("-inf")] * 30), "runs"),
        (torch.arange(100), "range"),
        (torch.randint(0, 1000, (100,)), "integers"),
        (torch.randint(-100, 100, (100,), dtype=torch.int8), "integers"),
        (torch.rand(2500) > 0.5, "packed"),
        (torch.zeros(0), "runs"),
        (torch.zeros(0, dtype=torch.int64), "runs"),
    ],
)
def test_how_data_are_made_anew(data, kind):
    filling = _filling(data)
    assert filling.kind == kind
    torch.manual_seed(5)
    made = filling.make()
    assert (made.shape, made.dtype) == (data.shape, data.dtype)
    torch.manual_seed(5)
    names = {"torch": torch}
    exec("import zlib, base64", names)
    assert torch.equal(torch.nan_to_num(eval(filling.code, names).double()), torch.nan_to_num(made.double()))
    if kind in ("runs", "packed", "range"):
        assert torch.equal(made, data)


def test_random_data_of_a_mask_that_is_too_intricate():
    with pytest.raises(SceneError, match="a mask that packs to"):
        _filling(torch.rand(100_000) > 0.5)


def test_random_data_can_hide_nothing(linear_scene, tmp_path, capsys):
    """The weights differ: random data would show any effect."""
    assert command("script", str(linear_scene), "--synthetic", "-o", str(tmp_path / "script.py")) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        "forkpoint: the inputs of the op differ already (weight); expected an op with equal inputs"
    )
    assert os.listdir(tmp_path) == []


def test_random_data_that_show_nothing(tmp_path, monkeypatch):
    """An effect that comes from one value, which random data don't have."""

    class Odd(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, input):  # noqa: A002
            return (
                torch.where(input > 1e6, input * 0 + self.factor, input)
                if False
                else input.clamp(max=self.factor)
            )

    x = torch.randn(1, 5, 8)
    x[0, 2, 3] = 1e9
    save(Run(Odd(1e6), {"input": x}), Run(Odd(2e6), {"input": x}), tmp_path / "scene")
    monkeypatch.setattr(
        synthetic, "_filling", lambda data: Filling("normal", data.dtype, data.numel(), 0.0, 1.0)
    )
    with pytest.raises(
        SceneError, match=r"random data of the same shapes don't show the effect \(seeds 0 to 7 tried\)"
    ):
        scene.write_script(tmp_path / "scene", tmp_path / "script.py", synthetic=True)
    assert not (tmp_path / "script.py").exists()


def test_random_data_of_inputs_that_cant_be_lined_up(tmp_path):
    class Whole(nn.Module):
        def forward(self, input):  # noqa: A002
            return input - input.mean()

    x = torch.randn(1, 5, 8)
    a = Run(Whole(), {"input": x})
    b = Run(Whole(), {"input": torch.cat([x, torch.randn(2, 5, 8)])})
    session_scene = save(a, b, tmp_path / "scene")
    if session_scene.a.function != "torch.Tensor.sub":
        pytest.skip("the mean is compared")
    with pytest.raises(SceneError, match="can't be lined up between the runs"):
        scene.write_script(tmp_path / "scene", synthetic=True)


def test_grouped_heads_are_made_equal(tmp_path):
    """Keys with fewer heads in one run, each standing for two in the other."""

    class Grouped(nn.Module):
        def __init__(self, *, repeat: bool) -> None:
            super().__init__()
            self.repeat = repeat
            self.bump = 1e-3 if repeat else 0.0

        def forward(self, input):  # noqa: A002
            query = input.view(1, 5, 4, 8).transpose(1, 2)
            key = input[..., :16].reshape(1, 5, 2, 8).transpose(1, 2)
            if self.repeat:
                key = key.repeat_interleave(2, 1)
            return nn.functional.scaled_dot_product_attention(
                query, key, key, is_causal=True, scale=0.5 + self.bump, enable_gqa=not self.repeat
            )

    x = torch.randn(1, 5, 32)
    for name, order in (("one", (False, True)), ("other", (True, False))):
        a, b = (Run(Grouped(repeat=repeat), {"input": x}) for repeat in order)
        save(a, b, tmp_path / name)
        loaded = scene.load(tmp_path / name)
        assert [check.equal for check in scene.replay(loaded).inputs] == [True, True, True]
        key = next(pair for pair in loaded.inputs if pair.name == "key")
        assert (key.sharing.repeat_a, key.sharing.repeat_b) == (
            ((1, 2), None) if name == "one" else (None, (1, 2))
        )
        made = plan(loaded).make(loaded, seed=0)
        assert all(check.equal for check in scene.replay(made).inputs)


# --- text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ['"""', "\\", '\\"', "a\nb", "\x1b[31m", '""', "'''", "tail\\", '"' * 7, "\N{RIGHT-TO-LEFT OVERRIDE}"],
)
def test_text_stays_within_its_docstring(text):
    tree = ast.parse(f'"""{plain_text(text)}\n"""\nx = 1\n')
    assert len(tree.body) == 2


def test_every_op_has_a_call_that_parses(tmp_path):
    for number, name in enumerate(OPS):
        loaded = save(*other_weights(name), tmp_path / str(number))
        ast.parse(ScriptWriter(loaded).text())
