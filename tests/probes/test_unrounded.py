"""Without rounding only what is not rounding couples the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.probes.unrounded import vanishes_unrounded


class Scaled(Model):
    """One scale for all rows, in the forms in which values become steps; `back` says whether it is taken back."""

    def __init__(self, form: str, *, back: bool) -> None:
        super().__init__()
        self.form, self.back = form, back

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        hidden = hidden * torch.arange(1, len(hidden) + 1)[:, None, None]  # later rows are louder
        scale = hidden.abs().amax() / 127
        steps = self.steps(hidden / scale)
        return steps * scale if self.back else steps / 127

    def steps(self, wide: Tensor) -> Tensor:
        match self.form:
            case "round":
                return wide.round()
            case "floor":
                return (wide + 0.5).floor()
            case "written":
                return (wide + 0).round_()
            case "int8":
                return wide.round().to(torch.int8).to(wide.dtype)
            case "float8":
                return wide.to(torch.float8_e4m3fn).to(wide.dtype)
            case _:
                return torch.fake_quantize_per_tensor_affine(wide, 1.0, 0, -128, 127)


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("form", ["round", "floor", "written", "int8", "float8", "fake"])
def test_the_gap_of_a_scale_that_is_taken_back_is_rounding_alone(form, back):
    both = session(*pair(Scaled(form, back=back), batch(ids(1)), batch(ids(5))))
    assert vanishes_unrounded(both) is back
