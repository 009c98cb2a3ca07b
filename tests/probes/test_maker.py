"""The op that makes NaN is the origin of a NaN verdict, whether both runs have what it makes NaN of or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.corpus import CASES
from tests.plain import Model, batch, ids, pair
from torch import Tensor

import forkpoint as fp


class OfPadding(Model):
    """Makes NaN of padding, which a mean over all columns spreads."""

    def mix(self, hidden: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        padding = hidden / attention_mask[..., None]
        return hidden + (padding - padding).mean(1, keepdim=True)


class OfAll(Model):
    """Makes NaN of every token of a row that has padding."""

    def mix(self, hidden: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        return hidden + (attention_mask.amin(1)[:, None, None] + hidden * 0).log() * 0


@pytest.mark.parametrize("turned", [False, True])
def test_nan_of_padding_alone_is_shown_as_one_runs(turned: bool, tmp_path: Path) -> None:
    runs = pair(OfPadding(), batch(ids(1)), batch(ids(1), right=2))
    result = fp.compare(*(runs[::-1] if turned else runs))
    origin, made = result.origin, result.first_nonfinite_a if turned else result.first_nonfinite_b
    assert origin is not None and made is not None
    assert (origin.op, origin.source) == (made.op, made.source)
    assert origin.function == "div"
    values = (origin.value_a, origin.value_b)[:: 1 if turned else -1]
    assert isinstance(values[0], float) and not math.isfinite(values[0]) and values[1] is None
    assert (origin.compared, origin.differing) == (0, 0)
    text = str(result)
    assert f"a place that only run {'A' if turned else 'B'} has" in text
    assert "0 of 0" not in text
    result.to_json(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["origin"]["op"] == origin.op


def test_nan_of_shared_tokens_is_shown_in_both_runs() -> None:
    result = fp.compare(*pair(OfAll(), batch(ids(1)), batch(ids(1), right=2)))
    origin = result.origin
    assert origin is not None
    assert origin.compared > 0
    assert isinstance(origin.value_a, float) and isinstance(origin.value_b, float)
    assert math.isfinite(origin.value_a) and not math.isfinite(origin.value_b)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("26-", "45-"))])
def test_the_origin_of_a_nan_verdict_is_the_op_that_makes_it(name: str) -> None:
    a, b, how, patches = CASES[name].build()
    with patches:
        result = fp.compare(a, b, **how)
    if result.verdict.mechanism == "nan":
        assert result.origin is not None
        makers = (result.first_nonfinite_a, result.first_nonfinite_b)
        assert (result.origin.op, result.origin.source) in [(m.op, m.source) for m in makers if m is not None]


def test_a_scene_of_nan_is_of_the_op_that_makes_it(tmp_path: Path) -> None:
    result = fp.compare(*pair(OfAll(), batch(ids(1)), batch(ids(1), right=2)))
    result.save_scene(tmp_path / "scene")
    assert result.origin is not None
    assert result.origin.op in (tmp_path / "scene" / "scene.json").read_text()
