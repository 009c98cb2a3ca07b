"""Conversions of litgpt: parameters without a wrong pair, faults at their op, nothing in the sound ones."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from tests.ports.planted import (
    belonging,
    compared,
    inputs_of,
    wrong_about,
    wrong_about_sound,
    wrong_pairs,
)

if importlib.util.find_spec("litgpt") is None:
    pytest.skip("litgpt is not installed", allow_module_level=True)

of_litgpt: Any = importlib.import_module("tests.ports.of_litgpt")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("family", of_litgpt.FAMILIES)
def test_a_family_is_mapped_without_a_wrong_pair_and_is_sound(family: str):
    mine, reference = of_litgpt.build(family)
    assert wrong_pairs(mine, reference, belonging(mine, reference)) == []
    assert wrong_about_sound(compared(mine, reference, *inputs_of(family)), family) == ""


@pytest.mark.parametrize("fault", of_litgpt.CASES)
def test_a_fault_is_found_at_its_op(fault: str):
    family, changes, truth = of_litgpt.CASES[fault]
    assert wrong_about(compared(*of_litgpt.build(family, **changes), *inputs_of(family)), fault, truth) == ""
