"""Saving: any op, in any layout, replays to its recorded bits; the folder is whole, safe and free of pickles."""

# ruff: noqa: A002 - modules take `input`, as those of torch do

from __future__ import annotations

import functools
import json
import os
import resource
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from torch import nn

from forkpoint import scene
from forkpoint.errors import SceneError
from forkpoint.runs.layout import Layout
from forkpoint.runs.run import Run
from forkpoint.scene.format import folder
from forkpoint.scene.format.arguments import refs_in

from .pairs import OPS, Attention, One, other_weights
from .sessions import here, join, save


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


# --- any op ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPS)
def test_any_op_replays_to_the_recorded_bits(name, dtype, tmp_path):
    if name in ("fft", "softmax to float64") and dtype == torch.bfloat16:
        pytest.skip("torch has no such kernel, or it is of another test")
    a, b = other_weights(name, dtype)
    saved = save(a, b, tmp_path / "scene")
    assert (saved.a.reproduced, saved.b.reproduced) == (True, True)
    loaded = scene.load(tmp_path / "scene")
    found = scene.replay(loaded)
    assert found.reproduces, found
    assert found.outputs.equal is False
    assert found.outputs.differing > 0
    assert found.first is not None
    assert found.first.value_a != found.first.value_b
    for side in (loaded.a, loaded.b):
        assert side.kernels.names, side.kernels.reason
    pickled = [file for file in files(tmp_path) if not file.endswith((".json", ".safetensors"))]
    assert not pickled


@pytest.mark.parametrize(
    ("name", "attention", "dtype", "side"),
    [
        ("llama", "eager", torch.float32, "right"),
        ("llama", "sdpa", torch.float32, "left"),
        ("gpt2", "eager", torch.float32, "right"),
        ("bert", "sdpa", torch.bfloat16, "right"),
        ("mamba2", "eager", torch.float32, "right"),
        ("t5", "sdpa", torch.bfloat16, "right"),
    ],
)
def test_tiny_models_padded(name, attention, dtype, side, tmp_path):
    architecture = ARCHITECTURES[name]
    model, ids = architecture.build(dtype=dtype, attention=attention), prompt(9)
    a = Run(model, architecture.inputs([ids]), name="unpadded")
    b = Run(model, architecture.inputs([ids], pad_to=50, side=side), name="padded")
    _, located = join(a, b)
    if located is None:
        pytest.skip("this machine's kernels give equal bits")
    saved = save(a, b, tmp_path / "scene")
    found = scene.replay(scene.load(tmp_path / "scene"))
    assert found.reproduces
    assert saved.place.op == located.divergence.op
    assert found.outputs.differing == located.divergence.differing
    assert found.outputs.compared == located.divergence.compared
    assert found.first is not None
    assert (found.first.value_a, found.first.value_b) == (
        located.divergence.value_a,
        located.divergence.value_b,
    )
    assert found.first.index_a == located.divergence.index_a
    assert all(check.equal in (True, None) for check in found.inputs)


def test_a_scene_without_a_folder():
    a, b = other_weights("linear")
    session, located = join(a, b)
    built = here(partial(scene.build, session, located))
    assert (built.a.reproduced, built.b.reproduced) == (True, True)
    assert built.different_kernels is False
    assert built.kernel_evidence == f"Both runs ran {built.a.kernels.names[0]}."
    assert scene.replay(built).reproduces


