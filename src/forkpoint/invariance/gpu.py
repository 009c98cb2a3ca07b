"""What a GPU computes by kernels of our own: see `triton_kernels`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any

import torch

from forkpoint.errors import InvarianceError
from forkpoint.invariance import triton_kernels
from forkpoint.invariance.asked import Attention
from forkpoint.invariance.sequences import Kind, Sequence, Sequences

NARROW = (torch.bfloat16, torch.float16)
DTYPES = (*NARROW, torch.float32)
_FEW = 16
"""Queries up to which a sequence is decoding: its keys are split among programs."""
_KEYS = 64
_CHUNK = 512
"""Keys whose sums are made by themselves: everywhere, so that a split makes no difference."""


def available() -> bool:
    """Whether Triton is installed."""
    return triton_kernels.triton is not None


def product(x: torch.Tensor, weight: torch.Tensor, inner: int, bias: torch.Tensor | None) -> torch.Tensor:
    """`[rows, inner]`, contiguous, times a matrix whose dimension `inner` is the one that is summed over."""
    if needs_gradients(x, weight, bias):
        return DifferentiableProduct.apply(x, weight, inner, bias, product)
    matrix = weight.t() if inner else weight
    out = x.new_empty(x.shape[0], matrix.shape[1])
    grid, numbers, how = _product(x, matrix, bias)
    _launched(triton_kernels.product, grid, (x, weight, x if bias is None else bias, out), numbers, how)
    return out


def product_of(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Callable[..., torch.Tensor] | None:
    """What multiplies rows of that form with a `[columns, inner]` matrix of that form; None where it can't be prepared.

    It takes a tensor of the same number of rows, `[…, inner]`, contiguous and aligned, the matrix, and a bias or None.
    """
    device, columns = x.device, weight.shape[0]
    grid, numbers, how = _product(x, weight.t(), bias)
    out = x.new_empty(x.shape[0], columns)
    launch = _compiled(
        triton_kernels.product, device, grid, numbers, how, (x, weight, x if bias is None else bias, out)
    )
    if device.type != "cuda":
        return None
    current, index = torch._C._cuda_getDevice, device.index

    def multiplied(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if needs_gradients(x, weight, bias):
            made = DifferentiableProduct.apply(x.reshape(-1, x.shape[-1]), weight, 1, bias, product)
            return made.view(*x.shape[:-1], columns)
        out = x.new_empty((*x.shape[:-1], columns))
        if index == current():
            launch(x, weight, x if bias is None else bias, out)
        else:
            with torch.cuda.device(device):
                launch(x, weight, x if bias is None else bias, out)
        return out

    return multiplied


def needs_gradients(*tensors: torch.Tensor | None) -> bool:
    """Whether what is made of tensors may be differentiated by one of them."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


class DifferentiableProduct(torch.autograd.Function):
    """A product whose gradients are torch's own products: called as `product` is, and with what makes it."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, inner: int, bias: torch.Tensor | None, how: Callable[..., Any]
    ) -> torch.Tensor:  # fmt: skip
        """The product."""
        ctx.save_for_backward(x, weight)
        ctx.inner = inner
        ctx.bias = () if bias is None else bias.shape
        return how(x, weight, inner, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of the rows, the matrix and the bias, as far as they are asked for."""
        (grad,), (x, weight) = grads, ctx.saved_tensors
        rows = of_matrix = of_bias = None
        if ctx.needs_input_grad[0]:
            rows = grad @ (weight if ctx.inner else weight.t())
        if ctx.needs_input_grad[1]:
            of_matrix = grad.t() @ x if ctx.inner else x.t() @ grad
        if ctx.needs_input_grad[3]:
            of_bias = grad.sum_to_size(ctx.bias)
        return rows, of_matrix, None, of_bias, None


