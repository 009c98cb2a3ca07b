"""Scenes of real divergences: SmolLM2's attention, and cases of the corpus."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tests.corpus import CASES

from forkpoint import scene
from forkpoint.runs.layout import Layout
from forkpoint.runs.run import Run

from .sessions import join, save

PROMPT = "I've got a lovely bunch of coconuts do do do dooo"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The scene of SmolLM2 in bfloat16 with sdpa, 15 tokens against the same padded to 50."""
    from forkpoint import models
    from forkpoint.questions.prompts import pad_token_id, padded_run, tokenise

    torch.set_num_threads(1)
    loaded = models.load("demo", dtype="bfloat16", attn="sdpa")
    rows = tokenise(loaded.model, loaded.tokenizer, [PROMPT], chat_template=False)
    pad = pad_token_id(loaded.model, loaded.tokenizer)
    a, b = (
        padded_run(loaded.model, rows, length=length, pad=pad, side="right", position_ids="mask", name=name)
        for length, name in ((len(rows[0]), "unpadded"), (50, "padded on the right"))
    )
    directory = tmp_path_factory.mktemp("smollm2") / "scene"
    return save(a, b, directory), directory


@pytest.mark.slow
def test_smollm2_replays(smollm2):
    saved, directory = smollm2
    found = scene.replay(scene.load(directory))
    assert found.reproduces
    assert found.outputs.equal is False
    assert saved.place.function == "scaled_dot_product_attention"
    assert [(check.name, check.equal) for check in found.inputs] == [
        ("query", True), ("key", True), ("value", True), ("attn_mask", None)
    ]  # fmt: skip
    assert saved.inside is not None
    assert saved.inside.spelt
    assert saved.inside.arguments


@pytest.mark.slow
@pytest.mark.parametrize("synthetic", [False, True], ids=["recorded", "random"])
def test_smollm2_as_a_script(smollm2, synthetic, tmp_path):
    _, directory = smollm2
    script = tmp_path / "script.py"
    scene.write_script(directory, script, synthetic=synthetic)
    arguments = [] if synthetic else [str(directory)]
    done = subprocess.run(
        [sys.executable, "-I", str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" on cpu: yes")


SUBSET = (
    "23-int8-loud-padding", "24-scale-per-tensor-fp8", "m-batchnorm-train-tokens", "m-instance-norm", "m-layer-norm-whole",
    "11-bloom-left", "13-mamba-left", "15-mistral-window-right-eager", "16-bert-mean-bf16", "19-fnet-right", "30-dropout",
    "m-lstm-left", "m-gru-both-right", "m-head-scaled", "m-experts-swapped-in-weights", "10-autocast", "m-packed-conv",
    "27-labels-eos-masked", "17-wav2vec2-group-masked", "06-llama-cache-eager-bf16",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSET)
def test_scenes_of_the_corpus(name, tmp_path):
    a, b, _, patches = CASES[name].build()
    with patches:
        if join(a, b)[1] is None:
            pytest.skip("this machine's kernels give equal bits")
        saved = save(a, b, tmp_path / "scene")
        assert (saved.a.reproduced, saved.b.reproduced) == (True, True), saved.notes
        assert scene.replay(scene.load(tmp_path / "scene")).reproduces


def test_a_module_of_torch_alone(tmp_path):
    """Without code of its own around it, the op's place in the source is wherever the runs are made."""
    x = torch.randn(1, 5, 8)
    a, b = (Run(torch.nn.Linear(8, 8), {"input": x}) for _ in "ab")
    saved = save(a, b, tmp_path / "scene")
    assert (saved.place.op, saved.notes) == ("(model)/linear", ())
    assert scene.replay(scene.load(tmp_path / "scene")).reproduces


@pytest.mark.gpu
def test_the_articles_own_case(tmp_path):
    """A projection of Llama-2-7B's shape in float32: 18 rows and 50 run other kernels, and give other bits."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(4096, 4096, bias=False, device="cuda")
    x = torch.randn(1, 50, 4096, device="cuda")

    def layout(columns: int) -> Layout:
        return Layout.from_mask(torch.ones(1, columns), samples=["x"])

    a = Run(linear, {"input": x[:, :18]}, layout=layout(18), name="18 tokens")
    b = Run(linear, {"input": x}, layout=layout(50), name="50 tokens")
    saved = save(a, b, tmp_path / "scene")
    assert saved.machine.device == "cuda"
    assert (saved.a.reproduced, saved.b.reproduced) == (True, True)
    assert saved.a.kernels.names
    assert scene.replay(scene.load(tmp_path / "scene")).reproduces
    assert scene.write_script(tmp_path / "scene").reproduced
