"""No address is read that is not a tensor's own: nothing crashes, and what can't be read is said not to be compared."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
from tests.trust import wrapping
from tests.trust.wrapping import Between, Wrapping
from torch import Tensor

import forkpoint as fp
from forkpoint.native.choice import python_alone

LET_GO = "its memory was let go of before it could be read"
KINDS: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (wrapping.let_go, LET_GO),
    (wrapping.made_smaller, LET_GO),
    (wrapping.shared, LET_GO),
    (wrapping.wrapped, "a Wrapping has no memory"),
    (wrapping.masked, "a MaskedTensor has no memory"),
    (wrapping.fake, "a FakeTensor has no memory"),
    (wrapping.distributed, "a DTensor has no memory"),
]


@pytest.fixture(params=[True, False], ids=["C", "Python"], autouse=True)
def _both(request: pytest.FixtureRequest) -> Generator[None]:
    if request.param:
        yield
    else:
        with python_alone():
            yield


@pytest.fixture(scope="module")
def _group(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    store: Path = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compared(model: torch.nn.Module, *, more: int = 3, probes: bool = True) -> fp.Result:
    """The model on eight tokens, as they are and followed by padding."""
    x = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1))
    longer = torch.cat([x, x[:, :more]], 1)
    mask = (torch.arange(longer.shape[1]) < 8).long()[None]
    layouts = [fp.Layout.from_mask(torch.ones(1, 8, dtype=torch.long)), fp.Layout.from_mask(mask)]
    runs = [
        fp.Run(model, {"x": value}, layout=layout) for value, layout in zip((x, longer), layouts, strict=True)
    ]
    return fp.compare(*runs, probes=probes)


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize(("does", "reason"), KINDS, ids=[does.__name__ for does, _ in KINDS])
def test_what_cannot_be_read_is_not_compared_and_all_else_is(does: Callable[[Tensor], Tensor], reason: str):
    for by_length in (0.0, 0.25):
        model = Between(does, by_length=by_length)
        for _ in range(2):  # the second follows what the first left
            result = compared(model)
            reasons = [left_out.reason for left_out in result.not_compared]
            assert any(found.startswith(reason) for found in reasons), reasons
            if by_length:
                assert result.verdict.kind == "semantic"
                assert result.origin is not None
                assert "mul" in result.origin.op
            else:
                assert result.verdict.kind in ("identical", "rounding")


def test_results_that_cannot_be_read_are_left_out():
    class Returning(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = super().forward(x)
            gone = y * 2
            gone.untyped_storage().resize_(0)
            return y, gone, Wrapping(y * 3)

    result = compared(Returning(torch.relu))
    left_out = {entry.op: entry.reason for entry in result.not_compared if entry.op.startswith("result")}
    assert left_out == {
        "result [1]": LET_GO,
        "result [2]": "a Wrapping has no memory of its own that could be read",
    }


def test_a_difference_that_only_a_wrapping_tensor_holds_is_not_called_rounding():
    class Hidden(Between):
        def forward(self, x: Tensor) -> Tensor:
            y = Wrapping(self.first(x))
            return self.last(y * (1 + x.shape[1])).inner * 1.0

    assert compared(Hidden(torch.relu)).verdict.kind in ("semantic", "undetermined")


def test_an_input_whose_memory_is_gone_is_refused():
    x = torch.randn(1, 4, 8)
    run = fp.Run(
        Between(torch.relu), {"x": x}, layout=fp.Layout.from_mask(torch.ones(1, 4, dtype=torch.long))
    )
    x.untyped_storage().resize_(0)
    with pytest.raises(fp.InputError, match="memory was let go of"):
        run.execute()
