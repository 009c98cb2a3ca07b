"""Two versions of one source: which op is which, how that was found, and what is no match."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.traces.versions_of import compared, untrained

import forkpoint as fp
from forkpoint.report.words import Words

SOURCE = """\
import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        return self.weight * x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = Norm(), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        residual = x
        x = self.norm(x)
        x = self.up(x)
        x = x.view(2, 4, 4, 4)
        x = x / 3
        x = x.view(2, 4, 16)
        x = self.down(torch.relu(x))
        x = residual + x
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x
"""

MOVED = SOURCE.replace("class Norm", '"""A line that\n\nmoves the others."""\n\n\nclass Norm')


def changed(old: str, new: str, source: str = MOVED) -> str:
    assert old in source
    return source.replace(old, new)


def how(result: fp.Result) -> dict[str, set[str]]:
    """By function, how its ops were found."""
    found: dict[str, set[str]] = {}
    for row in result.ops:
        if row.source:
            found.setdefault(row.function, set()).add(row.matched)
    return found


def alone(result: fp.Result) -> set[tuple[str, str, str]]:
    return {(row.status, row.op, row.reason) for row in (*result.unmatched_a, *result.unmatched_b)}


def test_one_source_is_matched_by_its_places(tmp_path: Path) -> None:
    result = compared(tmp_path, SOURCE, SOURCE)
    assert result.identical and not alone(result)
    assert {row.matched for row in result.ops} == {"place"} and not result.notes
    assert not any(row.source_b for row in result.ops) and "read otherwise" not in result.to_text()


def test_moved_lines_are_matched_by_their_text(tmp_path: Path) -> None:
    result = compared(tmp_path, SOURCE, MOVED)
    assert result.identical and not alone(result)
    assert {way for ways in how(result).values() for way in ways} == {"text"}
    relu = next(row for row in result.ops if row.function == "relu")
    assert (relu.source, relu.source_b) == ("modeling_tiny.py:28", "modeling_tiny.py:33")
    assert any("by the text of their lines" in note for note in result.notes)
    assert "read otherwise in the two runs" not in result.to_text()


def test_a_line_that_comes_to_lie_where_its_like_was_is_not_taken_for_it(tmp_path: Path) -> None:
    """`x = x + 1` twice, five lines apart; the version has both five lines lower."""
    body = "x = x + 1\n        x = x * 2\n        x = x - 3\n        x = x / 7\n        x = x * x\n        x = x + 1"
    a = changed("x = x / 3", body, SOURCE)
    b = changed("class Norm", "# 1\n# 2\n# 3\n# 4\n# 5\nclass Norm", a)
    result = compared(tmp_path, a, b)
    assert result.identical and not alone(result)
    places = [
        (row.source, row.source_b)
        for row in result.ops
        if row.op == "layers.0/add" and row.code == "x = x + 1"
    ]
    assert places == [
        ("modeling_tiny.py:26", "modeling_tiny.py:31"),
        ("modeling_tiny.py:31", "modeling_tiny.py:36"),
    ]


def test_a_line_that_reads_otherwise_is_matched_by_its_function(tmp_path: Path) -> None:
    result = compared(
        tmp_path, SOURCE, changed("x = self.down(torch.relu(x))", "x = self.down(torch.relu(x + 0))")
    )
    assert result.identical
    relu = next(row for row in result.ops if row.function == "relu")
    assert (relu.matched, relu.code_b) == ("function", "x = self.down(torch.relu(x + 0))")
    said = result.to_text()
    assert "Lines that read otherwise in the two runs" in said and "x = self.down(torch.relu(x + 0))" in said
    assert "matched by function and order" in said
    assert {(status, op) for status, op, _ in alone(result)} == {
        ("only in b", "layers.0/add"),
        ("only in b", "layers.1/add"),
    }


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_another_function_in_its_place_is_the_first_divergence_with_both_lines(
    tmp_path: Path, lang: str
) -> None:
    result = compared(tmp_path, SOURCE, changed("x = x / 3", "x = x * 0.25"))
    first = result.first
    assert first is not None and not alone(result)
    assert (first.op, first.op_b, first.matched) == ("layers.0/div", "layers.0/mul", "structure")
    assert (first.source, first.source_b) == ("modeling_tiny.py:26", "modeling_tiny.py:31")
    assert (first.code, first.code_b) == ("x = x / 3", "x = x * 0.25")
    for said in (result.to_text(lang=lang), result.to_text(lang=lang, details=False)):
        assert "modeling_tiny.py:26" in said and "modeling_tiny.py:31" in said
        assert "x = x / 3" in said and "x = x * 0.25" in said
    assert fp.Result.from_dict(result.to_dict()) == result


def test_the_same_value_by_another_function_is_no_divergence(tmp_path: Path) -> None:
    result = compared(
        tmp_path,
        SOURCE,
        changed("x = x / 3", "x = torch.div(x, 3.0)").replace("x.view(2, 4, 16)", "x.reshape(2, 4, 16)"),
    )
    assert result.identical and result.first is None and not alone(result)
    assert how(result)["view"] == {"text", "structure"}


def test_other_ways_to_one_value_are_listed_and_no_divergence(tmp_path: Path) -> None:
    """Four times the half is twice the whole, bit for bit."""
    a, b = (
        changed("x = x / 3", "x = x * 4\n        x = x * 0.5", SOURCE),
        changed("x = x / 3", "x = x * 0.25\n        x = x * 8"),
    )
    result = compared(tmp_path, a, b)
    assert result.identical and result.first is None
    assert {(status, op) for status, op, _ in alone(result)} == {
        (f"only in {run}", f"layers.{layer}/mul") for run in "ab" for layer in (0, 1)
    }
    assert {reason for _, _, reason in alone(result)} == {
        "the other run has no such value, and nothing that is like it stands in its place"
    }


def test_code_that_moved_into_a_module_is_matched_by_its_values(tmp_path: Path) -> None:
    split = changed(
        "class Block",
        "class Third(nn.Module):\n    def forward(self, x):\n        return x.div(3)\n\n\nclass Block",
    )
    split = changed("self.norm, self.up", "self.third, self.norm, self.up", split)
    split = changed("Norm(), nn.Linear(8, 16)", "Third(), Norm(), nn.Linear(8, 16)", split)
    split = changed("x = x / 3", "x = self.third(x)", split)
    result = compared(tmp_path, SOURCE, split)
    assert result.identical
    div = [row for row in result.ops if row.function == "div"]
    assert [(row.matched, row.op_b) for row in div] == [
        ("value", "layers.0.third/div"), ("value", "layers.1.third/div"),
    ]  # fmt: skip


def test_modules_are_matched_by_their_weights_and_their_parts(tmp_path: Path) -> None:
    renamed = (
        MOVED.replace("self.layers", "self.blocks")
        .replace("self.norm", "self.scale")
        .replace("self.up", "self.rise")
    )
    result = compared(tmp_path, SOURCE, renamed)
    assert result.identical and not alone(result)
    found = {row.module: row.module_matched for row in result.ops}
    assert found == {
        "": "", "embed": "", **{
            f"layers.{layer}{part}": way
            for layer in (0, 1)
            for part, way in (("", "parts"), (".norm", "weights"), (".up", "weights"), (".down", "weights"))
        }
    }  # fmt: skip
    assert any("by their parts: blocks.0 = layers.0" in note for note in result.notes)
    relu = next(row for row in result.ops if row.function == "relu")
    assert relu.op_b == "blocks.0/relu"
    ways = {
        (match.kind, match.a, match.b): match.how for match in fp.Result.from_dict(result.to_dict()).matches
    }
    assert ways == {
        ("module", (f"layers.{layer}{mine}",), (f"blocks.{layer}{theirs}",)): way
        for layer in (0, 1)
        for mine, theirs, way in (
            ("", "", "parts"), (".norm", ".scale", "weights"), (".up", ".rise", "weights"), (".down", ".down", "weights"),
        )
    } | {("module", ("layers",), ("blocks",)): "parts"}  # fmt: skip


ONE_BLOCK = changed("range(2)", "range(1)", SOURCE)
NORM_LAST = (
    ONE_BLOCK.replace("        x = self.norm(x)\n", "")
    .replace("        x = residual + x", "        x = self.after(x)\n        x = residual + x")
    .replace("self.norm, self.up, self.down = Norm(), nn.Linear(8, 16), nn.Linear(16, 8)",
             "self.up, self.down, self.after = nn.Linear(8, 16), nn.Linear(16, 8), Norm()")
)  # fmt: skip


@pytest.mark.parametrize("blocks", ["layers", "blocks"])
def test_weights_that_are_all_ones_are_no_sign_of_a_module(tmp_path: Path, blocks: str) -> None:
    """The norm of one version stands before everything, that of the other after: no op of theirs is the other's."""
    moved = NORM_LAST.replace("layers", blocks)
    result = compared(tmp_path, ONE_BLOCK, moved, build=untrained)
    assert result.first is not None and result.first.op == "layers.0.up/linear"
    assert not any(".after" in row.op_b for row in result.ops)
    assert {op for status, op, _ in alone(result) if "norm" in op and status == "only in a"} >= {
        "layers.0.norm/pow", "layers.0.norm/rsqrt",
    }  # fmt: skip


