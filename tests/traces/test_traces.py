"""Recorded traces: they say what a comparison in one process says, whatever code called the models."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from tests.traces import kills
from torch import nn

import forkpoint as fp
from forkpoint.match.passes import PassTable
from forkpoint.traces import rows
from forkpoint.traces.reading import read
from forkpoint.traces.schema import TABLES
from forkpoint.traces.stored import StoredTrace

PADDED = ("llama", "gpt2", "bert", "mixtral", "mamba", "t5")


def recorded(folder: Path, *calls: Any, **options: Any) -> Path:
    """The trace of calls without arguments."""
    with torch.no_grad(), fp.record(folder, **options):
        for call in calls:
            call()
    return folder


def statuses(result: fp.Result) -> dict[tuple[str, str, int], tuple[str, int, int]]:
    return {(r.op, r.source, r.output): (r.status, r.compared, r.differing) for r in result.ops}


@pytest.mark.parametrize("name", PADDED)
def test_two_traces_say_what_a_comparison_says(name: str, tmp_path: Path) -> None:
    """Op by op: the same ops meet at as many coordinates, and as many differ."""
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    rows = [prompt(7), prompt(5, seed=1)]
    a, b = architecture.inputs(rows), architecture.inputs(rows, pad_to=11)
    together = fp.compare(fp.Run(model, a), fp.Run(model, b), probes=False)
    apart = fp.compare_traces(
        recorded(tmp_path / "a", lambda: model(**a)), recorded(tmp_path / "b", lambda: model(**b))
    )
    assert statuses(apart) == statuses(together)
    assert apart.impact is not None and together.impact is not None
    assert (apart.impact.max_abs, apart.impact.top1_flips) == (
        together.impact.max_abs,
        together.impact.top1_flips,
    )
    assert (apart.first and apart.first.op) == (together.first and together.first.op)


def test_the_same_run_twice_is_identical(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    model, inputs = architecture.build(), architecture.inputs([prompt(6)])
    folders = [recorded(tmp_path / name, lambda: model(**inputs)) for name in "ab"]
    assert fp.compare_traces(*folders).identical


def test_what_recording_sees_it_does_not_change(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    model, inputs = architecture.build(), architecture.inputs([prompt(6)])
    plain = model(**inputs).logits
    kept: list[torch.Tensor] = []
    before = nn.Module.__call__.__code__
    with fp.record(tmp_path / "a", values=["*"]):
        kept.append(model(**inputs).logits)
    assert torch.equal(kept[0], plain) and kept[0].requires_grad == plain.requires_grad
    assert nn.Module.__call__.__code__ is before


def test_generating_is_followed_token_by_token(tmp_path: Path) -> None:
    """Each step goes on with the rows before it, so that it meets the columns of one pass over all."""
    architecture = ARCHITECTURES["llama"]
    model = architecture.build()
    ids = torch.tensor([prompt(6)])
    kept: list[torch.Tensor] = []

    def generate() -> None:
        kept.append(model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0))

    steps = recorded(tmp_path / "steps", generate)
    whole = recorded(tmp_path / "whole", lambda: model(input_ids=kept[0][:, :-1]))
    result = fp.compare_traces(whole, steps)
    assert len(result.b.calls) == 4 and result.b.tokens == 9 and result.b.samples == 1
    assert result.impact is not None and result.impact.tokens >= 1 and result.impact.max_rel < 1e-5
    kinds = {row.status for row in result.ops if row.function == "linear"}
    assert kinds <= {"equal", "differs"}


def test_calls_without_a_cache_have_samples_of_their_own(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["bert"]
    model = architecture.build()
    rows = [prompt(6), prompt(4, seed=1), prompt(5, seed=2)]
    alone = recorded(
        tmp_path / "alone", *(lambda row=row: model(**architecture.inputs([row])) for row in rows)
    )
    batch = recorded(tmp_path / "batch", lambda: model(**architecture.inputs([rows[i] for i in (2, 0, 1)])))
    result = fp.compare_traces(alone, batch)
    assert (result.a.samples, result.b.samples, result.a.tokens) == (3, 3, 15)
    assert result.impact is not None and result.impact.max_rel < 1e-5
    assert not any(value.floating for value in result.not_compared)


def test_positional_arguments_go_by_their_names(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    model = architecture.build()
    ids, mask = torch.tensor([prompt(6)]), torch.ones(1, 6, dtype=torch.long)
    a = recorded(tmp_path / "a", lambda: model(ids, mask))
    b = recorded(tmp_path / "b", lambda: model(input_ids=ids, attention_mask=mask))
    assert fp.compare_traces(a, b).identical


def test_a_planted_difference_is_found_at_its_op_with_its_values(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    model, inputs = architecture.build(), architecture.inputs([prompt(6)])
    a = recorded(tmp_path / "a", lambda: model(**inputs), values="model.layers.1.mlp.down_proj/*")
    hook = model.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda _, __, out: torch.nextafter(out, out + 1)
    )
    b = recorded(tmp_path / "b", lambda: model(**inputs), values="model.layers.1.mlp.down_proj/*")
    hook.remove()
    result = fp.compare_traces(a, b)
    assert result.verdict.kind is fp.VerdictKind.UNDETERMINED
    assert result.first is not None and result.first.module == "model.layers.1.mlp.down_proj"


def test_values_that_were_kept_are_compared(tmp_path: Path) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    a = recorded(tmp_path / "a", lambda: linear(x), values=["*/linear"])
    with torch.no_grad():
        before = linear(x)[0, 0, 0].item()
        linear.bias[0] += 1.0
        after = linear(x)[0, 0, 0].item()
    b = recorded(tmp_path / "b", lambda: linear(x), values=["*/linear"])
    result = fp.compare_traces(a, b)
    assert result.first is not None and result.first.ulps is not None
    assert (result.first.value_a, result.first.value_b) == (before, after)
    assert result.first.differing == 3 and result.first.compared == 12
    assert (result.verdict.kind, result.verdict.mechanism) == (fp.VerdictKind.INPUTS, "parameters")


def test_without_values_coordinates_are_counted(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    model = architecture.build()
    ids, changed = prompt(6), [*prompt(6)[:-1], 99]
    a = recorded(tmp_path / "a", lambda: model(input_ids=torch.tensor([ids])))
    b = recorded(tmp_path / "b", lambda: model(input_ids=torch.tensor([changed])))
    result = fp.compare_traces(a, b)
    assert (result.verdict.kind, result.verdict.mechanism) == (fp.VerdictKind.INPUTS, "token_ids")
    assert result.first is not None and result.first.value_a is None
    for text in (str(result), result.to_text()):
        assert re.search(r"differ +1 of 6 coordinates", text)
        assert "?" not in text
    assert fp.Result.from_dict(result.to_dict()) == result


def test_nan_in_one_run_is_semantic(tmp_path: Path) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    a = recorded(tmp_path / "a", lambda: linear(x))
    hook = linear.register_forward_hook(lambda _, __, out: out.masked_fill(out == out.max(), float("nan")))
    b = recorded(tmp_path / "b", lambda: linear(x))
    hook.remove()
    verdict = fp.compare_traces(a, b).verdict
    assert (verdict.kind, verdict.mechanism) == (fp.VerdictKind.SEMANTIC, "nan")


def test_a_part_of_a_model_keeps_its_paths(tmp_path: Path) -> None:
    """An encoder that is called before the model that it is part of is named as in that."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    x = torch.randn(1, 3, 4)
    a = recorded(tmp_path / "a", lambda: model[0](x), lambda: model(x))
    modules = {op.module for op in read(a, "A").trace.ops}
    assert modules == {"", "0", "1", "2"}
    b = recorded(tmp_path / "b", lambda: model[0](x), model=model)
    assert {op.module for op in read(b, "B").trace.ops} == {"0"}


