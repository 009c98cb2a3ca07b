"""Records to plain JSON types and back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report import samples

from forkpoint.result import Impact, LayerDrift, ProbeResult, Result, RunSummary, Verdict, VerdictKind
from forkpoint.support.records import from_plain, to_plain

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
SAMPLES = st.one_of(st.integers(), st.text(), st.tuples(st.text(), st.tuples(st.integers())))
RECORDS = st.one_of(
    st.builds(Verdict, st.sampled_from(VerdictKind), st.none() | st.text(), st.none() | st.booleans(), st.text(),
              st.lists(st.builds(ProbeResult, st.text(), st.text(), st.none() | FLOATS, st.text())).map(tuple)),
    st.builds(LayerDrift, st.text(), FLOATS, FLOATS,
              st.lists(st.tuples(SAMPLES, st.none() | st.integers(), FLOATS)).map(tuple)),
    st.builds(RunSummary, st.text(), st.lists(st.dictionaries(st.text(), st.lists(st.integers()).map(tuple))).map(tuple),
              st.integers(), st.integers(), st.integers(), st.text(), st.text(), st.none() | st.text(), st.integers()),
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal, NaN too."""
    return repr(a) == repr(b)


@given(RECORDS)
def test_a_record_comes_back(record):
    plain = json.loads(json.dumps(to_plain(record)))
    assert same(from_plain(type(record), plain), record)


def test_numbers_that_json_has_no_word_for():
    impact = Impact(math.nan, math.inf, -math.inf, 1.0, 0.5, None, None, 3)
    plain = to_plain(impact)
    assert (plain["loss_a"], plain["loss_b"], plain["loss_gap"]) == ("nan", "inf", "-inf")
    assert same(from_plain(Impact, plain), impact)


def test_a_key_that_a_later_version_adds_is_left_out():
    plain = to_plain(ProbeResult("repeat", "same", 0.0, "text")) | {"later": 1}
    assert from_plain(ProbeResult, plain) == ProbeResult("repeat", "same", 0.0, "text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": None}, "verdict is a NoneType, not a Verdict"),
        ({"verdict": {"kind": "fine"}}, "verdict.kind is a str, not a VerdictKind"),
        ({"ops": 3}, "ops is a int, not a tuple"),
        ({"notes": [1]}, "notes[0] is a int, not a str"),
        ({"drift": [{"module": "x"}]}, "drift[0] lacks 'max_abs'"),
        ({"a": []}, "a is a list, not a RunSummary"),
        (
            {"drift": [{"module": "x", "max_abs": 10**400}]},
            "drift[0].max_abs is an integer beyond every float",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change, message):
    plain = (
        samples.semantic().to_dict()
        if hasattr(samples, "semantic")
        else next(iter(every().values())).to_dict()
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        Result.from_dict({**plain, **change})
    assert str(caught.value) == message


def every() -> dict[str, Result]:
    """All results that the reports are tested with."""
    found: dict[str, Result] = {}
    for name, value in vars(samples).items():
        if callable(value) and value.__module__ == samples.__name__ and not name.startswith("_"):
            try:
                made = value()
            except TypeError:
                continue
            if isinstance(made, Result):
                found[name] = made
    return found


def test_every_result_comes_back_and_says_the_same():
    results = every()
    assert len(results) > 3
    for result in results.values():
        back = Result.from_dict(json.loads(json.dumps(result.to_dict())))
        assert back == result
        assert str(back) == str(result)
