"""Mixers that are sound or faulty: norms, convolutions, recurrences, quantised and sparse layers, noise."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modules import WIDTH, CausalAttention

# ---------------------------------------------------------------------- norms and statistics


class TokenNorm(nn.Module):
    """RMSNorm whose mean runs over the tokens instead of the features."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        variance = hidden.pow(2).mean(1, keepdim=True)
        return self.scale * hidden * torch.rsqrt(variance + 1e-6)


class FeatureNorm(TokenNorm):
    """RMSNorm as it should be."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.scale * hidden * torch.rsqrt(variance + 1e-6)


class WholeNorm(nn.Module):
    """LayerNorm over tokens and features together."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[1:])


class Recentred(nn.Module):
    """Takes the batch's mean away."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden - hidden.mean(0, keepdim=True)


class TimeBatchNorm(nn.Module):
    """BatchNorm1d over rows and frames."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.norm(hidden.transpose(1, 2)).transpose(1, 2)


class TimeGroupNorm(nn.Module):
    """GroupNorm whose groups run over all frames."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.norm(hidden.transpose(1, 2)).transpose(1, 2)


class TokenGroupNorm(nn.Module):
    """GroupNorm of each token by itself."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.norm(hidden.flatten(0, 1)).view_as(hidden)


class Tabular(nn.Module):
    """Rows of features, no tokens: linear, BatchNorm, linear."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(features, WIDTH),
            nn.BatchNorm1d(WIDTH),
            nn.Linear(WIDTH, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


class Images(nn.Module):
    """Images [rows, 3, height, width]: convolution, BatchNorm, the mean over the image, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(x)).relu().mean((2, 3)))


class TimeInstanceNorm(nn.Module):
    """Normalises each feature of a row over all its columns."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.norm(hidden.transpose(1, 2)).transpose(1, 2)


class SqueezeExcite(nn.Module):
    """Gates the features by their mean over all frames, padding included."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        gate = self.up(self.down(hidden.mean(1)).relu()).sigmoid()
        return hidden * gate[:, None]


# ---------------------------------------------------------------------- convolution and recurrence


