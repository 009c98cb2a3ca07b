"""Fused and compiled paths, which no mode reaches into, switched off for a block.

What they compute instead is the same function in float64, not the same kernel.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import torch
from torch import nn

from forkpoint.promotion.mode import PromotionMode
from forkpoint.support.restoring import undone


class Uncompiled:
    """What `torch.compile` has compiled runs, in this thread, as the Python that it was made from.

    Dynamo would compile whatever looks at the calls, and take up what it made of that the next time.

    Args:
        cached: run what was compiled before as it is, compiled, and compile nothing new.

    Attributes:
        active: False to have it run as ever for a while.
        noticed: whether anything was run that would have been compiled.
    """

    def __init__(self, *, cached: bool = False) -> None:
        self._instead = False if cached else None
        self._thread = threading.get_ident()
        self._as_ever: Callable[[Any], Any] = _same
        self.active = True
        self.noticed = False

    @contextlib.contextmanager
    def block(self) -> Generator[None]:
        """The block in which it holds."""
        dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
        choose = getattr(dynamo, "_callback_from_stance", None)
        if (
            choose is None
        ):  # nothing has been compiled, and importing Dynamo takes seconds; or it is another torch
            with _by_stance(dynamo, cached=self._instead is False):
                yield
            return
        self._as_ever = choose
        with undone(partial(setattr, dynamo, "_callback_from_stance", choose)):
            dynamo._callback_from_stance = self._choose  # noqa: SLF001
            with contextlib.nullcontext() if self._instead is False else _flex_attention_as_written():
                yield

    def _choose(self, callback: Any) -> Any:
        """What Dynamo asks for each frame that it may compile: None for nothing, False for what it has."""
        if callback in (None, False) or not self.active or threading.get_ident() != self._thread:
            return self._as_ever(callback)
        self.noticed = True
        if _expect_frames is not None:  # else `fullgraph=True` misses what it should have compiled
            _expect_frames(-1)
        return self._instead


_in_c: Any = getattr(torch._C, "_dynamo", None)
_expect_frames: Callable[[int], int] | None = getattr(
    getattr(_in_c, "eval_frame", None), "set_fullgraph_compiled_frame_count", None
)


def _same(callback: Any) -> Any:
    return callback


@contextlib.contextmanager
def _by_stance(dynamo: Any, *, cached: bool) -> Generator[None]:
    """The same for all threads, if Dynamo is there."""
    if dynamo is None:
        yield
        return
    before: Any = getattr(dynamo, "_stance", None)
    put_back = (lambda: None) if before is None else partial(dynamo._set_stance, before)  # noqa: SLF001
    with undone(put_back), torch.compiler.set_stance("eager_on_recompile" if cached else "force_eager"):
        yield


@contextlib.contextmanager
def _flex_attention_as_written() -> Generator[None]:
    """Flex attention compiles itself, and warns where it may not; its own debug flag stops both."""
    module: Any = sys.modules.get("torch.nn.attention.flex_attention")
    flag = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    before = getattr(module, flag, None)
    if before is None:
        yield
        return
    with undone(lambda: setattr(module, flag, before)):
        setattr(module, flag, True)
        yield


@contextlib.contextmanager
def transformer_encoder(mode: PromotionMode) -> Generator[None]:
    """Gives `nn.TransformerEncoder` the zeros that its fast path leaves in padded rows.

    Under any function mode it takes its slow path, which computes padded rows like others. Whoever sums over
    them afterwards would get another result than natively, and padding would seem to leak.
    """
    native = nn.TransformerEncoder.forward

    def forward(
        self: nn.TransformerEncoder,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        if not mode.active or not _drops_padding(self, src, mask, src_key_padding_mask):
            return native(self, src, mask, src_key_padding_mask, is_causal)
        assert src_key_padding_mask is not None
        output = src
        for layer in self.layers:
            output = layer(output, src_key_padding_mask=src_key_padding_mask)
        padded = (
            src_key_padding_mask if src_key_padding_mask.dtype is torch.bool else src_key_padding_mask != 0
        )
        output = output.masked_fill(padded.unsqueeze(-1), 0.0)
        return output if self.norm is None else self.norm(output)

    with undone(lambda: setattr(nn.TransformerEncoder, "forward", native)):
        nn.TransformerEncoder.forward = forward  # type: ignore[method-assign]
        yield


def _drops_padding(
    encoder: nn.TransformerEncoder,
    src: torch.Tensor,
    mask: torch.Tensor | None,
    padding: torch.Tensor | None,
) -> bool:
    """The conditions of `nn.TransformerEncoder.forward` for packing real tokens only, but for the mode's."""
    first: Any = encoder.layers[0]
    if (
        padding is None
        or mask is not None
        or src.dim() != 3
        or src.is_nested
        or first.training
        or not encoder.use_nested_tensor
        or not torch.backends.mha.get_fastpath_enabled()
        or torch.is_autocast_enabled()
    ):
        return False
    weights = (*first.self_attn.parameters(), *first.norm1.parameters(), *first.linear1.parameters(), src)
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return False
    is_token = padding.logical_not() if padding.dtype is torch.bool else padding == 0
    left_aligned = bool((is_token.long().cummin(dim=1).values == is_token).all())
    return left_aligned or not getattr(encoder, "mask_check", True)