def test_memory_is_kept_as_it_was(tmp_path):
    """Strides of a view that has gaps, and memory that inputs share."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, input):
            q, k = input.chunk(2, dim=-1)
            return torch.lerp(q, k, self.scale)

    x = torch.randn(1, 5, 8)
    one, two = Fused(), Fused()
    two.scale.data.fill_(0.25)
    saved = save(Run(one, {"input": x}), Run(two, {"input": x}), tmp_path / "scene")
    q, k, _ = (saved.layouts[n] for n in refs_in(saved.a.args))
    assert (q.stride, k.stride) == ((40, 8, 1), (40, 8, 1))
    assert q.storage == k.storage
    assert k.offset - q.offset == 4


def test_the_state_of_the_random_generator(tmp_path):
    class Noisy(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.seed = seed

        def forward(self, input):
            torch.manual_seed(self.seed)
            return nn.functional.dropout(input, 0.5)

    x = torch.randn(1, 5, 8)
    saved = save(Run(Noisy(1), {"input": x}), Run(Noisy(2), {"input": x}), tmp_path / "scene")
    assert saved.a.random is not None
    state = torch.get_rng_state()
    assert scene.replay(scene.load(tmp_path / "scene")).reproduces
    assert bool((torch.get_rng_state() == state).all())


def test_settings_that_hold_for_one_call(tmp_path):
    class Cast(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
            self.dtype = dtype

        def forward(self, input):
            with torch.autocast("cpu", dtype=self.dtype):
                product = torch.matmul(input, self.weight)
            return product.float()

    x = torch.randn(1, 5, 8)
    a, b = (Run(Cast(dtype), {"input": x}) for dtype in (torch.bfloat16, torch.float16))
    saved = save(a, b, tmp_path / "scene")
    assert (saved.a.flags["autocast"], saved.b.flags["autocast"]) == ("cpu bfloat16", "cpu float16")
    assert scene.replay(scene.load(tmp_path / "scene")).reproduces


def test_an_output_that_nobody_reproduces_is_said_to_be_so(tmp_path, monkeypatch):
    """A kernel that gave other values while the run was made, and no longer does."""
    a, b = other_weights("linear")
    session, located = join(a, b)
    with torch.no_grad():
        for taken in (located.a, located.b):
            taken.outputs[0].add_(1)
            taken.seen = None
    saved = here(partial(scene.save, session, located, tmp_path / "scene", versions={}))
    assert (saved.a.reproduced, saved.b.reproduced) == (False, False)
    assert "run A: the run gave other values when it was made again" in saved.notes[0]
    assert any("does not give run A's recorded bits" in note for note in saved.notes)
    assert not scene.replay(scene.load(tmp_path / "scene")).reproduces


def test_a_call_whose_circumstances_were_seen_needs_no_run_of_its_own(tmp_path):
    """The same scene comes out of calls that nobody looked at; then the runs are made again."""
    a, b = other_weights("linear")
    session, located = join(a, b)
    made: list[Run] = []
    with mock.patch.object(Run, "execute", lambda run, *_, **__: made.append(run)):
        seen = here(partial(scene.save, session, located, tmp_path / "seen", versions={}))
    assert made == []
    for taken in (located.a, located.b):
        taken.seen = None
    again = here(partial(scene.save, session, located, tmp_path / "again", versions={}))
    assert seen.notes == again.notes
    assert files(tmp_path / "seen") == files(tmp_path / "again")
    for file in files(tmp_path / "seen"):
        assert (tmp_path / "seen" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_fault_in_one_of_torchs_functions_is_replayed_with_it(tmp_path, monkeypatch):
    """A stand-in for F.linear that gives longer inputs one wrong element."""
    original = nn.functional.linear

    @functools.wraps(original)
    def linear(x, w):
        if torch._C._is_torch_function_mode_enabled():
            return torch.overrides.handle_torch_function(linear, (x, w), x, w)
        result = original(x, w)
        if x.shape[1] > 5:
            result[0, 2, 3] += 1
        return result

    monkeypatch.setattr(nn.functional, "linear", linear)
    model = One(nn.functional.linear, torch.eye(8))
    x = torch.randn(1, 9, 8)
    saved = save(
        Run(model, {"input": x[:, :5]}, layout=Layout.from_mask(torch.ones(1, 5), samples=["x"])),
        Run(model, {"input": x}, layout=Layout.from_mask(torch.ones(1, 9), samples=["x"])),
        tmp_path / "scene",
    )
    assert saved.a.function == "torch.nn.functional.linear"
    assert (saved.a.reproduced, saved.b.reproduced) == (True, True)
    found = scene.replay(scene.load(tmp_path / "scene"))
    assert (found.outputs.differing, found.first.index_a) == (1, (0, 2, 3))
    monkeypatch.setattr(nn.functional, "linear", original)
    found = scene.replay(scene.load(tmp_path / "scene"))
    assert (found.recorded_a.equal, found.recorded_b.equal, found.outputs.equal) == (True, False, True)


# --- which op ----------------------------------------------------------------------------------------------


class Step(nn.Module):
    """A product, and then something that no tap sees."""

    def __init__(self, factor: float, *, after: bool) -> None:
        super().__init__()
        self.factor = factor
        self.after = after

    def forward(self, input):
        hidden = _unseen(input, self.factor)
        return hidden * 2 if self.after else hidden


def _unseen(x, factor):
    with torch._C.DisableTorchFunction():
        return x * factor


def test_a_module_is_followed_by_the_next_op_that_can_be_replayed(tmp_path):
    class Outer(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.step = Step(factor, after=False)

        def forward(self, input):
            return self.step(input) * 2

    x = torch.randn(1, 5, 8)
    saved = save(Run(Outer(1.5), {"input": x}), Run(Outer(1.75), {"input": x}), tmp_path / "scene")
    assert saved.place.op == "(model)/mul"
    [note] = saved.notes
    assert note.startswith(
        "step can't be replayed (it is a module whose inside was not watched); this is the next"
    )


def test_a_function_called_at_two_places(tmp_path):
    """One branch of the code in run A, another in run B: both call the same function with equal inputs."""
    x = torch.randn(1, 2, 6, 8)
    a, b = Run(Attention(causal=True), {"input": x}), Run(Attention(causal=False, window=3), {"input": x})
    saved = save(a, b, tmp_path / "scene")
    assert saved.place.function == "scaled_dot_product_attention"
    assert "both runs call this function, each at a place of its own" in saved.notes[0]
    found = scene.replay(scene.load(tmp_path / "scene"))
    assert found.reproduces
    assert [check.equal for check in found.inputs] == [True, True, True, None]
    assert found.outputs.equal is False


def test_no_op_at_all(tmp_path):
    x = torch.randn(1, 5, 8)
    with pytest.raises(
        SceneError, match=r"can't be replayed: it is a module .*no other op that differs can be replayed"
    ):
        save(
            Run(Step(1.5, after=False), {"input": x}),
            Run(Step(1.75, after=False), {"input": x}),
            tmp_path / "scene",
        )
    assert os.listdir(tmp_path) == []


def test_an_operator_of_ones_own(tmp_path):
    @torch.library.custom_op("forkpoint_tests::shifted", mutates_args=())
    def shifted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x + w

    @shifted.register_fake
    def _(x, w):
        return torch.empty_like(x)

    x = torch.randn(1, 5, 8)
    a, b = (
        Run(One(torch.ops.forkpoint_tests.shifted, torch.full((8,), value)), {"input": x})
        for value in (1.0, 2.0)
    )
    saved = save(a, b, tmp_path / "scene")
    assert saved.a.reproduced
    with pytest.raises(SceneError, match="a namespace that you trust"):
        scene.load(tmp_path / "scene")
    assert scene.replay(scene.load(tmp_path / "scene", namespaces=["forkpoint_tests"])).reproduces


# --- what the model writes of itself -----------------------------------------------------------------------


def test_a_model_is_what_it_was_after_its_scene_is_saved(tmp_path):
    """What lies below an op is looked at by calling it again: `batch_norm` writes to what it is given."""
    x = torch.randn(2, 5, 8)
    models = [
        nn.Sequential(nn.BatchNorm1d(5, momentum=momentum), nn.Linear(8, 8)).train()
        for momentum in (0.1, 0.1)
    ]
    models[1][0].weight.data.mul_(2)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    saved = save(*(Run(model, {"input": x}) for model in models), tmp_path / "scene")
    assert saved.a.function == "torch.nn.functional.batch_norm"
    assert saved.inside is not None
    for model, held in zip(models, before, strict=True):
        assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())


def test_a_buffer_is_saved_as_the_op_found_it(tmp_path):
    """It is put back after the run, by value: what the model holds then is not what the op was given."""

    class Counting(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.register_buffer("calls", torch.ones(8))
            self.weight = nn.Parameter(torch.full((8,), weight))

        def forward(self, input):
            self.calls += 1
            return torch.addcmul(self.calls, input, self.weight)

    x = torch.randn(1, 5, 8)
    saved = save(*(Run(Counting(weight), {"input": x}) for weight in (1.5, 2.5)), tmp_path / "scene")
    assert saved.a.function == "torch.addcmul"
    assert (saved.a.reproduced, saved.b.reproduced) == (True, True)
    assert [pair.parameter for pair in saved.inputs] == ["calls", None, "weight"]


# --- the folder --------------------------------------------------------------------------------------------


def test_what_is_in_the_folder(tmp_path):
    a, b = other_weights("linear")
    saved = save(a, b, tmp_path / "scene")
    weights = [s.file for s in saved.storages if s.file.startswith("weights/")]
    assert len(set(weights)) == 2
    assert files(tmp_path / "scene") == sorted(["scene.json", "tensors.safetensors", *weights])
    manifest = json.loads((tmp_path / "scene" / "scene.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "forkpoint scene"
    assert manifest["version"] == 1
    assert manifest["versions"] == {"torch": "test"}
    assert manifest["runs"]["a"]["function"] == "torch.nn.functional.linear"
    assert manifest["runs"]["a"]["flags"]["threads"] == 1
    assert manifest["machine"]["device"] == "cpu"


def test_a_weight_that_both_runs_have_is_kept_once(tmp_path):
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, input):
            return nn.functional.linear(input, self.weight)

    x = torch.randn(1, 5, 8)
    saved = save(Run(Same(), {"input": x}), Run(Same(), {"input": x + 1}), tmp_path / "scene")
    assert len([file for file in files(tmp_path) if "weights" in file]) == 1
    [weight] = [pair for pair in saved.inputs if pair.name == "weight"]
    assert weight.parameter == "weight"
    assert saved.layouts[weight.a].storage == saved.layouts[weight.b].storage
    assert [check.equal for check in scene.replay(saved).weights] == [True]


def test_nothing_is_left_where_it_fails(tmp_path, monkeypatch):
    a, b = other_weights("linear")
    monkeypatch.setattr(folder, "load", lambda *_, **__: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(SceneError, match=r"scene can't be written: no room"):
        save(a, b, tmp_path / "scene")
    assert os.listdir(tmp_path) == []


def test_a_scene_is_replaced_by_another(tmp_path):
    first = save(*other_weights("linear"), tmp_path / "scene")
    second = save(*other_weights("matmul"), tmp_path / "scene")
    assert first.a.function != second.a.function
    assert scene.load(tmp_path / "scene").a.function == "torch.matmul"
    assert os.listdir(tmp_path) == ["scene"]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "thesis.tex").write_text("mine")
    with pytest.raises(SceneError, match=r"holds other files; expected a new folder"):
        save(*other_weights("linear"), tmp_path / "scene")
    assert (tmp_path / "scene" / "thesis.tex").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SceneError, match="is there already and is no folder"):
        scene.check_directory(tmp_path / "file")
    with pytest.raises(SceneError, match=r"no folder .*mkdir -p"):
        scene.check_directory(tmp_path / "none" / "scene")
    (tmp_path / "link").symlink_to(tmp_path / "scene")
    with pytest.raises(SceneError, match="link holds other files"):
        scene.check_directory(tmp_path / "link")
    with pytest.raises(SceneError, match="is no name of a folder"):
        scene.check_directory(f"{tmp_path}/\0")


def test_the_target_of_a_link_becomes_the_scene(tmp_path):
    (tmp_path / "link").symlink_to("scene")
    for _ in range(2):  # not there yet, and replaced
        save(*other_weights("linear"), tmp_path / "link")
        assert scene.load(tmp_path / "scene").a.function == "torch.nn.functional.linear"
        assert (tmp_path / "link").is_symlink()
        assert sorted(os.listdir(tmp_path)) == ["link", "scene"]


def test_a_limit_on_the_size_of_files_leaves_the_old_scene_and_nothing_else(tmp_path):
    save(*other_weights("matmul"), tmp_path / "scene")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 600, 3000):  # in the weights, in the other tensors, in the manifest
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(SceneError, match=r"scene can't be written: .*File too large"):
                save(*other_weights("linear"), tmp_path / "scene")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert scene.load(tmp_path / "scene").a.function == "torch.matmul"
        assert os.listdir(tmp_path) == ["scene"]


def test_a_large_scene_is_asked_about(tmp_path):
    asked: list[int] = []

    def no(size: int) -> bool:
        asked.append(size)
        return False

    with pytest.raises(SceneError, match="unless it is confirmed"):
        save(*other_weights("linear"), tmp_path / "scene", size_limit=100, confirm=no)
    with pytest.raises(SceneError, match="unless it is confirmed"):
        save(*other_weights("linear"), tmp_path / "scene", size_limit=100)
    assert os.listdir(tmp_path) == []
    saved = save(*other_weights("linear"), tmp_path / "scene", size_limit=100, confirm=lambda _: True)
    assert asked == [saved.bytes]
