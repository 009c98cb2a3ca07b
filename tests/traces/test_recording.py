"""Recording whatever a script does: errors, forks, threads, other recordings, a full disk, places elsewhere."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.architectures import ARCHITECTURES, prompt
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.traces import elsewhere, writing
from forkpoint.traces.reading import TraceFolder, read
from forkpoint.traces.schema import TABLES

X = torch.arange(12.0).reshape(1, 3, 4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def recorded(folder: Path | str, *calls: Callable[[], Any], **options: Any) -> TraceFolder:
    with torch.no_grad(), fp.record(folder, **options):
        for call in calls:
            call()
    return read(folder, "A")


def ops_of(trace: TraceFolder) -> list[tuple[int, str]]:
    return [(event.call, trace.trace.ops[event.op].name) for event in trace.trace.events]


class Fails(nn.Module):
    """Fails in some of its calls."""

    def __init__(self, *fails: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.calls, self.fails = 0, fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.up(x)
        if self.calls - 1 in self.fails:
            raise ZeroDivisionError("in the model")
        return self.down(hidden)


def expect_failure(failing: nn.Module) -> None:
    with pytest.raises(ZeroDivisionError):
        failing(X)


# ---------------------------------------------------------------------- calls that end in an error


def test_a_call_that_failed_is_a_call_of_the_trace(tmp_path: Path) -> None:
    """A script that goes on after it is not taken for one of fewer calls, and its ops up to the error are there."""
    torch.manual_seed(0)
    failing = Fails(1)
    a = recorded(tmp_path / "a", lambda: failing(X), lambda: expect_failure(failing), lambda: failing(X))
    assert a.failed == {1: "ZeroDivisionError: in the model"} and a.complete
    assert [name for call, name in ops_of(a) if call == 1][-2:] == ["up/linear", "up/output"]
    assert [name for call, name in ops_of(a) if call == 0] == [name for call, name in ops_of(a) if call == 2]
    failing.fails = ()
    recorded(tmp_path / "b", lambda: failing(X), lambda: failing(X), lambda: failing(X))
    for other in "ab":
        result = fp.compare_traces(tmp_path / "a", tmp_path / other)
        assert result.verdict.kind is fp.VerdictKind.UNDETERMINED
        assert "call 1 of run A ended in an error: ZeroDivisionError: in the model" in result.notes
    sound = fp.compare_traces(tmp_path / "b", tmp_path / "b")
    assert sound.identical and not sound.notes


def test_what_a_script_did_before_an_error_ended_it_is_there(tmp_path: Path) -> None:
    failing = Fails(0)
    with pytest.raises(ZeroDivisionError), fp.record(tmp_path / "a"):
        failing(X)
    found = read(tmp_path / "a", "A")
    assert ops_of(found)[-2:] == [(0, "up/linear"), (0, "up/output")] and not found.complete


# ---------------------------------------------------------------------- processes, threads, recordings in one another


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("leaves", [False, True])
def test_a_forked_process_writes_nothing(*, leaves: bool, tmp_path: Path) -> None:
    """Whether it ends at once, or leaves the block as its parent will."""
    torch.set_num_threads(1)
    one = model()
    parent = os.getpid()
    try:
        with torch.no_grad(), fp.record(tmp_path / "a"):
            one(X)
            child = os.fork()
            if not child:
                one(X)
                (sys.exit if leaves else os._exit)(0)
            os.waitpid(child, 0)
            one(X)
    except SystemExit:
        assert os.getpid() != parent
        os._exit(0)
    found = read(tmp_path / "a", "A")
    assert found.complete and found.manifest["calls"] == 2
    assert len(found.trace) == 2 * len(recorded(tmp_path / "b", lambda: one(X)).trace)


def test_a_recording_within_another_is_refused(tmp_path: Path) -> None:
    one = model()

    def again() -> None:
        with pytest.raises(fp.InputError, match="a recording within a recording"), fp.record(tmp_path / "b"):
            raise AssertionError

    assert recorded(tmp_path / "a", again, lambda: one(X)).manifest["calls"] == 1
    assert not (tmp_path / "b").exists()
    assert recorded(tmp_path / "c", lambda: one(X)).complete


def test_a_comparison_within_a_recording_is_what_it_is_elsewhere(tmp_path: Path) -> None:
    """Each saw the other's calls: the comparison lost the modules' paths, the trace had runs that the script never made."""
    architecture = ARCHITECTURES["llama"]
    llama = architecture.build()
    inputs = [architecture.inputs([prompt(5)], pad_to=length) for length in (5, 8)]
    found: list[fp.Result] = []

    def compare() -> None:
        found.append(fp.compare(*(fp.Run(llama, each) for each in inputs), probes=False))

    compare()
    trace = recorded(tmp_path / "a", compare, lambda: llama(**inputs[0]))
    assert found[1].ops == found[0].ops and found[1].first == found[0].first
    assert trace.manifest["calls"] == 1


def test_recordings_of_several_threads_take_turns(tmp_path: Path) -> None:
    one = model()
    threads = [
        threading.Thread(target=recorded, args=(tmp_path / str(i), *[lambda: one(X)] * 3)) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read(tmp_path / str(i), "A").manifest["calls"] for i in range(3)] == [3, 3, 3]
    assert fp.compare_traces(tmp_path / "0", tmp_path / "2").identical


def test_of_two_recordings_at_one_place_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where both saw an empty folder before either wrote to it."""
    first = writing.Writer(tmp_path / "a", {})
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))
    with pytest.raises(fp.InputError, match="something already"):
        writing.Writer(tmp_path / "a", {"command": ["another"]})
    assert "another" not in (tmp_path / "a" / "manifest.json").read_text()
    first.close(complete=True)


