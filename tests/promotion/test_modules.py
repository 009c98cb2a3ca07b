"""Modules of torch with paths of their own: recurrent, transformer, compiled, scripted, flex attention."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from forkpoint.promotion import Promotion

DTYPES = [torch.float32, torch.bfloat16]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def agree(promoted: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-14) -> None:
    assert promoted.dtype == torch.float64
    torch.testing.assert_close(promoted, reference.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, bias=False, add_zero_attn=True),
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, kdim=8, vdim=8),
    ],
)
def test_attention_of_torch(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model = make().to(dtype).eval()
    x = numbers(2, 5, 8).to(dtype)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad(), Promotion() as promotion:
        promoted, weights = model(x, x, x, key_padding_mask=padding)
        alone, _ = model(x[1:, :3], x[1:, :3], x[1:, :3])
    wide = x.double()
    reference, _ = copy.deepcopy(model).double()(wide, wide, wide, key_padding_mask=padding)
    agree(promoted, reference)
    agree(promoted[1:, :3], alone)
    assert weights.dtype == torch.float64
    assert promotion.exact


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [None, nn.LayerNorm], ids=["plain", "norm"])
@pytest.mark.parametrize("aligned", ["right padding", "left padding", "no padding"])
def test_a_transformer_encoder_has_the_zeros_of_its_fast_path(
    dtype: torch.dtype, norm: type[nn.LayerNorm] | None, aligned: str
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, norm and norm(8)).to(dtype).eval()
    x = numbers(2, 5, 8).to(dtype)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1] = torch.tensor([0, 0, 0, 1, 1] if aligned == "right padding" else [1, 1, 0, 0, 0]).bool()
    given = {} if aligned == "no padding" else {"src_key_padding_mask": padding}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        reference = copy.deepcopy(model).double()(x.double(), **given)
        with Promotion():
            promoted = model(x, **given)
    agree(promoted, reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_with_packing(kind: type[nn.RNNBase], dtype: torch.dtype) -> None:
    model = kind(8, 6, 2, bidirectional=True, batch_first=True).to(dtype)
    x = numbers(3, 5, 8).to(dtype)

    def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 2, 3]), True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(model(packed)[0], batch_first=True)[0]

    with torch.no_grad(), Promotion() as promotion:
        promoted, plain = run(model, x), model(x)[0]
        alone = model(x[1:2, :2])[0]
    agree(promoted, run(copy.deepcopy(model).double(), x.double()))
    agree(plain, copy.deepcopy(model).double()(x.double())[0])
    agree(promoted[1:2, :2], alone)
    assert promotion.exact


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(
            nn.Conv1d(5, 4, 3, padding=1), nn.ReLU(inplace=True), nn.ConvTranspose1d(4, 4, 3)
        ),
        lambda: nn.InstanceNorm1d(5, track_running_stats=True, affine=True),
        lambda: nn.BatchNorm1d(5).eval(),
        lambda: nn.GroupNorm(5, 5),
        lambda: nn.Sequential(nn.RMSNorm(8), nn.Hardswish(inplace=True), nn.SELU(inplace=True), nn.GLU(1))[
            :3
        ],
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(5, 4, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)),
        lambda: nn.LSTM(8, 3, proj_size=2),
    ],
    ids=["conv", "instance-norm", "batch-norm", "group-norm", "in-place", "weight", "spectral", "projected"],
)
def test_other_layers(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = make().to(dtype), numbers(2, 5, 8).to(dtype)
    wide = copy.deepcopy(model).double()
    with torch.no_grad(), Promotion() as promotion:
        promoted = model(x)
    with torch.no_grad():
        reference = wide(x.double())
    if isinstance(promoted, tuple):
        promoted, reference = promoted[0], reference[0]
    agree(promoted, reference)
    assert promotion.exact


@pytest.fixture
def compiled_with_eager() -> Iterator[Callable[[nn.Module], nn.Module]]:
    yield lambda model: torch.compile(model, backend="eager")
    torch._dynamo.reset()


def test_compiled_modules_run_uncompiled(
    compiled_with_eager: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval()
    compiled, x = compiled_with_eager(model), numbers(2, 8)
    with torch.no_grad():
        native = compiled(x)
        with Promotion() as promotion:
            promoted = compiled(x)
        assert torch.equal(compiled(x), native)
    agree(promoted, copy.deepcopy(model).double()(x.double()))
    assert promotion.exact


class Casting(nn.Module):
    """Casts by name, keeps statistics and writes in place, all of which a script hides from function modes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(5)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(torch.relu(self.inner(x)).float())
        hidden += 1.5
        self.seen.add_(hidden.mean(dim=0).mean(dim=0))
        return (hidden + self.seen).to(torch.float32).softmax(-1) + torch.zeros(8, dtype=torch.float32)


class Uncast(Casting):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(torch.relu(self.inner(x))) + 1.5
        self.seen.add_(hidden.mean(dim=0).mean(dim=0))
        return (hidden + self.seen).softmax(-1)


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_modules(way: str) -> None:
    torch.manual_seed(0)
    model, x = Casting().eval(), numbers(2, 5, 8)
    script = torch.jit.script(model) if way == "script" else torch.jit.trace(model, x, check_trace=False)
    for _ in range(3):  # TorchScript optimises for the dtypes that it has met
        script(x)
    model.seen.zero_()
    reference = Uncast().eval()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad(), Promotion() as promotion:
        promoted, again = script(x), script(x)
    reference.double()
    agree(promoted, reference(x.double()))
    agree(again, reference(x.double()))
    assert promotion.exact
    assert torch.equal(model.seen, torch.zeros(8))
    with torch.no_grad():
        assert script(x).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_functions() -> None:
    def scale(x: torch.Tensor, factor: int) -> torch.Tensor:
        return x.float() / torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float) * factor)

    script, x = torch.jit.script(scale), numbers(2, 7)
    with torch.no_grad(), Promotion():
        agree(script(x, 3), x.double() / 21**0.5, 1e-15)


def test_flex_attention_with_its_own_score_function() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, key, value = (numbers(3, 2, 16, 8) for _ in range(3))
    slopes = torch.tensor([0.1, 0.2])

    def bias(score: torch.Tensor, _b: object, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor):
        return score.float() + slopes[head] * (q - k).to(torch.bfloat16)

    mask = create_block_mask(lambda _b, _h, q, k: q >= k, None, None, 16, 16, device="cpu")
    with torch.no_grad(), Promotion() as promotion:
        promoted = flex_attention(query, key, value, score_mod=bias, block_mask=mask)
    column = torch.arange(16)
    distance = column[:, None] - column
    scores = query.double() @ key.double().transpose(-1, -2) / 8**0.5
    scores = scores + slopes.double()[:, None, None] * distance
    agree(promoted, scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ value.double())
    assert promotion.exact


def test_lora_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).bfloat16()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)).eval()
    x = numbers(3, 8).bfloat16()
    with torch.no_grad(), Promotion() as promotion:
        promoted = model(x)
    with torch.no_grad():
        agree(promoted, copy.deepcopy(model).double()(x.double()))
    assert promotion.exact