class _WithoutGradients(torch.autograd.Function):
    """A result that depends on tensors, and has no gradient: to ask for one is an error."""

    @staticmethod
    def forward(ctx: Any, made: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """The result."""
        del ctx
        return made.detach()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """No gradient.

        Raises:
            InvarianceError: always.
        """
        del ctx, grads
        raise InvarianceError(
            "a gradient of layout-invariant attention on a GPU",
            "a forward pass",
            "differentiate outside the block",
        )


def _product(
    x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None
) -> tuple[tuple[int, int, int], tuple[Any, ...], dict[str, Any]]:
    """The grid, the numbers and the options of a product."""
    rows, columns = x.shape[0], matrix.shape[1]
    tile, how = _tile(rows)
    grid = (-(-rows // tile[0]) * -(-columns // tile[1]), 1, 1)
    numbers = rows, columns, x.shape[1], x.stride(0), *matrix.stride(), columns, *tile, bias is not None, 8
    return grid, numbers, how


def _launched(
    kernel: Any, grid: tuple[int, int, int], tensors: tuple[torch.Tensor, ...], numbers: tuple[Any, ...],
    how: dict[str, Any],
) -> None:  # fmt: skip
    """Launches a kernel; what Triton works out for each launch is kept by what it works it out from."""
    device = tensors[0].device
    places = tuple([one.data_ptr() % 16 == 0 for one in tensors])
    told = kernel, device, grid, numbers, places, tuple([one.dtype for one in tensors])
    ready = _ready.get(told)
    if ready is None:
        ready = _ready[told] = _compiled(kernel, device, grid, numbers, how, tensors)
        if len(_ready) > _MANY:
            _ready.clear()
        return
    if device.type != "cuda" or device.index == torch._C._cuda_getDevice():
        ready(*tensors)
    else:
        with torch.cuda.device(device):
            ready(*tensors)


_MANY = 1 << 14
_ready: dict[Hashable, Callable[..., None]] = {}
"""Launches, by what they are compiled for and the numbers that go with them."""


def _compiled(
    kernel: Any, device: torch.device, grid: tuple[int, int, int], numbers: tuple[Any, ...], how: dict[str, Any],
    tensors: tuple[torch.Tensor, ...],
) -> Callable[..., None]:  # fmt: skip
    """Launches a kernel for the first time, and returns what launches it on other tensors."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        made = kernel[grid](*tensors, *numbers, **how)
    if made is None:  # Triton's interpreter compiles nothing
        return lambda *given: kernel[grid](*given, *numbers, **how)
    return _bound(made, grid, numbers, device.index)


def _bound(
    made: Any, grid: tuple[int, int, int], numbers: tuple[Any, ...], device: int
) -> Callable[..., None]:
    """A compiled kernel with all but its tensors: Triton's own launcher, asked without what is the same every time."""
    run = made.run
    stream_of = torch._C._cuda_getCurrentRawStream
    plain = _FAST and all(
        getattr(run, name, 1) == 0 for name in ("global_scratch_size", "profile_scratch_size")
    )
    if not plain:
        ready = made[grid]
        return lambda *tensors: ready(*tensors, *numbers)
    launch, function, packed = run.launch, made.function, made.packed_metadata
    cooperative, dependent = run.launch_cooperative_grid, run.launch_pdl
    x, y, z = grid

    def launched(*tensors: torch.Tensor) -> None:
        launch(
            x, y, z, stream_of(device), function, cooperative, dependent, None, None, packed, None, None, None,
            *tensors, *numbers,
        )  # fmt: skip

    return launched


_FAST = triton_kernels.triton is not None and triton_kernels.triton.__version__.startswith("3.6.")
"""Whether the arguments of Triton's launcher are known: they are those of this version."""


def _tile(rows: int) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Rows, columns and depth of a tile; they change the pace, never a bit."""
    if rows <= 16:
        return (16, 64, 256), {"num_warps": 4, "num_stages": 3}
    if rows <= 64:
        return (64, 32, 128), {"num_warps": 4, "num_stages": 4}
    if rows <= 128:
        return (64, 64, 128), {"num_warps": 4, "num_stages": 4}
    if rows <= 256:
        return (64, 128, 64), {"num_warps": 4, "num_stages": 4}
    return (128, 256, 64), {"num_warps": 8, "num_stages": 3}


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, batch: Sequences,
    asked: Attention,
) -> torch.Tensor:  # fmt: skip
    """The attention of all sequences of a batch: `[batch, queries, heads, size]`, zeros for padding.

    Args:
        query, key, value, bias: as `attention.attention` has them.
        batch: the sequences.
        asked: the rest.
    """
    query, key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key, value))
    if bias is not None:
        bias = (bias if bias.stride(-1) == 1 else bias.contiguous()).expand(query.shape[0], -1, -1, -1)
    groups, covered = _groups(batch, query.device)
    rows, heads, queries = query.shape[:3]
    room = query.new_empty if covered == rows * queries else query.new_zeros
    out = room((rows, queries, heads, value.shape[3]))
    for group in groups:
        if group.gathered is None:
            _launch(query, key, value, bias, group, asked, out)
            continue
        one = group.gathered
        columns = torch.arange(key.shape[2], device=key.device)[one.keys]
        asking = torch.arange(query.shape[2], device=key.device)[one.queries]
        own = query[one.row : one.row + 1, :, asking]
        made = torch.empty(1, own.shape[2], *out.shape[2:], dtype=out.dtype, device=out.device)
        k, v = key[one.row : one.row + 1, :, columns], value[one.row : one.row + 1, :, columns]
        biased = (
            None if bias is None else bias[one.row : one.row + 1][:, :, asking][..., columns].contiguous()
        )
        _launch(own, k, v, biased, group, asked, made)
        out[one.row, asking] = made[0]
    return (
        _WithoutGradients.apply(out, query, key, value) if needs_gradients(query, key, value, bias) else out
    )


class _Group:
    """Sequences that one launch attends to.

    Attributes:
        kind: causal, window (0 for none), and whether a mask is read.
        few: whether each has few queries.
        sequences, blocks: the tables that the kernel reads.
        chunks: how many chunks of keys there are at most.
        mask: the mask to read, or None.
        gathered: the one sequence, if its columns must be brought together first; its row is 0 then.
        launches: what attends to them, by the forms of the tensors.
    """

    def __init__(self, members: Sequences, kind: Kind, gathered: Sequence | None) -> None:
        device = members[0].allowed.device
        self.causal, self.window, self.masked = kind
        table: list[int] = []
        spans: list[int] = []
        queries = [one.allowed.shape[0] for one in members]
        self.few = max(queries) <= _FEW
        self.rows = 16 if self.few else 64 if members[0].allowed.shape[0] <= 64 else 128
        blocks: list[int] = []
        for index, one in enumerate(members):
            count, keys = one.allowed.shape
            first_query, first_key = (
                0 if gathered is not None or not isinstance(part, slice) else part.start
                for part in (one.queries, one.keys)
            )
            row = 0 if gathered is not None else one.row
            table += [row, first_query, count, first_key, keys, one.position, one.before]
            begin = max(one.before, one.position - self.window + 1) if self.window else one.before
            spans.append(-(-(one.before + keys) // _CHUNK) - begin // _CHUNK)
            for start in range(0, count, self.rows):
                blocks += [index, start]
        self.chunks = max(spans)
        self.sequences = torch.tensor(table, dtype=torch.int32).to(device)
        self.blocks = torch.tensor(blocks, dtype=torch.int32).to(device)
        self.count = len(blocks) // 2
        self.mask = members[0].allowed.contiguous() if self.masked else None
        self.gathered = gathered
        self.launches: dict[Hashable, Callable[..., None]] = {}


def _groups(batch: Sequences, device: torch.device) -> tuple[list[_Group], int]:
    """Which sequences are attended to together, and how many queries they have; made once for all layers."""
    ready = batch[0].made.get("groups") if batch else None
    if ready is not None:
        return ready
    members = [one for one in batch if one.allowed.numel()]
    if not members:
        return [], 0
    kinds = [one.kind for one in members if one.kind is not None]
    if len(kinds) < len(members):
        kinds = _kinds(members, device)
    together: dict[Any, Sequences] = {}
    groups: list[_Group] = []
    for one, kind in zip(members, kinds, strict=True):
        contiguous = isinstance(one.queries, slice) and isinstance(one.keys, slice)
        if kind[2] or not contiguous:
            groups.append(_Group([one], kind, one))
        else:
            together.setdefault((kind, one.allowed.shape[0] <= _FEW), []).append(one)
    groups += [_Group(several, kind, None) for (kind, _), several in together.items()]
    made = groups, sum(one.allowed.shape[0] for one in members)
    batch[0].made["groups"] = made
    return made


def _kinds(members: Sequences, device: torch.device) -> list[Kind]:
    """What each sequence's mask is."""
    flags: list[torch.Tensor] = []
    for one in members:
        queries, keys = one.allowed.shape
        position = torch.arange(queries, device=device)[:, None] + one.position
        at = torch.arange(keys, device=device)[None, :] + one.before
        causal = at <= position
        window = one.allowed[-1].sum()
        windowed = causal & (at > position - window)
        flags += [one.allowed.all(), (one.allowed == causal).all(), (one.allowed == windowed).all(), window]
    told = torch.stack([flag.long() for flag in flags]).view(-1, 4).tolist()
    kinds: list[Kind] = []
    for every, causal, windowed, window in told:
        kinds.append(
            (True, 0, False) if causal else (True, window, False) if windowed else (False, 0, not every)
        )
    return kinds


def _launch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, group: _Group,
    asked: Attention, out: torch.Tensor,
) -> None:  # fmt: skip
    given = (
        query.shape, query.stride(), key.shape, key.stride(), value.shape, value.stride(), out.stride(),
        None if bias is None else bias.stride(), asked.scale, asked.softcap, asked.sinks is None,
        (query.data_ptr() | key.data_ptr() | value.data_ptr()) % 16,
    )  # fmt: skip
    launch = group.launches.get(given)
    if launch is None:
        launch = group.launches[given] = _attention(query, key, value, bias, group, asked, out)
    launch(query, key, value, bias, asked.sinks, out)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, group: _Group,
    asked: Attention, out: torch.Tensor,
) -> Callable[..., None]:  # fmt: skip
    """What attends to the sequences of a group, for tensors of these forms."""
    heads, size, values = query.shape[1], query.shape[3], value.shape[3]
    size_block, values_block = (max(16, 1 << (one - 1).bit_length()) for one in (size, values))
    wide = query.dtype is torch.float32
    rows = min(group.rows, 32) if wide and not group.few else group.rows
    blocks, count = group.blocks, group.count
    if rows != group.rows:
        blocks = _finer(group, rows)
        count = len(blocks) // 2
    split = group.few and group.chunks > 1
    places = count * heads * group.chunks if split else 0
    # Where several warps share a row, the sums over its keys are made in another order.
    warps = 1 if group.few else 4 if rows <= 64 else 8
    bias_strides = (0, 0, 0) if bias is None else bias.stride()[:3]
    mask = None if group.mask is None else group.mask.view(torch.uint8)
    strides = (
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *bias_strides,
        0 if mask is None else mask.stride(0), *out.stride()[:3], heads, heads // key.shape[1], group.chunks,
    )  # fmt: skip
    constants = (
        rows, _KEYS, _CHUNK, size, values, size_block, values_block, group.causal, group.window > 0,
        asked.softcap is not None, bias is not None, group.masked, asked.sinks is not None, split,
    )  # fmt: skip
    numbers = (*strides, asked.scale, asked.softcap or 0.0, group.window, *constants)
    how = {"num_warps": warps, "num_stages": 1 if wide else 2 if rows == 64 else 3, "enable_fp_fusion": False}
    grid = (count, heads, group.chunks if split else 1)
    sequences = group.sequences
    joining = (*out.stride()[:3], heads, group.chunks, rows, values, values_block, asked.sinks is not None)

    def launch(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None,
        sinks: torch.Tensor | None, out: torch.Tensor,
    ) -> None:  # fmt: skip
        partial = sums = out
        if split:
            partial = query.new_empty((places, rows, values_block), dtype=torch.float32)
            sums = query.new_empty((places, 2, rows), dtype=torch.float32)
        tensors = (
            query, key, value, out if bias is None else bias, out if mask is None else mask, out if sinks is None else sinks,
            out, partial, sums, sequences, blocks,
        )  # fmt: skip
        _launched(triton_kernels.attention, grid, tensors, numbers, how)
        if split:
            tensors = partial, sums, out if sinks is None else sinks, out, sequences, blocks
            _launched(
                triton_kernels.joined,
                (count, heads, 1),
                tensors,
                joining,
                {"num_warps": 4, "enable_fp_fusion": False},
            )

    return launch


def _finer(group: _Group, rows: int) -> torch.Tensor:
    """The table of blocks for fewer rows a block."""
    pairs = group.blocks.view(-1, 2)
    steps = torch.arange(0, group.rows, rows, dtype=torch.int32, device=pairs.device)
    first = (pairs[:, 1:] + steps).reshape(-1)
    which = pairs[:, :1].expand(-1, len(steps)).reshape(-1)
    return torch.stack((which, first), 1).reshape(-1).contiguous()