# ---------------------------------------------------------------------- what can't be written


class Full:
    """A stream on a disk that is full after some batches."""

    def __init__(self, stream: Any, room: int) -> None:
        self.stream, self.room = stream, room

    def write_batch(self, batch: Any) -> None:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= 1
        self.stream.write_batch(batch)

    def close(self) -> None:
        self.stream.close()


def test_a_full_disk_ends_a_recording_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear line; what came before can be read, and what comes after is not said to be all."""
    one, failed = model(), list[fp.CaptureError]()
    begin = writing.Writer.__init__

    def small(self: writing.Writer, *args: Any) -> None:
        begin(self, *args)
        self._streams["rows"] = Full(self._streams["rows"], 2)  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(writing.Writer, "__init__", small)

    def call() -> None:
        try:
            one(X)
        except fp.CaptureError as error:
            failed.append(error)

    found = recorded(tmp_path / "a", *[call] * 4)
    assert len(failed) == 1 and "No space left on device" in str(failed[0])
    assert not found.complete and {call for call, _ in ops_of(found)} == {0, 1}


@pytest.mark.parametrize("name", ["\udcff", "a\0b"])
def test_a_name_that_no_folder_can_have_is_one_line(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(fp.InputError, match="expected a folder that can be written"),
        fp.record(tmp_path / name),
    ):
        pass
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """Returns what no file of tensors can hold, beside what it can."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"plain": x * 2, "meta": x.to("meta")}


def test_results_that_no_file_holds_are_left_out_with_a_reason(tmp_path: Path) -> None:
    a = recorded(tmp_path / "a", lambda: Odd()(X))
    assert set(a.left_out) == {"meta"} and set(a.results[0]) == {"plain"}
    meta = nn.Linear(4, 4, device="meta")
    assert recorded(tmp_path / "b", lambda: meta(X.to("meta"))).left_out


# ---------------------------------------------------------------------- what is told of a recording


class LetsGo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        result = (doubled + 1).sin()
        doubled.untyped_storage().resize_(0)
        return result


