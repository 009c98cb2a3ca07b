"""Ways into a block that are cheaper than the dispatcher: the same bits, and everything as it was afterwards."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import forkpoint as fp
from forkpoint.invariance import entrances, products

LINEAR = torch._C._nn.linear
MODEL = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 16)).eval()
X = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))


PLACES = entrances._places


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    """The cheap ones are used on a GPU; here they are on a CPU, too."""
    monkeypatch.setattr(
        entrances,
        "_places",
        lambda model: iter([*PLACES(model), (functional, "linear", lambda _: entrances._linear)]),
    )


def taken(monkeypatch) -> list[bool]:
    """Whether each call had something ready."""
    calls: list[bool] = []
    own = products.ready

    def ready(*args):
        way = own(*args)
        calls.append(way is not None)
        return way

    monkeypatch.setattr(entrances, "ready", ready)
    return calls


def test_the_short_way_has_the_bits_of_the_long_one(monkeypatch):
    calls = taken(monkeypatch)
    with torch.inference_mode(), fp.invariant(MODEL):
        first, second = MODEL(X), MODEL(X)
        assert functional.linear is entrances._linear
        assert torch.equal(first, second) and torch.equal(MODEL(X[:2]), first[:2])
    assert True in calls and False in calls
    assert functional.linear is LINEAR


def test_nested_blocks_and_exceptions_leave_torch_as_it_was():
    with fp.invariant(MODEL):
        with pytest.raises(ZeroDivisionError), fp.invariant(MODEL):
            raise ZeroDivisionError
        assert functional.linear is entrances._linear
    assert functional.linear is LINEAR


def test_other_threads_go_torchs_way(monkeypatch):
    calls = taken(monkeypatch)
    made: list[torch.Tensor] = []

    def other() -> None:
        made.append(F.linear(X, MODEL[0].weight))

    with torch.inference_mode(), fp.invariant(MODEL):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert torch.equal(made[0], LINEAR(X, MODEL[0].weight)) and not calls


def test_a_mode_of_torch_sees_every_call(monkeypatch):
    seen: list[object] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with torch.inference_mode(), fp.invariant(MODEL):
        first = MODEL(X)
        calls = taken(monkeypatch)
        with Watching():
            second = MODEL(X)
    assert seen.count(LINEAR) == 2 and not calls
    assert torch.equal(first, second)


def test_compiled_functions_are_refused_within_a_block_and_only_there():
    frames = torch._dynamo.eval_frame
    before = frames._callback_from_stance
    doubled = torch.compile(lambda x: x * 2, backend="eager")
    caller = torch.compile(lambda x: MODEL(x) + 1, backend="eager")
    other: list[torch.Tensor] = []
    with torch.inference_mode():
        assert torch.equal(doubled(X), X * 2)
        with fp.invariant(MODEL):
            for function in (doubled, caller):
                with pytest.raises(fp.InvarianceError, match="compiled"):
                    function(X)
            thread = threading.Thread(target=lambda: other.append(doubled(X)))
            thread.start()
            thread.join()
            assert torch.equal(MODEL(X)[:1], MODEL(X[:1]))
        assert torch.equal(doubled(X), X * 2) and torch.equal(other[0], X * 2)
    assert frames._callback_from_stance is before


def test_a_compiled_function_that_is_left_is_listed():
    doubled = torch.compile(lambda x: x * 2, backend="eager")
    with torch.inference_mode(), fp.invariant(MODEL, unsupported="leave") as block:
        assert torch.equal(doubled(X), X * 2)
    (what,) = block.left
    assert what.startswith("a function that is compiled at test_entrances.py:")
