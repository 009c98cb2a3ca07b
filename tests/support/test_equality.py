"""Equal bit for bit, with NaN equal to NaN."""

from __future__ import annotations

import pytest
import torch

from forkpoint.support.equality import same_bits, same_results

NAN = float("nan")


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), False),
        (torch.tensor([1.0]), torch.tensor([NAN]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), True),
        (torch.tensor([True]), torch.tensor([False]), False),
        (torch.tensor([complex(1, NAN)]), torch.tensor([complex(1, NAN)]), True),
        (torch.tensor([complex(1, NAN)]), torch.tensor([complex(2, NAN)]), False),
        (torch.tensor([complex(1, NAN)]).conj(), torch.tensor([complex(1, NAN)]), True),
        (torch.zeros(0), torch.zeros(0), True),
    ],
)
def test_two_tensors(a, b, same):
    assert same_bits(a, b) == same_bits(b, a) == same


def test_results_are_the_same_by_name_and_by_call():
    one, two = torch.ones(1), torch.zeros(1)
    assert same_results([{"a": one}], [{"a": one}])
    assert not same_results([{"a": one}], [{"a": two}])
    assert not same_results([{"a": one}], [{"b": one}])
    assert not same_results([{"a": one}], [{"a": one}, {"a": one}])
    assert not same_results([{"a": one, "b": one}], [{"a": one}])