def test_values_that_were_let_go_of_are_so_in_every_call(tmp_path: Path) -> None:
    """Of later calls, digests of nothing were taken for those of the values."""
    lets_go = LetsGo()
    layout = fp.Layout([fp.Layout.from_mask(torch.ones(1, 3)).calls[0]] * 3)
    a = recorded(tmp_path / "a", *[lambda: lets_go(X)] * 3, layout=layout)
    status = [
        (event.call, event.status) for event in a.trace.events if a.trace.ops[event.op].function == "mul"
    ]
    assert status == [(0, "skipped"), (1, "skipped"), (2, "skipped")]


def test_what_was_not_looked_into_is_said(tmp_path: Path) -> None:
    fused = nn.TransformerEncoderLayer(4, 2, batch_first=True).eval()
    for name in "ab":
        recorded(tmp_path / name, lambda: fused(X))
    result = fp.compare_traces(tmp_path / "a", tmp_path / "b")
    assert result.a.notes == ("not looked into, since that would change its bits: (model)",)
    assert not fp.compare_traces(*[_plain(tmp_path / name) for name in "cd"]).a.notes


def _plain(folder: Path) -> Path:
    one = model()
    recorded(folder, lambda: one(X))
    return folder


# ---------------------------------------------------------------------- elsewhere


def test_a_trace_is_recorded_to_where_fsspec_says(tmp_path: Path) -> None:
    one = model()
    address = f"memory://{tmp_path.name}/trace"
    with torch.no_grad(), fp.record(address, values=["*/linear"]):
        one(X)
    recorded(tmp_path / "a", lambda: one(X))
    assert fp.compare_traces(tmp_path / "a", address).identical
    copy = read(address, "B")
    assert len(copy.values) == 2
    copy.close()
    with pytest.raises(fp.InputError, match="something already"), fp.record(address):
        pass
    with pytest.raises(fp.InputError, match="a place that fsspec can write to"), fp.record("nosuch://x"):
        pass


def test_what_can_not_be_copied_elsewhere_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", _no_room)
    one = model()
    with pytest.raises(fp.CaptureError, match="it lies in") as raised, fp.record("memory://full/trace"):
        one(X)
    (written,) = tmp_path.iterdir()
    assert str(written / "trace") in str(raised.value) and read(written / "trace", "A").complete


def _no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_lies_elsewhere_is_told_by_its_address() -> None:
    assert elsewhere.is_elsewhere("s3://bucket/trace") and not elsewhere.is_elsewhere(Path("C:/traces"))


# ---------------------------------------------------------------------- what is damaged


def _changed(folder: Path, name: str, **tensors: Tensor) -> None:
    """Put other tensors into a file of a trace, its metadata staying as they are."""
    with safe_open(folder / name, "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        about = file.metadata()
    save_file({**kept, **tensors}, folder / name, about)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"value": torch.zeros(7)}, "another shape or dtype"),
        ({"value": torch.zeros(1, 3, 4, dtype=torch.int32)}, "another shape or dtype"),
        (
            {"q": torch.zeros(1, 5, 4, dtype=torch.int32)},
            "another shape|could not be broadcast|shape mismatch",
        ),
        ({"q": torch.zeros(4, dtype=torch.int32)}, "another shape"),
        ({"q": torch.full((1, 3, 4), 99, dtype=torch.int32)}, "a coordinate that there is not"),
    ],
)
def test_a_value_of_another_kind_than_its_row_is_one_line(
    damage: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    """Values are read after all else, where a comparison wants to show them."""
    one = model()
    recorded(tmp_path / "a", lambda: one(X), values=["*/linear"])
    recorded(tmp_path / "b", lambda: one(X + 1), values=["*/linear"])
    sound = fp.compare_traces(tmp_path / "a", tmp_path / "b")
    assert sound.first is not None and sound.first.value_a is not None
    for file in (tmp_path / "b" / "values").iterdir():
        _changed(tmp_path / "b" / "values", file.name, **damage)
    with pytest.raises(fp.InputError, match=said) as raised:
        fp.compare_traces(tmp_path / "a", tmp_path / "b")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "about", [{"left_out": {"logits": {}}}, {"root": 7}, {"root": "0"}, {"lengths": [None]}, {"failed": []}]
)
def test_metadata_of_another_kind_are_one_line(about: dict[str, Any], tmp_path: Path) -> None:
    one = model()
    recorded(tmp_path / "a", lambda: one(X))
    (file,) = (tmp_path / "a" / "calls").iterdir()
    with safe_open(file, "pt") as opened:
        kept = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
        before = json.loads(opened.metadata()["about"])
    save_file(kept, file, {"about": json.dumps({**before, **about})})
    with pytest.raises(fp.InputError, match="a trace that can't be read"):
        read(tmp_path / "a", "A")
    save_file(kept, file, {"about": json.dumps(before)})
    assert read(tmp_path / "a", "A").complete


