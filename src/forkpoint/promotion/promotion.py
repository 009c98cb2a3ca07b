"""The context manager that makes a model compute in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils import _pytree as pytree

from forkpoint.promotion import bitsandbytes, scripts
from forkpoint.promotion.mode import PromotionMode
from forkpoint.promotion.refusals import Refusal
from forkpoint.promotion.uncompiled import Uncompiled, transformer_encoder
from forkpoint.promotion.values import Values
from forkpoint.support.restoring import on_stack, undone


class Promotion:
    """Makes any model compute in float64, as it is, without a second copy of its weights.

        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Softmax(-1)).bfloat16()
        >>> with torch.no_grad(), Promotion() as promotion:
        ...     out = model(torch.ones(2, 3, dtype=torch.bfloat16))
        >>> out.dtype, promotion.exact, model[0].weight.dtype
        (torch.float64, True, torch.bfloat16)

    Inside the block every floating-point tensor *is* float64, as far as the model can tell: it says so when
    asked for its dtype, it is read as float64 (complex64 as complex128) by every torch function, and a request
    for a narrower dtype is a request for float64. Rounding to float32 or bfloat16 in the model's code
    therefore disappears; casts to integers and to float8 stay, being steps of a quantiser. The model follows
    the path that it would follow after ``model.double()``, but for the casts that it makes by name.

    Parameters, buffers, inputs and caches that exist before the block are never written; what the model
    writes to them is kept beside them (`values.Values`). Integer tensors are not promoted, and are written as
    ever. What the model itself assigns (``self.buffer = computed``) stays assigned, in float64.

    One object serves one run, in one block or in several: what one call writes to a cache, the next call reads,
    and what was refused adds up. Another run takes another object.

    Other modes: to record the calls as the model makes them, with results in float64, enter the recorder
    *after* this one (``with Promotion(), Recorder():``), so that it is asked first. The other way round it sees
    what promotion makes of the calls. What a recorder itself computes is promoted too, unless it does so under
    ``torch._C.DisableTorchFunction()``. An in-place operation on a tensor from before the block returns that
    tensor, whose exact value is `value(tensor)`.

    The block holds for the thread that enters it, except that the default dtype, and the class attributes that
    send TorchScript and `nn.TransformerEncoder` here, are the process's. What has been compiled runs uncompiled.
    Random numbers are drawn in float64: not those of a run without promotion, but the same ones in each
    promoted run from the same random state.

    Args:
        extra_hook: asked before each computing call as ``extra_hook(func, args, kwargs)``, with the arguments in
            float64; returns the result, or `NotImplemented` to leave the call alone. For operations that
            refuse float64 and that the caller knows how to do.
        cache_weights_up_to: bytes of float64 casts of parameters to keep for the length of the block. With 0
            each parameter is cast each time that it is used.
        shown_dtype: what a tensor made in the block says that its dtype is, and one from before the block keeps saying its own:
            a model that branches on a dtype takes its native path, and computes it in float64.
    """

    def __init__(
        self,
        extra_hook: Callable[..., Any] | None = None,
        *,
        cache_weights_up_to: int = 0,
        shown_dtype: torch.dtype | None = None,
    ) -> None:
        self._cache_bytes = cache_weights_up_to
        self._exits: contextlib.ExitStack | None = None
        self._values = Values()
        self._mode = PromotionMode(self._values, extra_hook, shown_dtype)

    @property
    def refused(self) -> list[Refusal]:
        """What was not computed in float64, each place once."""
        return self._mode.refused

    @property
    def computed(self) -> int:
        """How many calls were computed so far, for whoever shows how far a run is."""
        return self._mode.computed

    @property
    def calls(self) -> Mapping[Callable[..., Any], int]:
        """How often the model called each function so far; not what these call themselves."""
        return self._mode.calls

    def uncounted(self) -> contextlib.AbstractContextManager[None]:
        """What the model calls meanwhile is not among `calls`."""
        return self._mode.uncounted()

    @property
    def exact(self) -> bool:
        """Whether everything was computed in float64."""
        return not self.refused

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """The float64 value of a tensor as the run has left it; integers as they are."""
        with torch._C.DisableTorchFunction():
            return self._values.of(tensor)

    def values(self, tree: Any) -> Any:
        """The same structure with every tensor's float64 value: for results that are the model's own tensors."""
        return pytree.tree_map_only(torch.Tensor, self.value, tree)

    def hold(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Have a tensor from before the block be read as another value of its shape, in float64 or complex128."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self._values.writable(tensor).copy_(value)

    def watch_casts(self, on_cast: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        """Have somebody told of each cast to float64 through which gradients lead back, with the narrow tensor before it.

        What leads back through the cast is rounded to the narrow dtype behind it. Casts that are kept are not told of.
        """
        self._values.on_cast = on_cast

    def __enter__(self) -> Self:
        if self._exits is not None:
            raise RuntimeError(
                "this Promotion is active already; make another one for a block within its block"
            )
        self._values.keep_casts(self._cache_bytes)
        with contextlib.ExitStack() as exits:
            exits.enter_context(undone(partial(torch.set_default_dtype, torch.get_default_dtype())))
            torch.set_default_dtype(torch.float64)
            exits.enter_context(Uncompiled().block())
            exits.enter_context(bitsandbytes.quiet())
            exits.enter_context(transformer_encoder(self._mode))
            exits.enter_context(scripts.promoted(self._mode))
            exits.enter_context(on_stack(self._mode))
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exits, self._exits = self._exits, None
        assert exits is not None
        exits.__exit__(kind, error, trace)
        self._mode.forget()