def test_two_models_of_one_script_are_told_apart(tmp_path: Path) -> None:
    one, other, x = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(1, 3, 4)
    a = recorded(tmp_path / "a", lambda: one(x), lambda: other(x))
    assert {op.module for op in read(a, "A").trace.ops} == {"", "Linear#1"}


# ---------------------------------------------------------------------- renaming


class Port(nn.Module):
    """The same as `Reference` with other names, an op more, and its lines elsewhere."""

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.word_embeddings, self.first, self.second = reference.embed, reference.up, reference.down

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.word_embeddings(input_ids)
        unused = hidden * 2
        assert unused is not None
        return self.second(torch.relu(self.first(hidden))) + hidden


class Reference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        return self.down(torch.relu(self.up(hidden))) + hidden


def test_a_port_is_matched_by_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = Reference()
    port, ids = Port(reference), torch.tensor([[1, 2, 3]])
    a = recorded(tmp_path / "a", lambda: reference(ids))
    b = recorded(tmp_path / "b", lambda: port(ids))
    result = fp.compare_traces(a, b)
    assert result.identical
    assert any(
        note.startswith("modules matched by their weights: word_embeddings = embed") for note in result.notes
    )
    assert {row.op for row in result.unmatched_b} == {"(model)/mul"} and not result.unmatched_a


