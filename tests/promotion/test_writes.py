"""Writes: in place, through views, with `out=`, into tensors of the run and into those from before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.promotion import Promotion

THIRD = 1 / 3


def test_a_tensor_of_the_run_accumulates_in_float64() -> None:
    with torch.no_grad(), Promotion():
        total = torch.zeros(2, 2, dtype=torch.float32)
        total[:, 0] = torch.full((2,), THIRD)
        total.add_(THIRD)
        total += THIRD
    assert total.dtype == torch.float64
    assert torch.equal(total, torch.tensor([[3 * THIRD, 2 * THIRD]] * 2, dtype=torch.float64))


def test_a_tensor_from_before_is_written_beside_itself() -> None:
    buffer = torch.ones(3, 2)
    row = buffer[1]  # a view taken before the block
    with torch.no_grad(), Promotion() as promotion:
        column = buffer[:, 0]
        same = buffer.add_(THIRD)
        later = buffer.t()
        row.mul_(2.0)
        read = (column + 0.0, later + 0.0)
    expected = torch.full((3, 2), 1 + THIRD, dtype=torch.float64)
    expected[1] *= 2
    assert same is buffer
    assert torch.equal(promotion.value(buffer), expected)
    assert torch.equal(read[0], expected[:, 0])
    assert torch.equal(read[1], expected.t())
    assert torch.equal(buffer, torch.ones(3, 2))
    assert buffer.dtype == torch.float32


def test_out_goes_to_the_same_tensor() -> None:
    buffer, x = torch.zeros(2), torch.full((2,), 3.0)
    with torch.no_grad(), Promotion() as promotion:
        returned = torch.reciprocal(x, out=buffer)
        read = buffer * 1
    assert returned is buffer
    assert torch.equal(read, torch.full((2,), THIRD, dtype=torch.float64))
    assert torch.equal(promotion.value(buffer), read)


@pytest.mark.parametrize(
    "identity",
    [
        lambda x: F.dropout(x, training=False),
        lambda x: x.contiguous(),
        lambda x: x.to(torch.float32),
        lambda x: x.to(x.dtype),
        lambda x: x.float(),
        torch.as_tensor,
        lambda x: x.unfold(0, 4, 4)[0],
        torch.nn.Identity(),
    ],
    ids=["dropout", "contiguous", "to", "to-own-dtype", "float", "as_tensor", "unfold", "Identity"],
)
def test_what_natively_returns_the_same_memory_still_does(identity: Callable[..., torch.Tensor]) -> None:
    x = torch.ones(4)
    with torch.no_grad(), Promotion() as promotion:
        identity(x).add_(THIRD)
    assert torch.equal(promotion.value(x), torch.full((4,), 1 + THIRD, dtype=torch.float64))


@pytest.mark.parametrize(
    "copying",
    [
        lambda x: x.float(),
        lambda x: x.to(torch.bfloat16),
        lambda x: x.half(),
        lambda x: x.type(torch.FloatTensor),
    ],
    ids=["float", "to", "half", "type"],
)
def test_a_cast_that_copies_natively_still_copies(copying: Callable[..., torch.Tensor]) -> None:
    old = torch.ones(4, dtype=torch.float64)
    with torch.no_grad(), Promotion():
        new = torch.ones(4, dtype=torch.bfloat16)
        for x in (new, old):
            copying(x).add_(1)
    assert torch.equal(new, torch.ones_like(new))
    assert torch.equal(old, torch.ones_like(old))


def test_the_cast_of_a_kept_weight_is_not_handed_out() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad(), Promotion(cache_weights_up_to=1 << 20) as promotion:
        _ = weight * 2
        weight.to(torch.bfloat16).add_(1)
        weight.double().add_(0)
        read = weight * 1
        weight.add_(1)
        again = weight * 1
    assert torch.equal(read, torch.ones(3, dtype=torch.float64))
    assert torch.equal(again, torch.full((3,), 2.0, dtype=torch.float64))
    assert torch.equal(promotion.value(weight), again)


def test_a_write_that_no_mode_sees_is_noticed() -> None:
    buffer = torch.zeros(3)
    with torch.no_grad(), Promotion() as promotion:
        buffer.add_(THIRD)
        with torch._C.DisableTorchFunction():
            buffer.fill_(5)
        read = buffer * 1
    assert torch.equal(read, torch.full((3,), 5.0, dtype=torch.float64))
    assert torch.equal(promotion.value(buffer), read)


def test_what_one_call_writes_the_next_call_reads() -> None:
    """As in a run of several calls, each in a block of its own, with a cache from before."""
    cache, promotion = torch.zeros(2), Promotion()
    for step in range(2):
        with torch.no_grad(), promotion:
            cache[step] = torch.full((), THIRD, dtype=torch.float32)
    assert promotion.value(cache).tolist() == [THIRD, THIRD]
    cache[0] = 5.0  # by hand, between two calls
    with torch.no_grad(), promotion:
        read = cache * 1
    assert read.tolist() == [5.0, 0.0]
    with torch.no_grad(), Promotion():
        assert (cache * 1).tolist() == [5.0, 0.0]


def test_changes_of_form_in_place_keep_what_was_written() -> None:
    buffer = torch.zeros(2, 3)
    with torch.no_grad(), Promotion() as promotion:
        buffer.add_(THIRD)
        buffer.unsqueeze_(0).mul_(2)
        buffer.squeeze_(0).t_()
    assert torch.equal(promotion.value(buffer), torch.full((3, 2), 2 * THIRD, dtype=torch.float64))


def test_assigned_data_keeps_dtype_and_digits() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    with torch.no_grad(), Promotion() as promotion:
        weight.data = weight.data + THIRD
        read = weight * 1
    assert weight.dtype == torch.bfloat16
    assert torch.equal(read, torch.full((3,), THIRD, dtype=torch.float64))
    assert torch.equal(promotion.value(weight), read)


def test_integers_and_quantised_tensors_are_written_as_ever() -> None:
    counts = torch.zeros(3, dtype=torch.long)
    stored = torch.zeros(3, dtype=torch.float8_e4m3fn)
    with torch.no_grad(), Promotion():
        counts.add_(2)
        stored.copy_(torch.full((3,), THIRD))
    assert counts.tolist() == [2, 2, 2]
    assert torch.equal(stored.float(), torch.full((3,), THIRD).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_in_training(dtype: torch.dtype) -> None:
    norm = torch.nn.BatchNorm1d(3).to(dtype).train()
    reference = torch.nn.BatchNorm1d(3).double().train()
    batches = [torch.randn(5, 3, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(3)]
    with torch.no_grad(), Promotion() as promotion:
        outputs = [norm(batch) for batch in batches]
        evaluated = norm.eval()(batches[0])
    expected = [reference(batch.double()) for batch in batches]
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(promotion.value(norm.running_var), reference.running_var, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        evaluated, reference.eval()(batches[0].double()).detach(), rtol=1e-14, atol=1e-14
    )
    assert torch.equal(norm.running_var, torch.ones(3, dtype=dtype))


# --- programs ---------------------------------------------------------------------------------------------


@dataclass
class Held:
    """A tensor of a program: in the promoted run narrow if it is from before, in the other always float64."""

    value: torch.Tensor
    from_before: torch.dtype | None
    """The dtype that it had before the run, shared by its views; None for what the run made."""


Pool = list[Held]
SIZE = 3
MASK = torch.eye(SIZE).bool()
INDEX = torch.tensor([2, 0, 1])


def _keep(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Pool, int, int, int], None]:
    """A view: it is from before if what it shows is."""

    def step(pool: Pool, a: int, b: int, _c: int) -> None:
        pool[b] = Held(change(pool[a].value), pool[a].from_before)

    return step


def _make(
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[Pool, int, int, int], None]:
    def step(pool: Pool, a: int, b: int, c: int) -> None:
        pool[c] = Held(compute(pool[a].value, pool[b].value), None)

    return step


def _write(change: Callable[[torch.Tensor, torch.Tensor], object]) -> Callable[[Pool, int, int, int], None]:
    def step(pool: Pool, a: int, b: int, _c: int) -> None:
        change(pool[a].value, pool[b].value.clone())  # of a clone, as torch refuses some overlaps

    return step


def _cast(dtype: torch.dtype) -> Callable[[Pool, int, int, int], None]:
    def step(pool: Pool, a: int, b: int, _c: int) -> None:
        held = pool[a]
        if PLAIN:
            pool[b] = held if held.from_before is dtype else Held(held.value.clone(), None)
        else:
            pool[b] = Held(held.value.to(dtype), held.from_before if held.from_before is dtype else None)

    return step


def _set_row(a: torch.Tensor, b: torch.Tensor) -> None:
    a[1] = b[2]


def _add_column(a: torch.Tensor, b: torch.Tensor) -> None:
    a[:, 0] += b[:, 1] * 0.25


def _out(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.mul(b, 0.5, out=a)


PLAIN = False
"""Whether the program at hand is the float64 one."""

STEPS: dict[str, Callable[[Pool, int, int, int], None]] = {
    "transpose": _keep(lambda x: x.t()),
    "slice": _keep(lambda x: x[:]),
    "view": _keep(lambda x: x.unsqueeze(0).expand(1, SIZE, SIZE).squeeze(0)),
    "detach": _keep(lambda x: x.detach()),
    "own dtype": _keep(lambda x: x.to(x.dtype)),
    "device": _keep(lambda x: x.to("cpu")),
    "dropout": _keep(lambda x: F.dropout(x, training=False)),
    "to float32": _cast(torch.float32),
    "to bfloat16": _cast(torch.bfloat16),
    "add": _make(lambda x, y: torch.tanh(x + y)),
    "matmul": _make(lambda x, y: torch.tanh(x @ y)),
    "index": _make(lambda x, _: x[INDEX] * THIRD),
    "zeros": _make(lambda x, y: torch.zeros_like(x) + y * THIRD),
    "clone": _make(lambda x, _: x.clone()),
    "add_": _write(lambda x, y: x.add_(y, alpha=0.125)),
    "mul_": _write(lambda x, _: x.mul_(THIRD)),
    "copy_": _write(lambda x, y: x.copy_(y)),
    "setitem": _write(_set_row),
    "iadd": _write(_add_column),
    "out": _write(_out),
    "index_copy_": _write(lambda x, y: x.index_copy_(0, INDEX, y)),
    "index_add_": _write(lambda x, y: x.index_add_(1, INDEX, y, alpha=0.125)),
    "masked_fill_": _write(lambda x, _: x.masked_fill_(MASK, THIRD)),
    "relu": _write(lambda x, _: F.relu(x, inplace=True)),
    "leaky_relu": _write(lambda x, _: torch.nn.LeakyReLU(THIRD, inplace=True)(x)),
    "sigmoid_": _write(lambda x, _: torch.sigmoid_(x)),
}

PLACE = st.integers(0, 3)
PROGRAMS = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), PLACE, PLACE, PLACE), max_size=14)


def pool_from_before() -> Pool:
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float32)
    return [Held(torch.rand(SIZE, SIZE, generator=generator).to(dtype), dtype) for dtype in dtypes]


def run(program: list[tuple[str, int, int, int]], pool: Pool, *, plain: bool) -> None:
    global PLAIN  # noqa: PLW0603
    PLAIN = plain
    for name, a, b, c in program:
        STEPS[name](pool, a, b, c)


@settings(max_examples=300)
@given(program=PROGRAMS)
def test_a_program_of_writes_and_views_computes_as_in_float64(
    program: list[tuple[str, int, int, int]],
) -> None:
    wide = [Held(held.value.double(), held.from_before) for held in pool_from_before()]
    narrow = pool_from_before()
    originals = [held.value for held in narrow]
    with torch.no_grad():
        run(program, wide, plain=True)
        with Promotion() as promotion:
            run(program, narrow, plain=False)
    for promoted, plain in zip(narrow, wide, strict=True):
        value = promotion.value(promoted.value)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, plain.value, rtol=1e-14, atol=1e-15)
    assert promotion.exact
    for tensor, held in zip(originals, pool_from_before(), strict=True):
        assert torch.equal(tensor, held.value)
