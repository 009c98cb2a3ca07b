"""Ops without an invariant form are refused by name, with the line that calls them; or left as they are, and listed."""

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.invariance.inspection import reason

ATEN = torch.ops.aten
X = torch.randn(2, 5, 8)


class Pooled(nn.Module):
    """A mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Compared(nn.Module):
    """A product of tokens with tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(1, 2)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Pooled(), "mean at test_inspection.py:.*dimension 1"),
        (Compared(), "bmm at test_inspection.py:.*both its factors come from tokens"),
        (nn.Conv1d(5, 5, 3), "convolution"),
        (nn.LSTM(8, 8), "lstm|mkldnn_rnn_layer"),
    ],
)
def test_refused(module, words, inference):
    module.eval()
    refused = pytest.raises(fp.InvarianceError, match=words)
    with torch.inference_mode(inference), fp.invariant(module), refused:
        module(X)


def test_left_and_listed():
    module = Pooled().eval()
    with fp.invariant(module, unsupported="leave") as block:
        assert torch.equal(module(X), X.mean(1))
    (what,) = block.left
    assert what.startswith("mean at test_inspection.py:")


@pytest.mark.parametrize("name", ["mamba", "whisper", "bloom", "deberta", "gptj", "fnet"])
def test_architectures_without_a_form_are_refused(name):
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    inputs = architecture.inputs([prompt(9), prompt(4)])
    with (
        torch.no_grad(),
        fp.invariant(model),
        pytest.raises(fp.InvarianceError, match="no layout-invariant form"),
    ):
        model(**inputs)


def test_what_is_known():
    assert reason(ATEN.mul.Tensor, (X, X), {}) is None
    assert reason(ATEN.cumsum.default, (torch.arange(5), 0), {}) is None
    assert reason(ATEN._softmax.default, (X, -1, False), {}) is None
    assert reason(ATEN.sum.dim_IntList, (X, [-1]), {}) is None
    assert reason(ATEN.native_layer_norm.default, (X, [8], None, None, 1e-5), {}) is None


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (ATEN._softmax.default, (X, 1, False)),
        (ATEN.sum.default, (X,)),
        (ATEN.sum.dim_IntList, (X, [1, 2])),
        (ATEN.native_layer_norm.default, (X, [5, 8], None, None, 1e-5)),
        (ATEN.native_batch_norm.default, (X, None, None, None, None, True, 0.1, 1e-5)),
        (ATEN.cumsum.default, (X, 1)),
        (ATEN._fft_r2c.default, (X, [1], 0, True)),
    ],
)
def test_what_is_not(func, args):
    assert reason(func, args, {}) is not None