def test_modules_are_renamed_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 3, 4)
    other = nn.ModuleDict({"dense": nn.Linear(4, 4)})
    a = recorded(tmp_path / "a", lambda: model[0](x), model=model)
    b = recorded(tmp_path / "b", lambda: other["dense"](x), model=other)
    result = fp.compare_traces(a, b, rename={"dense": "0"})
    assert result.first is not None and result.first.op == "0/linear"
    assert (result.verdict.kind, result.verdict.mechanism) == (fp.VerdictKind.INPUTS, "parameters")


# ---------------------------------------------------------------------- what goes wrong


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("precious")
    with pytest.raises(fp.InputError, match="new or empty"), fp.record(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "mine.txt").read_text() == "precious"


def test_an_error_in_the_block_leaves_an_incomplete_trace(tmp_path: Path) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)

    def fail() -> None:
        linear(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recorded(tmp_path / "a", fail)
    whole = recorded(tmp_path / "b", lambda: linear(x))
    result = fp.compare_traces(tmp_path / "a", whole)
    assert result.verdict.kind is fp.VerdictKind.UNDETERMINED
    assert any("did not come to its end" in note for note in result.notes)


def test_a_script_that_exits_well_has_come_to_its_end(tmp_path: Path) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)

    def ends(code: int) -> None:
        linear(x)
        sys.exit(code)

    for code in (0, 3):
        with pytest.raises(SystemExit):
            recorded(tmp_path / str(code), lambda code=code: ends(code))
    assert read(tmp_path / "0", "A").complete
    assert not read(tmp_path / "3", "B").complete


@pytest.mark.usefixtures("few_objects")
def test_a_trace_from_elsewhere_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    folder = recorded(tmp_path / "a", lambda: linear(x))
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    assert fp.compare_traces(folder, f"file://{folder}").identical
    gc.collect()
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["zip://::{0}/whole.zip", "zip://a::file://{0}/inside.zip", "local://{0}/a/"]
)
def test_a_trace_in_an_archive_is_read(address: str, tmp_path: Path) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    folder = recorded(tmp_path / "a", lambda: linear(x))
    shutil.make_archive(str(tmp_path / "whole"), "zip", folder)
    shutil.make_archive(str(tmp_path / "inside"), "zip", tmp_path, "a")
    assert fp.compare_traces(folder, address.format(tmp_path)).identical
    with pytest.raises(fp.InputError, match="expected a folder that forkpoint record"):
        fp.compare_traces(folder, f"zip://::{tmp_path}/nothing.zip")


@pytest.mark.parametrize("started", [False, True])
def test_a_recording_does_not_start_cuda(
    *, started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has started it can't be forked any more; where it was started, the GPU is named."""
    named: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: named.append("") or "a GPU")
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    folder = recorded(tmp_path / "a", lambda: linear(x))
    assert read(folder, "A").manifest["settings"].get("gpu") == ("a GPU" if started else None)
    assert bool(named) is started


def test_weights_that_can_not_be_read_are_not_said_to_differ(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 3, 4)
    model.register_buffer("sparse", torch.eye(4).to_sparse())
    folders = [recorded(tmp_path / name, lambda: model(x)) for name in "ab"]
    verdict = fp.compare_traces(*folders).verdict
    assert verdict.kind is fp.VerdictKind.IDENTICAL
    assert any("1 could not be read" in probe.text for probe in verdict.evidence)


def test_a_layout_by_hand_that_is_too_short_is_one_line(tmp_path: Path) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    layout = fp.Layout.from_mask(torch.ones(1, 3))
    with pytest.raises(fp.LayoutError, match="a layout of 1 calls"):
        recorded(tmp_path / "a", lambda: linear(x), lambda: linear(x), layout=layout)


