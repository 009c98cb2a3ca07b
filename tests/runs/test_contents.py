"""Nothing is touched: what a forward call writes is put back by value, whatever counts its writes or does not."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize
from torch.nn import functional as F

import forkpoint as fp
from forkpoint.capture import digest
from forkpoint.runs import contents
from forkpoint.runs.contents import Contents, noted_once, parts


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a model holds, with the bits of its tensors and how often they were written."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in (*vars(module).items(), *module._parameters.items(), *module._buffers.items()):
            found[f"{path}.{name}"] = _told(value)
    return found


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        bits = [
            (p.detach().clone().contiguous().view(-1).view(torch.uint8).tolist(), p.stride())
            for p in parts(value)
        ]
        return id(value), bits, value._version, value.requires_grad
    if isinstance(value, dict):
        return {key: _told(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(item) for item in value]
    if isinstance(value, nn.Module):
        return state_of(value)
    return _told(vars(value)) if isinstance(value, SimpleNamespace) else (id(value), str(value))


def check_untouched(model: nn.Module, *inputs: Tensor) -> fp.Result:
    """Compare a model with itself: it stays what it was, and what it computes is the same."""
    given = {f"input_{number}": value for number, value in enumerate(inputs)}

    def call(module: Any, named: dict[str, Any]) -> Any:
        return module(*named.values())

    before = state_of(model)
    result = fp.compare(fp.Run(model, given, call=call), fp.Run(model, given, call=call))
    assert state_of(model) == before
    return result


# ---------------------------------------------------------------------- all of torch.nn


def modules_of_torch() -> list[str]:
    return [
        name
        for name, kind in inspect.getmembers(nn, inspect.isclass)
        if issubclass(kind, nn.Module) and name not in NOT_RUN
    ]


NOT_RUN = frozenset(
    {
        "Module",
        "Container",
        "ModuleList",
        "ModuleDict",
        "ParameterList",
        "ParameterDict",
        "RNNBase",
        "RNNCellBase",
    }
    | {"DataParallel", "SyncBatchNorm", "NLLLoss2d"}
    | {name for name in dir(nn) if name.startswith("Lazy")}
)
"""Classes that compute nothing by themselves, or not on a CPU, or that are no longer meant to; or have no parameters yet."""


def _floats(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape).sin()


_CHOICES = torch.tensor([1, 0, 3, 2])
_LOSS = ((), (_floats(4, 5), _floats(4, 5).flip(0)))
_CHANCES = ((), (_floats(4, 5).sigmoid(), _floats(4, 5).flip(0).sigmoid()))
_CLASSES = ((), (_floats(4, 5), _CHOICES))
_SIGNS = ((), (_floats(4, 5), _floats(4, 5).flip(0), torch.ones(4)))
_VECTORS = ((), (_floats(4, 5), _floats(4, 5).flip(0), _floats(4, 5).flip(1)))
_LAYER = ((8, 2), (_floats(2, 3, 8), _floats(2, 3, 8)))

MADE: dict[str, tuple[tuple[Any, ...] | dict[str, Any], tuple[Tensor, ...]]] = {
    "AdaptiveLogSoftmaxWithLoss": ((8, 10, [4]), (_floats(4, 8), _CHOICES)),
    "Bilinear": ((4, 4, 3), (_floats(2, 4), _floats(2, 4))),
    "CTCLoss": (
        (),
        (
            _floats(6, 2, 5).log_softmax(-1),
            torch.ones(2, 3).long(),
            torch.tensor([6, 6]),
            torch.tensor([3, 2]),
        ),
    ),
    "CosineEmbeddingLoss": _SIGNS,
    "MarginRankingLoss": ((), (_floats(4), _floats(4).flip(0), torch.ones(4))),
    "TripletMarginLoss": _VECTORS,
    "TripletMarginWithDistanceLoss": _VECTORS,
    "GaussianNLLLoss": ((), (_floats(4, 5), _floats(4, 5), torch.ones(4, 5))),
    "HingeEmbeddingLoss": ((), (_floats(4, 5), _floats(4, 5).sign())),
    "SoftMarginLoss": ((), (_floats(4, 5), _floats(4, 5).sign())),
    "MultiLabelMarginLoss": ((), (_floats(2, 4), torch.tensor([[1, 0, -1, 2], [3, -1, 0, 1]]))),
    "LinearCrossEntropyLoss": ((8, 10), (_floats(4, 8), _CHOICES)),
    "CrossEntropyLoss": _CLASSES,
    "MultiMarginLoss": _CLASSES,
    "NLLLoss": _CLASSES,
    "BCELoss": _CHANCES,
    "Embedding": ({"num_embeddings": 9, "embedding_dim": 4, "max_norm": 0.5}, (_CHOICES[None],)),
    "EmbeddingBag": ({"num_embeddings": 9, "embedding_dim": 4, "max_norm": 0.5}, (_CHOICES[None],)),
    "Fold": (((4, 4), 2), (_floats(2, 8, 9),)),
    "FractionalMaxPool2d": ({"kernel_size": 2, "output_size": 3}, (_floats(2, 4, 8, 8),)),
    "FractionalMaxPool3d": ({"kernel_size": 2, "output_size": 3}, (_floats(2, 4, 8, 8, 8),)),
    "MaxUnpool1d": ((2,), (_floats(1, 2, 2), torch.tensor([[[0, 2], [1, 3]]]))),
    "MaxUnpool2d": ((2,), (_floats(1, 1, 1, 2), torch.tensor([[[[0, 2]]]]))),
    "MaxUnpool3d": ((2,), (_floats(1, 1, 1, 1, 2), torch.tensor([[[[[0, 2]]]]]))),
    "MultiheadAttention": ((8, 2), (_floats(3, 2, 8),) * 3),
    "PixelShuffle": ((2,), (_floats(2, 4, 3, 3),)),
    "PixelUnshuffle": ((2,), (_floats(2, 4, 4, 4),)),
    "RNNCell": ((4, 4), (_floats(2, 4),)),
    "Transformer": (
        {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "batch_first": True},
        (_floats(2, 3, 8), _floats(2, 3, 8)),
    ),
    "L1Loss": _LOSS,
    "MSELoss": _LOSS,
    "SmoothL1Loss": _LOSS,
    "HuberLoss": _LOSS,
    "KLDivLoss": ({"reduction": "batchmean"}, _CHANCES[1]),
    "Softmax": ((1,), (_floats(4, 5),)),
    "Softmin": ((1,), (_floats(4, 5),)),
    "LogSoftmax": ((1,), (_floats(4, 5),)),
    "Dropout2d": ((), (_floats(2, 4, 3, 3),)),
    "Dropout3d": ((), (_floats(2, 4, 3, 3, 3),)),
    "TransformerDecoderLayer": _LAYER,
    "TransformerEncoderLayer": ((8, 2), (_floats(2, 3, 8),)),
    "Unflatten": ((1, (2, 2)), (_floats(3, 4),)),
    "Upsample": ({"scale_factor": 2}, (_floats(2, 4, 8),)),
    "UpsamplingBilinear2d": ({"scale_factor": 2}, (_floats(2, 4, 8, 8),)),
    "UpsamplingNearest2d": ({"scale_factor": 2}, (_floats(2, 4, 8, 8),)),
    "BatchNorm1d": ((4,), (_floats(3, 4, 8),)),
    "InstanceNorm1d": ({"num_features": 4, "track_running_stats": True}, (_floats(3, 4, 8),)),
    "InstanceNorm2d": ({"num_features": 4, "track_running_stats": True}, (_floats(3, 4, 8, 8),)),
    "InstanceNorm3d": ({"num_features": 4, "track_running_stats": True}, (_floats(3, 4, 2, 2, 2),)),
}
"""How those are made and called that take something of their own."""

_ARGUMENTS: tuple[tuple[Any, ...], ...] = ((), (2,), (4,), (2, 4), (4, 4), (4, 4, 2), (0.5, 0.2))
_INPUTS = (_floats(2, 4, 8), _floats(2, 4, 8, 8), _floats(2, 4, 8, 8, 8), _floats(2, 4), _floats(2, 8, 4))


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A module of torch.nn in train mode, and what to call it with."""
    kind: Any = getattr(nn, name)
    if name == "Sequential":
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (_floats(3, 4),)
    if name in ("TransformerEncoder", "TransformerDecoder"):
        arguments, inputs = MADE[f"{name}Layer"]
        return kind(getattr(nn, f"{name}Layer")(*arguments, batch_first=True), 1), inputs
    if name in MADE:
        arguments, inputs = MADE[name]
        return kind(**arguments) if isinstance(arguments, dict) else kind(*arguments), inputs
    pairs = [(), (_floats(4, 5).flip(0),)] if "Loss" in name or name == "PairwiseDistance" else [()]
    for arguments in _ARGUMENTS:
        for first in (*_INPUTS, _floats(4, 5)):
            for more in (*pairs, (first.flip(0),)):
                try:
                    module = kind(*arguments)
                    with torch.no_grad():
                        kind(*arguments)(first, *more)
                except (
                    TypeError,
                    RuntimeError,
                    ValueError,
                    NotImplementedError,
                    AssertionError,
                    IndexError,
                    Warning,
                ):
                    continue
                return module, (first, *more)
    raise AssertionError(f"nn.{name} can't be made; say how in MADE")


