"""Ports that were written without a look at how faults are found: each fault at its op, nothing in the sound ones."""

from __future__ import annotations

import pytest
from tests.ports.planted import (
    PORTS,
    belonging,
    built,
    compared,
    inputs_of,
    port_of,
    wrong_about,
    wrong_about_sound,
    wrong_pairs,
)

QUICK = {
    ("stacked", "base"), ("untied", "softmax"), ("flipped", "eps"), ("folded", "halves"), ("headed", "tile"),
    ("headed", "neighbours"), ("packed", "last-part"), ("packed", "scaled-wrongly"), ("routed", "sigmoid"), ("routed", "skipped"),
}  # fmt: skip
"""Where the first value that the reference has not is right: of no token, put together otherwise, scaled before, or fused;
where it is complex, an op takes a part of what the reference has whole, only decides about whole numbers, or lacks a term."""
ALL = [(port, fault) for port in PORTS for fault in port_of(port).FAULTS]
HARMLESS = [(port, change) for port in PORTS for change in port_of(port).HARMLESS]


@pytest.mark.parametrize("port", PORTS)
def test_parameters_are_mapped_without_a_wrong_pair(port: str):
    mine, reference = built(port)
    right = belonging(mine, reference)
    assert wrong_pairs(mine, reference, right) == []
    for parameter in (*mine.parameters(), *reference.parameters()):
        if parameter.ndim == 1:  # then their values tell nothing
            parameter.data.fill_(1.0)
    assert wrong_pairs(mine, reference, right) == []


def said_of(port: str, fault: str) -> str:
    truth = port_of(port).FAULTS[fault]
    return wrong_about(compared(*built(port, fault), *inputs_of(port)), f"{port}-{fault}", truth)


def said_of_sound(port: str, change: str | None) -> str:
    return wrong_about_sound(compared(*built(port, change), *inputs_of(port)), f"{port}-{change}")


@pytest.mark.parametrize(("port", "fault"), sorted(QUICK))
def test_a_fault_is_found_at_its_op(port: str, fault: str):
    assert said_of(port, fault) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("port", "fault"), [case for case in ALL if case not in QUICK])
def test_each_fault_is_found_at_its_op(port: str, fault: str):
    assert said_of(port, fault) == ""


@pytest.mark.parametrize("port", ["stacked", "meta"])
def test_what_rounding_did_to_tables_is_rounding(port: str):
    mine, reference = built(port)
    result = compared(mine, reference, *inputs_of(port))
    assert wrong_about_sound(result, port) == ""
    assert "tables" in {found.name for found in result.verdict.evidence}
    assert "tables that the models keep" in result.verdict.summary


@pytest.mark.slow
@pytest.mark.parametrize(("port", "change"), [*((port, None) for port in PORTS), *HARMLESS])
def test_a_sound_port_raises_no_alarm(port: str, change: str | None):
    assert said_of_sound(port, change) == ""
