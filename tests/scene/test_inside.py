"""Looking into fused ops: which part gives other bits, or which kernels ran."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forkpoint import scene
from forkpoint.runs.run import Run
from forkpoint.scene.format.kernels import Kernels, evidence
from forkpoint.scene.format.parts import PartComparison, inside_from_json
from forkpoint.scene.replaying.profiling import kernels
from forkpoint.scene.saving.decompositions import decompose

from .pairs import Attention, other_weights
from .sessions import save


def statuses(found) -> dict[str, str]:
    return {part.name: part.status for part in found.spelt}


def test_a_mask_that_differs_is_named(tmp_path):
    x = torch.randn(1, 2, 6, 8)
    a, b = Run(Attention(causal=False), {"input": x}), Run(Attention(causal=False, window=3), {"input": x})
    found = save(a, b, tmp_path / "scene").inside
    assert statuses(found) == {
        "scores": "equal", "masked scores": "differs", "softmax": "differs", "weighted sum": "differs"
    }  # fmt: skip
    assert "the runs part ways at: masked scores (scores equal)" in found.summary
    assert any(line.startswith("backend: ") for line in found.lines)


def test_it_survives_the_file(padded_scene):
    loaded = scene.load(padded_scene)
    found = loaded.inside
    assert found is not None
    assert "attn_mask None in A, a bool tensor of 4 dimensions in B" in found.arguments
    assert found.backend_a
    assert [part.name for part in found.spelt] == ["scores", "masked scores", "softmax", "weighted sum"]
    assert all(part.compared for part in found.spelt)
    assert f"called with other arguments: {'; '.join(found.arguments)}" in found.lines


class Norm(nn.Module):
    def __init__(self, kind: str, eps: float, weight: float) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps
        self.weight = nn.Parameter(torch.full((8,), weight))

    def forward(self, input):  # noqa: A002
        if self.kind == "rms":
            return F.rms_norm(input, (8,), self.weight, eps=self.eps)
        return F.layer_norm(input, (8,), self.weight, eps=self.eps)


@pytest.mark.parametrize(
    ("kind", "a", "b", "first"),
    [
        ("layer", (1e-5, 1.0), (1e-3, 1.0), "normalised"),
        ("layer", (1e-5, 1.0), (1e-5, 2.0), "scaled"),
        ("rms", (1e-5, 1.0), (1e-3, 1.0), "normalised"),
        ("rms", (1e-5, 1.0), (1e-5, 2.0), "scaled"),
    ],
)
def test_norms(kind, a, b, first, tmp_path):
    x = torch.randn(1, 5, 8)
    found = save(
        Run(Norm(kind, *a), {"input": x}), Run(Norm(kind, *b), {"input": x}), tmp_path / "scene"
    ).inside
    parts = list(statuses(found).items())
    assert next(name for name, status in parts if status == "differs") == first
    assert f"the runs part ways at: {first}" in found.summary


def test_a_composite_op_is_compared_operator_by_operator(tmp_path):
    class Loss(nn.Module):
        def __init__(self, smoothing: float) -> None:
            super().__init__()
            self.smoothing = smoothing

        def forward(self, input):  # noqa: A002
            target = torch.zeros(5, dtype=torch.long)
            return F.cross_entropy(input[0], target, reduction="none", label_smoothing=self.smoothing)

    x = torch.randn(1, 5, 8)
    found = save(Run(Loss(0.1), {"input": x}), Run(Loss(0.2), {"input": x}), tmp_path / "scene").inside
    assert found.operators_a == found.operators_b
    assert found.operators_a[0] == "aten::_log_softmax"
    below = {part.name: part.status for part in found.below}
    assert below["aten::_log_softmax"] == "equal"
    assert "differs" in below.values()
    assert found.summary.startswith(f"Of the {len(found.below)} operators below it, ")


def test_a_plain_op_has_no_inside(tmp_path):
    assert save(*other_weights("linear"), tmp_path / "scene").inside is None


@pytest.mark.parametrize("causal", [True, False])
def test_spelt_out_attention_is_attention(causal):
    query, key = torch.randn(1, 4, 6, 8, dtype=torch.float64), torch.randn(1, 2, 6, 8, dtype=torch.float64)
    mask = None if causal else torch.rand(6, 6) > 0.2
    mask = None if mask is None else mask | torch.eye(6, dtype=torch.bool)
    how = {"attn_mask": mask, "is_causal": causal, "enable_gqa": True, "scale": 0.3}
    right = F.scaled_dot_product_attention(query, key, key, **how)
    *_, (_, _, found) = decompose("scaled_dot_product_attention", (query, key, key), how)
    assert torch.allclose(found, right, atol=1e-12)


def test_spelt_out_norms_are_norms():
    x, w, b = torch.randn(3, 4, 8), torch.randn(8), torch.randn(8)
    *_, (_, _, found) = decompose("layer_norm", (x, (8,), w, b, 1e-3), {})
    assert torch.allclose(found, F.layer_norm(x, (8,), w, b, 1e-3), atol=1e-6)
    *_, (_, _, found) = decompose("rms_norm", (x, (8,), w), {"eps": None})
    assert torch.allclose(found, F.rms_norm(x, (8,), w), atol=1e-6)


def test_spelt_out_int8_products_are_those_of_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    assert bitsandbytes is not None
    x, weight = torch.randn(5, 32), torch.randn(16, 32)
    x[2, 7] = 50.0
    ops = torch.ops.bitsandbytes
    ca, sca, columns = ops.int8_vectorwise_quant.default(x.half(), 6.0)
    values = {
        name: value for name, _, value in decompose("bitsandbytes.int8_vectorwise_quant", (x.half(), 6.0), {})
    }
    assert torch.equal(values["outliers"].any(0).nonzero().flatten(), columns.flatten())
    assert torch.allclose(values["scale of each row"].flatten().float(), sca.flatten(), rtol=1e-3)
    cb, scb, _ = ops.int8_vectorwise_quant.default(weight.half())
    names = {
        name
        for name, _, _ in decompose(
            "bitsandbytes.int8_mixed_scaled_mm", (x.half(), ca, cb, sca, scb, columns), {}
        )
    }
    assert names == {"quantised", "int8 product", "outlier columns"}


def test_infinite_gaps_survive_json():
    part = PartComparison("scores", "", "differs", 4, 1, float("inf"))
    value = {
        "summary": "s", "operators_a": [], "operators_b": [], "below": [], "backend_a": "", "backend_b": "",
        "arguments": [], "spelt": [{**part.__dict__, "max_abs": "inf"}],
    }  # fmt: skip
    assert inside_from_json(value).spelt == (part,)


def test_kernels_on_a_cpu():
    x = torch.randn(4, 4)
    found = kernels(lambda: torch.softmax(x @ x, -1), torch.device("cpu"))
    assert found == Kernels(("aten::mm", "aten::_softmax"))


def test_a_call_that_cant_be_profiled():
    def fail() -> None:
        raise RuntimeError("no kernel for it\nand more")

    assert kernels(fail, torch.device("cpu")) == Kernels((), "the profiler said: no kernel for it")


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (("x",), ("x",), "Both runs ran x."),
        (("x",), ("y", "z"), "The two runs ran different kernels: x in A; y, z in B."),
        (("x",), ("aten::where", "x"), "Both runs ran x."),
        (("aten::where",), ("aten::where",), "Both runs ran aten::where."),
        (
            ("x",),
            ("gemm_split_k",),
            "The two runs ran different kernels: x in A; gemm_split_k in B, which splits the sum.",
        ),
        (
            ("void k<4>(int)",),
            ("void at::native::vectorized<FillFunctor>(int)", "void k<8>(int)"),
            "Both runs ran k, in forms of their own.",
        ),
        ((), ("x",), "Which kernels ran is not known: why."),
    ],
)
def test_what_kernels_tell(a, b, sentence):
    assert evidence(Kernels(a, "" if a else "why"), Kernels(b)) == sentence