@pytest.mark.parametrize("name", modules_of_torch())
def test_no_module_of_torch_is_touched(name):
    torch.manual_seed(0)
    model, inputs = made(name)
    assert model.training
    check_untouched(model, *inputs)


STATEFUL = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "Embedding", "EmbeddingBag")


@pytest.mark.parametrize("name", STATEFUL)
def test_these_modules_do_write_what_they_hold(name):
    torch.manual_seed(0)
    model, inputs = made(name)
    before = state_of(model)
    with torch.no_grad():
        model(*inputs)
    assert state_of(model) != before


# ---------------------------------------------------------------------- models of transformers


@pytest.mark.parametrize("name", ["llama", "bert", "mamba2", "mixtral", "wav2vec2", "whisper"])
def test_no_model_of_transformers_is_touched_in_train_mode(name):
    architecture = ARCHITECTURES[name]
    model = architecture.build().train()
    inputs = architecture.inputs([[5, 6, 7, 8], [8, 9, 5, 6]])
    before = state_of(model)
    fp.compare(fp.Run(model, inputs), fp.Run(model, inputs), probes=False)
    assert state_of(model) == before


def _resnet() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    return ResNetModel(config), {"pixel_values": _floats(2, 3, 32, 32)}


def _mobilenet() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import MobileNetV1Config, MobileNetV1Model

    return MobileNetV1Model(MobileNetV1Config(depth_multiplier=0.25)), {"pixel_values": _floats(2, 3, 32, 32)}