def test_a_module_of_such_weights_is_known_by_its_place(tmp_path: Path) -> None:
    renamed = ONE_BLOCK.replace("self.layers", "self.blocks").replace("self.norm", "self.scale")
    result = compared(tmp_path, ONE_BLOCK, renamed, build=untrained)
    assert result.identical and not alone(result)
    assert {row.module_matched for row in result.ops if row.module == "layers.0.norm"} == {"parts"}


def test_the_users_names_come_first(tmp_path: Path) -> None:
    renamed = MOVED.replace("self.layers", "self.blocks")
    result = compared(tmp_path, SOURCE, renamed, rename={"blocks": "layers"})
    assert result.identical and not alone(result)
    assert {row.module_matched for row in result.ops if row.module.startswith("layers.")} == {"user"}


def test_an_op_of_one_version_alone_says_why(tmp_path: Path) -> None:
    result = compared(tmp_path, SOURCE, changed("x = self.norm(x)", "x = self.norm(x.contiguous().clone())"))
    assert result.identical
    reasons = {(op, reason) for _, op, reason in alone(result)}
    assert ("layers.0/contiguous", "it makes no value of its own") in reasons
    assert any(
        op == "layers.1/clone" and reason.startswith("the other run has the same value from ")
        for op, reason in reasons
    )