def test_other_threads_are_left_alone(tmp_path: Path) -> None:
    linear, x = nn.Linear(4, 4), torch.randn(1, 3, 4)
    with fp.record(tmp_path / "a"):
        linear(x)
        thread = threading.Thread(target=lambda: linear(x))
        thread.start()
        thread.join()
    assert read(tmp_path / "a", "A").manifest["calls"] == 1


@pytest.mark.parametrize("given", [{"version": 2}, {"format": "other"}])
def test_another_format_is_one_line(given: dict[str, Any], tmp_path: Path) -> None:
    folder = recorded(tmp_path / "a", lambda: nn.Linear(2, 2)(torch.ones(1, 2)))
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **given}))
    with pytest.raises(fp.InputError, match=r"a trace of format version 2; expected version 1|is no trace"):
        fp.compare_traces(folder, folder)


def test_a_folder_that_is_no_trace_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(fp.InputError, match="no manifest"):
        fp.compare_traces(tmp_path, tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_trace_is_one_line_or_shorter(seed: int, tmp_path: Path) -> None:
    """Cut anywhere, or with other bytes anywhere: never another error."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(1, 3, 4)
    whole, folder = (recorded(tmp_path / name, lambda: model(x)) for name in "ab")
    generator = random.Random(seed)
    path = generator.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size))
    data = bytearray(path.read_bytes())
    if seed % 2:
        del data[generator.randrange(len(data)) :]
    else:
        for _ in range(8):
            data[generator.randrange(len(data))] = generator.randrange(256)
    path.write_bytes(data)
    with suppress(fp.ForkpointError):
        fp.compare_traces(whole, folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the board forks")
def test_a_killed_process_leaves_what_it_had_written(tmp_path: Path) -> None:
    """The board of 50 is `python -m tests.traces.kills`."""
    wrong, where = kills.kill_some(3, 0, tmp_path, ("llama, values kept",))
    assert not wrong and where.total() == 3


def test_other_rows_than_a_whole_recording_has_are_noticed(tmp_path: Path) -> None:
    kills.work(tmp_path)
    rows = kills.rows_of(read(tmp_path, "A"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert kills.check(tmp_path, rows, len(rows)) == "says that it is complete"
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    assert kills.check(tmp_path, rows, len(rows)) == ""
    assert kills.check(tmp_path, rows, len(rows) + 1).endswith("that were written")
    assert kills.check(tmp_path, rows[1:], 0) == "holds other rows than a whole recording"
    values = {0: b"a value that was kept"}
    assert kills.check(tmp_path, rows, 0, values) == "holds other values than a whole recording: 0, not 1"


@pytest.mark.parametrize("name", ["llama", "mixtral", "mamba"])
def test_by_columns_ops_compare_as_they_do_one_by_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many calls against one, against other tokens, and against the same: with the columns taken away it's the same answer."""
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    traces = [tmp_path / side for side in ("steps", "other", "whole")]
    for folder, tokens in zip(traces, (prompt(6), [*prompt(5), 99], None), strict=True):
        ids = torch.tensor([tokens or prompt(9)])
        with torch.no_grad(), fp.record(folder):
            if tokens:
                model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
            else:
                model(input_ids=ids)
    pairs = [(0, 0), (0, 1), (0, 2), (2, 0)]
    by_columns = [fp.compare_traces(traces[a], traces[b]) for a, b in pairs]
    monkeypatch.setattr(StoredTrace, "series", lambda *_: None)
    monkeypatch.setattr(PassTable, "same_as", lambda *_: False)
    for (a, b), fast in zip(pairs, by_columns, strict=True):
        slow = fp.compare_traces(traces[a], traces[b])
        assert slow.to_dict() == fast.to_dict()


def test_digests_in_a_file_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills.work(tmp_path)
    in_memory = kills.rows_of(read(tmp_path, "A"))
    monkeypatch.setattr(rows, "IN_MEMORY", 1 << 10)
    recorded = read(tmp_path, "A")
    assert recorded.trace.values.in_file
    assert kills.rows_of(recorded) == in_memory


def test_the_streams_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text(encoding="utf-8")
    for table, columns in TABLES.items():
        assert f"`{table}.arrow`" in text
        for name in columns.names:
            assert f"`{name}`" in text