def _conformer() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel

    config = Wav2Vec2ConformerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    return Wav2Vec2ConformerModel(config), {"input_values": _floats(2, 400)}


@pytest.mark.parametrize("build", [_resnet, _mobilenet, _conformer])
def test_no_model_of_transformers_with_a_batch_norm_is_touched(build):
    torch.manual_seed(0)
    model, inputs = build()
    model.train()
    before = state_of(model)
    result = fp.compare(fp.Run(model, inputs), fp.Run(model, inputs))
    assert state_of(model) == before
    assert result.verdict.mechanism != "atomics"


# ---------------------------------------------------------------------- writes that nobody counts


class Writer(nn.Module):
    """Does something to what it holds, then returns what depends on it."""

    def __init__(self, write: Callable[[Any], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("observed", torch.zeros(0))
        self.register_buffer("wide", torch.arange(3.0).expand(2, 3))
        self.plain = torch.zeros(3)
        self.listed = [torch.zeros(2), {"deep": (torch.zeros(2), [torch.zeros(1)])}]
        self.named = SimpleNamespace(tensor=torch.zeros(2), number=0, items=[1])
        self.sparse = torch.eye(3).to_sparse()
        self.blocks = [nn.Linear(2, 2), nn.BatchNorm1d(2)]
        self.write = [write]

    def forward(self, x: Tensor) -> Tensor:
        self.write[0](self)
        return self.linear(x) * (1 + self.count.sum() + self.plain.sum() + self.listed[0].sum())


def _batch_norm(model: Writer) -> None:
    F.batch_norm(torch.randn(3, 4) + 2, model.norm.running_mean, model.norm.running_var, training=True)


def _resize(model: Writer) -> None:
    model.observed.resize_(5).fill_(3.0)


def _replace_data(model: Writer) -> None:
    model.linear.weight.data = model.linear.weight.data * 2


def _turn(model: Writer) -> None:
    model.linear.weight.data = model.linear.weight.data.t()


def _replace_attribute(model: Writer) -> None:
    model.named.tensor = model.named.tensor + 1
    model.named.number += 1
    model.named.items.append(2)
    model.named.more = 1


def _in_hidden_modules(model: Writer) -> None:
    model.blocks[1](torch.randn(3, 2))
    model.blocks[0].eval()
    model.blocks[0].weight.data.add_(1)


WRITES: dict[str, Callable[[Any], object]] = {
    "a statistic": _batch_norm,
    "data of a buffer": lambda m: m.count.data.add_(1),
    "a buffer": lambda m: m.count.add_(1),
    "a buffer that repeats elements": lambda m: m.wide[:, 0].untyped_storage().fill_(1),
    "a buffer resized": _resize,
    "data of an attribute": lambda m: m.plain.data.add_(1),
    "in a list": lambda m: m.listed[0].data.add_(1),
    "deep in containers": lambda m: m.listed[1]["deep"][1][0].data.add_(1),
    "of a container in a container": lambda m: m.listed[1].update(other=1),
    "in an object": lambda m: m.named.tensor.data.add_(1),
    "of an object": _replace_attribute,
    "in a sparse tensor": lambda m: m.sparse._values().data.mul_(2),
    "a parameter": lambda m: m.linear.weight.mul_(2),
    "data of a parameter": lambda m: m.linear.weight.data.mul_(2),
    "a parameter's data replaced": _replace_data,
    "a parameter's data turned": _turn,
    "in modules in a list": _in_hidden_modules,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_put_back_and_repeats(name):
    torch.manual_seed(0)
    model = Writer(WRITES[name])
    result = check_untouched(model, _floats(3, 4))
    assert result.verdict.kind == "identical" or name in ("a statistic", "in modules in a list")


def test_a_fused_observer_is_put_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), FusedMovingAvgObsFakeQuantize())
    assert check_untouched(model, _floats(3, 4)).verdict.kind == "identical"


def test_writes_are_put_back_in_inference_mode_too():
    with torch.inference_mode():
        model = Writer(WRITES["data of a buffer"])
        inputs = {"x": _floats(3, 4)}
        fp.compare(fp.Run(model, inputs), fp.Run(model, inputs), probes=False)
        assert not bool(model.count.any())


class Returning(nn.Module):
    """Returns a view of a buffer that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[: len(x)] = x
        return self.cache[: len(x)]


def test_what_was_returned_stays_when_the_buffer_it_lies_in_is_put_back():
    model = Returning()
    output = fp.Run(model, {"x": torch.ones(2, 3)}).execute()[0]
    assert bool((output == 1).all())
    assert not bool(model.cache.any())
    result = fp.compare(fp.Run(model, {"x": torch.ones(2, 3)}), fp.Run(model, {"x": torch.ones(2, 3) * 2}))
    assert result.verdict.kind == "inputs"
    assert result.impact.max_abs == 1


# ---------------------------------------------------------------------- what is too large


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Room for the copies of all that a `Writer` holds but its largest parameter."""
    monkeypatch.setattr(contents, "MOST_COPIED", 310)
    return None


@pytest.mark.usefixtures("small_room")
@pytest.mark.parametrize("name", ["a parameter", "data of a parameter"])
def test_what_is_too_large_to_be_copied_is_named(name):
    model = Writer(WRITES[name])
    inputs = {"x": _floats(3, 4)}
    with pytest.raises(fp.CaptureError, match=r"writes linear\.weight .* too large"):
        fp.compare(fp.Run(model, inputs), fp.Run(model, inputs))


@pytest.mark.parametrize("name", WRITES)
def test_with_no_room_for_copies_every_write_is_put_back_or_named(name, monkeypatch):
    """What replaces a tensor is seen, and put back; what writes to its memory is found by the digest."""
    monkeypatch.setattr(contents, "MOST_COPIED", 0)
    model = Writer(WRITES[name])
    before = state_of(model)
    inputs = {"x": _floats(3, 4)}
    named = ""
    try:
        fp.compare(fp.Run(model, inputs), fp.Run(model, inputs))
    except fp.CaptureError as error:
        named = str(error)
    assert state_of(model) == before or re.search(r"forward call writes .* too large to be copied", named)


@pytest.mark.usefixtures("small_room")
def test_large_data_that_was_replaced_is_put_back_all_the_same():
    model = Writer(WRITES["a parameter's data replaced"])
    before = state_of(model)
    inputs = {"x": _floats(3, 4)}
    fp.compare(fp.Run(model, inputs), fp.Run(model, inputs))
    assert state_of(model) == before


@pytest.mark.usefixtures("small_room")
def test_a_large_parameter_that_nobody_writes_is_no_matter():
    model = Writer(lambda m: m.count.data.add_(1))
    assert fp.compare(*(fp.Run(model, {"x": _floats(3, 4)}) for _ in range(2))).verdict.kind == "identical"


@dataclass
class Counted:
    """A digest that counts how often it is asked."""

    sizes: list[int] = field(default_factory=list[int])

    def __call__(self, memory: Tensor) -> Tensor:
        self.sizes.append(memory.numel())
        return digest.of_memory(memory)


def test_runs_share_what_was_noted(monkeypatch):
    monkeypatch.setattr(contents, "MOST_COPIED", 600)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 64))
    run, counted = fp.Run(model, {"input": _floats(3, 4)}), Counted()
    with noted_once(counted):
        for _ in range(3):
            run.execute()
    assert counted.sizes == [1024, 1024], "the one matrix that is not copied: before, and afterwards"


def test_the_digest_of_a_memory_shows_what_changes():
    memory = torch.randint(256, (100_003,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = digest.of_memory(memory)
    for place in (0, 5, 16384, 98304, 100_002):
        changed = memory.clone()
        changed[place] += 1
        assert not torch.equal(digest.of_memory(changed), before), place
    swapped = torch.cat([memory[16384:32768], memory[:16384], memory[32768:]])
    assert not torch.equal(digest.of_memory(swapped), before)
    assert torch.equal(digest.of_memory(memory.clone()), before)


def test_a_parameter_without_values_has_no_contents():
    noted = Contents()
    with torch.device("meta"):
        noted.note([torch.ones(3)])
    noted.put_back(thoroughly=True)