class Depthwise(nn.Module):
    """Two depthwise convolutions over time, with biases.

    The first makes padding frames nonzero (by its bias), the second carries them into real ones.
    `masked` sets padding to zero before each, as it should be done.
    """

    def __init__(
        self, sides: str = "both", masked: bool = False, width: int = WIDTH, kernel: int = 3
    ) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, kernel, groups=width)
        self.second = nn.Conv1d(width, width, kernel, groups=width)
        reach = kernel - 1
        self.reach = {"both": (reach // 2, reach - reach // 2), "left": (reach, 0), "right": (0, reach)}[
            sides
        ]
        self.masked = masked

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        for convolution in (self.first, self.second):
            if self.masked and mask is not None:
                hidden = hidden * mask[..., None].to(hidden.dtype)
            hidden = convolution(F.pad(hidden.transpose(1, 2), self.reach)).transpose(1, 2)
        return hidden


class Recurrence(nn.Module):
    """An LSTM or GRU over the columns as they come; `packed` leaves padding out."""

    def __init__(
        self, kind: Any = nn.LSTM, both: bool = False, packed: bool = False, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.cell = kind(width, width // 2 if both else width, batch_first=True, bidirectional=both)
        self.packed = packed

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if not self.packed or mask is None:
            return self.cell(hidden)[0]
        packed = nn.utils.rnn.pack_padded_sequence(
            hidden, mask.sum(-1).cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(
            self.cell(packed)[0], batch_first=True, total_length=mask.shape[1]
        )
        return out


class Fourier(nn.Module):
    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return torch.fft.fft(hidden, dim=1).real


class RunningMean(nn.Module):
    """Each token gets the mean of all earlier columns, padding among them."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        counts = torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)
        return hidden + hidden.cumsum(1) / counts[:, None]


# ---------------------------------------------------------------------- quantised and sparse


class DynamicLinear(nn.Linear):
    """Activations rounded to int8 with a scale of their own; `over` says what shares a scale."""

    def __init__(self, width: int = WIDTH, over: str = "tensor") -> None:
        super().__init__(width, width)
        self.over = over

    def amax(self, x: Tensor) -> Tensor:
        if self.over == "tensor":
            return x.abs().amax()
        if self.over == "token":
            return x.abs().amax(-1, keepdim=True)
        # Meant to be one scale a token, reduced over the tokens instead.
        return x.abs().amax(-2, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = self.amax(x) / 127
        steps = torch.clamp(torch.round(x / scale), -128, 127)
        return F.linear(steps * scale, self.weight, self.bias)


class Float8Linear(DynamicLinear):
    """The same with an 8-bit float."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.amax(x) / 448
        narrow = (x / scale).to(torch.float8_e4m3fn)
        return F.linear(narrow.to(x.dtype) * scale, self.weight, self.bias)


class CapacityExperts(nn.Module):
    """Top-1 experts that take tokens of the whole batch in order, up to a capacity; the rest pass by."""

    def __init__(
        self, experts: int = 2, factor: float | None = None, capacity: int = 6, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))
        self.factor, self.capacity = factor, capacity

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        flat = hidden.flatten(0, 1)
        weights = self.router(flat).softmax(-1)
        weight, choice = weights.max(-1)
        chosen = F.one_hot(choice, len(self.experts))
        place = (chosen.cumsum(0) * chosen).sum(-1)
        capacity = self.capacity
        if self.factor is not None:
            capacity = int(self.factor * flat.shape[0] / len(self.experts))
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            taken = ((choice == index) & (place <= capacity)).nonzero().squeeze(-1)
            out = out.index_copy(0, taken, expert(flat[taken]) * weight[taken, None])
        return hidden + out.view_as(hidden)


class NearTieExperts(nn.Module):
    """Two experts whose router is a tie up to rounding: which one a token takes is decided by the last bit."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.router = nn.Linear(width, 1, bias=False)
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        score = self.router(hidden)
        return hidden + torch.where(score > 0, self.left(hidden), self.right(hidden))


class ScaledHead(CausalAttention):
    """Causal attention with one head's output multiplied."""

    factor = 1.0

    def normalised(self, scores: Tensor) -> Tensor:
        weights = scores.softmax(-1)
        factors = torch.ones(self.heads, 1, 1, dtype=weights.dtype)
        factors[1] = self.factor
        return weights * factors


# ---------------------------------------------------------------------- random


class SystemNoise(nn.Module):
    """Adds noise that no seed of torch controls."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        bits = torch.frombuffer(bytearray(os.urandom(hidden.numel())), dtype=torch.uint8)
        return hidden + bits.view(hidden.shape).to(hidden.dtype) / 256e3


class ShuffledSum(nn.Module):
    """Adds up its parts in an order that no seed of torch controls, as atomics do."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        order = sorted(range(hidden.shape[-1]), key=lambda _: os.urandom(4))
        total = torch.zeros_like(hidden[..., 0])
        for index in order:
            total = total + hidden[..., index]
        return hidden + total[..., None]


class SeededNoise(nn.Module):
    """Adds noise from torch's generator."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + 1e-3 * torch.randn_like(hidden)


class AlwaysDropout(nn.Module):
    """Functional dropout that eval mode does not switch off."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return F.dropout(hidden, 0.1)


class LayerDrop(nn.Module):
    """Skips its inner mixer at random."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if float(torch.rand(())) < 0.5:
            return hidden
        return self.inner(hidden, mask)


# ---------------------------------------------------------------------- a kernel of one's own


@torch.library.custom_op("corpus::blocked_linear", mutates_args=())
def blocked_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, summed in blocks whose size follows the number of rows. No kernel for float64."""
    if x.dtype == torch.float64 or weight.dtype == torch.float64:
        raise RuntimeError("blocked_linear: no kernel for float64")
    block = 4 if x.shape[:-1].numel() < 12 else 16
    total = x.new_zeros(*x.shape[:-1], weight.shape[0])
    for start in range(0, x.shape[-1], block):
        total = total + x[..., start : start + block] @ weight[:, start : start + block].T
    return total


@blocked_linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class FusedLinear(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + blocked_linear(hidden, self.weight)
