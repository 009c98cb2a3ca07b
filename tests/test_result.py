"""Results: asked, tested, pickled, written and read back."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from tests.report import samples
from torch import nn

import forkpoint as fp
from forkpoint.result import MECHANISMS


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = 2 * self.linear(x)
        return doubled.relu()


def compared() -> fp.Result:
    model, x = Doubling(), torch.randn(1, 3, 4)
    return fp.compare(fp.Run(model, {"x": x}), fp.Run(model, {"x": x}))


def test_a_comparison_is_neither_true_nor_false():
    for result in (samples.identical(), samples.semantic()):
        with pytest.raises(TypeError, match="neither true nor false: ask"):
            assert result


@pytest.mark.parametrize(
    ("result", "allow", "fails"),
    [
        (samples.identical(), "identical", False),
        (samples.identical(), (), False),
        (samples.rounding(), "rounding", False),
        (samples.rounding(), "identical", True),
        (samples.semantic(), "rounding", True),
        (samples.semantic(), ("rounding", "semantic"), False),
        (samples.semantic(), ("rounding", str(samples.semantic().verdict.mechanism)), False),
        (samples.unprobed(), "rounding", True),
    ],
)
def test_check_fails_for_what_is_not_allowed(result, allow, fails):
    if not fails:
        result.check(allow)
        return
    with pytest.raises(fp.DifferenceError) as caught:
        result.check(allow)
    assert isinstance(caught.value, AssertionError)
    first, _, rest = str(caught.value).partition("\n\n")
    assert first.startswith(repr(result))
    assert first.endswith("is allowed")
    assert "Evidence\n" not in rest
    assert max(map(len, rest.splitlines())) <= 80


@pytest.mark.parametrize("allow", ["typo", ("rounding", "semantics"), "", 3, [torch.ones(2)]])
@pytest.mark.parametrize("result", [samples.identical(), samples.semantic()])
def test_check_refuses_what_no_verdict_is(result, allow):
    """Else a test with a slip of the pen would pass where it should, and tell nobody."""
    with pytest.raises(fp.InputError) as caught:
        result.check(allow)
    said = str(caught.value)
    assert said.startswith("allow=")
    assert all(name in said for name in (*fp.VerdictKind, *MECHANISMS))


def test_a_result_is_one_line_where_it_is_shown():
    assert repr(samples.identical()) == "<Result: identical>"
    semantic = samples.semantic()
    assert repr(semantic).startswith(f"<Result: semantic ({semantic.verdict.mechanism}) at ")
    unlocated = replace(semantic, origin=None, origins=())
    assert semantic.first is not None and unlocated.origin is None
    assert f"origin not found, first difference at {semantic.first.op} (maybe rounding)" in repr(unlocated)
    assert all(
        "\n" not in repr(r) and len(repr(r)) < 200 for r in (semantic, samples.rounding(), samples.decode())
    )


def test_a_result_is_pickled_without_its_models():
    result = compared()
    for back in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), result.without_runs()):
        assert back == result
        assert str(back) == str(result)
        with pytest.raises(fp.InputError, match="a result without its runs"):
            back.value("", "doubled")
    assert result.value("", "doubled").shape == (1, 3, 4)


def test_a_result_is_read_from_its_file(tmp_path):
    result = compared()
    result.to_json(tmp_path / "result.json")
    back = fp.Result.from_json(tmp_path / "result.json")
    assert back == result
    assert back.to_dict() == result.to_dict()
    with pytest.raises(fp.SceneError, match="a result without its runs"):
        back.save_scene(tmp_path / "scene")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{}", "it is no result"),
        ("[1]", "it is no result"),
        ('{"schema": 2}', "it has schema version 2"),
        ('{"schema": 1}', "it lacks 'a'"),
        ("[" * 100_000, ""),
        ('{"schema": 1, "a": 3}', "a is a int, not a RunSummary"),
    ],
)
def test_what_is_no_result_is_one_line(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(fp.InputError) as caught:
        fp.Result.from_json(tmp_path / "x.json")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}: {message}")
    assert str(caught.value).endswith("; expected a result that to_json wrote, schema version 1")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(fp.InputError, match="No such file or directory"):
        fp.Result.from_json(tmp_path / "nothing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(fp.InputError):
        fp.Result.from_json(tmp_path / "binary")


def test_hostile_texts_of_a_file_stay_texts(tmp_path):
    data = samples.semantic().to_dict()
    data["verdict"]["summary"] = "\x1b]8;;http://x\x07click\x1b[2J"
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert "\x1b" not in str(fp.Result.from_json(tmp_path / "x.json"))