@pytest.mark.parametrize("file", ["manifest.json", *(f"{name}.arrow" for name in TABLES)])
def test_a_file_that_is_missing_is_one_line(file: str, tmp_path: Path) -> None:
    one = model()
    recorded(tmp_path / "a", lambda: one(X))
    (tmp_path / "a" / file).unlink()
    with pytest.raises(fp.InputError) as raised:
        fp.compare_traces(tmp_path / "a", tmp_path / "a")
    assert file.removesuffix(".arrow") in str(raised.value)


def test_a_row_that_lacks_a_cell_is_one_line(tmp_path: Path) -> None:
    """What may lack one is in the format; other cells are read only where a comparison needs them."""
    one = model()
    recorded(tmp_path / "a", lambda: one(X))
    path = tmp_path / "a" / "forms.arrow"
    with pa.OSFile(str(path), "rb") as file:
        rows = pa.ipc.open_stream(file).read_all().to_pylist()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, TABLES["forms"]) as stream:
        for row in rows:
            stream.write_batch(pa.RecordBatch.from_pylist([{**row, "row_dims": None}], TABLES["forms"]))
    with pytest.raises(fp.InputError, match=r"forms\.arrow has a row without row_dims"):
        read(tmp_path / "a", "A")


def test_what_was_not_found_or_not_seen_is_said(tmp_path: Path) -> None:
    linear, x = nn.Linear(3, 3), torch.ones(1, 2, 3)
    compiled, graph = torch.compile(lambda x: linear(x) * 2, backend="eager"), torch.fx.symbolic_trace(linear)
    remarks: dict[str, list[str]] = {}
    for name, call in {
        "kept": lambda: linear(x),
        "compiled": lambda: compiled(x),
        "graph": lambda: graph(x),
    }.items():
        with fp.record(
            tmp_path / name, values=["(model)/linear", "nothing/*"] if name == "kept" else ()
        ) as remarks[name]:
            call()
    torch.compiler.reset()
    assert remarks["kept"] == ["no op is called nothing/*: none of its values were kept"]
    assert remarks["compiled"] == [
        "no model was called, or only in functions that torch.compile had compiled"
    ]
    (said,) = remarks["graph"]
    assert said.startswith("a graph of torch.fx was recorded")
    assert said in fp.compare_traces(tmp_path / "graph", tmp_path / "graph").a.notes


def test_an_autocast_around_the_calls_is_a_setting(tmp_path: Path) -> None:
    linear, x = nn.Linear(3, 3), torch.ones(1, 2, 3)
    with fp.record(tmp_path / "a"):
        linear(x)
    with fp.record(tmp_path / "b", model=linear), torch.autocast("cpu", torch.bfloat16):
        linear(x)
    result = fp.compare_traces(tmp_path / "a", tmp_path / "b")
    (autocast,) = (entry for entry in result.configuration if entry.name == "settings.autocast")
    assert (autocast.value_a, autocast.value_b) == ("None", "'cpu bfloat16'")