@pytest.mark.parametrize("function", ["relu", "rsqrt"])
def test_a_fault_of_one_bit_is_found_at_its_op(tmp_path: Path, function: str) -> None:
    """With all lines moved, and one that reads otherwise before it; without the fault nothing differs."""
    sound = changed("residual = x", "residual = x.contiguous()")
    fault = {
        "relu": ("torch.relu(x)", "torch.relu(torch.nextafter(x, x + 1))"),
        "rsqrt": ("variance + 1e-6", "variance + 1.1e-6"),
    }
    assert compared(tmp_path / "sound", SOURCE, sound).identical
    result = compared(tmp_path / "fault", SOURCE, changed(*fault[function], sound))
    assert result.first is not None and result.first.module.startswith("layers.0")
    assert result.first.op == {"relu": "layers.0/relu", "rsqrt": "layers.0.norm/add"}[function]
    assert result.first.source_b and result.first.code_b != result.first.code


def test_what_was_renamed_is_said_in_chinese_too(tmp_path: Path) -> None:
    result = compared(
        tmp_path, SOURCE, MOVED.replace("self.layers", "self.blocks").replace("self.norm", "self.scale")
    )
    assert len(result.notes) == 3
    assert not any("matched" in Words("zh").sentence(note) for note in result.notes)
