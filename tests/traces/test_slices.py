"""Fused and split parameters are told from the traces alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import nn

import forkpoint as fp
from forkpoint.report.words import Words
from forkpoint.result import NameMatch


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.q(x)) * self.k(x) + self.v(x))


class Fused(nn.Module):
    """The same with one projection, its rows as they are or two of each in turn."""

    def __init__(self, split: Split, *, in_turn: bool = False) -> None:
        super().__init__()
        self.in_turn = in_turn
        self.qkv, self.out = nn.Linear(6, 18), split.out
        for mine, theirs in ((self.qkv.weight, "weight"), (self.qkv.bias, "bias")):
            parts = torch.stack([getattr(m, theirs).data for m in (split.q, split.k, split.v)])
            if in_turn:
                parts = parts.unflatten(1, (3, 2)).transpose(0, 1)
            mine.data = parts.reshape(mine.shape).clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.qkv(x)
        if self.in_turn:
            made = made.unflatten(-1, (3, 3, 2)).transpose(-3, -2).flatten(-3)
        q, k, v = made.split(6, -1)
        return self.out(torch.relu(q) * k + v)


def compared(folder: Path, a: nn.Module, b: nn.Module) -> fp.Result:
    x = torch.ones(1, 3, 6)
    for name, model in (("a", a), ("b", b)):
        with torch.no_grad(), fp.record(folder / name):
            model(x)
    return fp.compare_traces(folder / "a", folder / "b")


def weights(result: fp.Result) -> tuple[str, str]:
    probe = result.verdict.evidence[1]
    return probe.outcome, probe.text


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_fused_projection_has_the_rows_of_its_parts(*, in_turn: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    split = Split()
    fused = Fused(split, in_turn=in_turn)
    for folder, pair in (("one", (split, fused)), ("other", (fused, split))):
        result = compared(tmp_path / folder, *pair)
        assert weights(result) == (
            "same", "2 parameters and buffers are the same in both runs; 8 more have the same rows in other pieces",
        )  # fmt: skip
        pieces, whole = ("q.weight", "k.weight", "v.weight"), ("qkv.weight",)
        a, b = (pieces, whole) if folder == "one" else (whole, pieces)
        assert result.matches == (NameMatch("parameter", a, b, "rows"),)
        note = "parameters matched by their rows: qkv.weight = q.weight + k.weight + v.weight"
        assert note in result.notes
        assert Words("zh").sentence(note) == "按各行对应的参数：qkv.weight = q.weight + k.weight + v.weight。"


@pytest.mark.parametrize("what", ["a row", "a bias"])
def test_a_fused_projection_with_another_row_or_bias_is_not_said_to_be_the_same(
    what: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    split = Split()
    fused = Fused(split)
    with torch.no_grad():
        if what == "a row":
            fused.qkv.weight[7, 0] += 1
        else:
            fused.qkv.bias[7] += 1
    outcome, text = weights(compared(tmp_path, split, fused))
    assert outcome == "unknown"
    assert f"{8 if what == 'a row' else 4} are in one alone" in text


class Columns(nn.Module):
    """A projection that is multiplied by from the right, as `transformers`' `Conv1D` is."""

    def __init__(self, *like: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([one.weight.data.T for one in like], 1).contiguous())
        self.bias = nn.Parameter(torch.cat([one.bias.data for one in like]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Turned(nn.Module):
    """`Split` with such projections; one for q, k and v, or one for each."""

    def __init__(self, split: Split, *, fused: bool) -> None:
        super().__init__()
        parts = (split.q, split.k, split.v)
        self.fused, self.out = fused, Columns(split.out)
        if fused:
            self.qkv = Columns(*parts)
        else:
            self.q, self.k, self.v = (Columns(one) for one in parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split(6, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        return self.out(torch.relu(q) * k + v)


class Around(nn.Module):
    def __init__(self, net: Turned) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("fused", [False, True])
def test_projections_that_are_multiplied_by_from_the_right_are_the_same_transposed(
    *, fused: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    split = Split()
    turned = Turned(split, fused=fused)
    for folder, pair in (("one", (split, turned)), ("other", (turned, split))):
        result = compared(tmp_path / folder, *pair)
        outcome, text = weights(result)
        assert outcome == "same"
        assert sum(match.how == "transposed" for match in result.matches) == (1 if fused else 4)
        assert text.endswith(f"of these {1 if fused else 4} are transposed in one run")
        assert ("8 more have the same rows in other pieces" in text) is fused


def test_modules_of_other_names_are_found_by_their_weights_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    split = Split()
    turned = Around(Turned(split, fused=False))
    result = compared(tmp_path, turned, split)
    assert any(note.startswith("modules matched by their weights: q = net.q, ") for note in result.notes)
    assert weights(result)[0] == "same"
    with torch.no_grad():
        turned.net.k.weight[1, 2] += 1
    assert weights(compared(tmp_path / "wrong", turned, split))[0] != "same"


def test_a_matrix_that_is_used_alike_and_is_transposed_is_another_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    split = Split()
    wrong = Split()
    wrong.load_state_dict(split.state_dict())
    wrong.k.weight.data = split.k.weight.data.T.clone()
    result = compared(tmp_path, split, wrong)
    text = "1 parameter differs, k.weight: it is that of the other run, transposed"
    assert (result.verdict.kind, weights(result)) == (fp.VerdictKind.INPUTS, ("differs", text))
    assert Words("zh").sentence(text) != text


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (["running_mean"], "1 buffer differs, running_mean"),
        (["running_mean", "running_var"], "2 buffers differ, running_mean first"),
        (["running_mean", "bias"], "1 parameter differs, bias"),
        (["running_mean", "bias", "weight"], "2 parameters differ, weight first"),
    ],
)
def test_what_differs_is_counted_by_its_kind(changed: list[str], text: str, tmp_path: Path) -> None:
    one, other = nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3).eval()
    with torch.no_grad():
        for name in changed:
            other.state_dict()[name].add_(1)
    assert weights(compared(tmp_path, one, other)) == ("differs", text)
    assert Words("zh").can_say(text)


def test_a_trace_that_has_no_digests_of_columns_is_compared_by_its_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    split = Split()
    compared(tmp_path, split, Fused(split))
    path = tmp_path / "b" / "weights.arrow"
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all().drop_columns(["columns"])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    assert weights(fp.compare_traces(tmp_path / "a", tmp_path / "b"))[0] == "same"


def test_what_has_no_name_is_held_against_the_one_result_of_its_shape(tmp_path: Path) -> None:
    class Named(Split):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return {"logits": super().forward(x), "hidden": x.sum(-1)}

    torch.manual_seed(0)
    split, named = Split(), Named()
    named.load_state_dict(split.state_dict())
    for folder, pair, letter in (("one", (split, named), "A"), ("other", (named, split), "B")):
        result = compared(tmp_path / folder, *pair)
        assert result.impact is not None and result.impact.max_abs == 0.0
        assert f"what run {letter} returns is held against logits of the other run" in result.notes
