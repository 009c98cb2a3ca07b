"""The benchmark runs, with a model that takes no time; what it measures is nobody's business here."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import pytest
import torch

import cases
import forkpoint as fp
import peers
import table
import tracing
import waits
from forkpoint.explain.session import trace_run


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what makes figures good: here they are thrown away."""
    monkeypatch.setattr(gc, "collect", lambda: 0)
    monkeypatch.setattr(tracing, "copy_speed", lambda device: 1e9)
    monkeypatch.setattr(tracing, "LAYERS_TOKENS", 8)


@pytest.fixture(scope="module")
def pair() -> cases.Pair:
    return cases.pair(cases.llama7b("cpu", "float32", layers=2, hidden=16).model, 9)


def test_the_second_run_is_the_first_one_padded(pair: cases.Pair) -> None:
    a, b = (run.calls[0] for run in pair)
    assert (pair.tokens, pair.padded, pair.device.type) == (9, 50, "cpu")
    assert torch.equal(b["input_ids"][:, :9], a["input_ids"])
    assert b["attention_mask"].sum() == a["attention_mask"].sum() == 9
    assert torch.equal(b["position_ids"][:, :9], a["position_ids"])
    assert [cases.padded_length(n) for n in (18, 49, 50, 509, 4093)] == [50, 50, 56, 512, 4096]


def test_layers_are_cut_and_put_back(pair: cases.Pair) -> None:
    model = pair.a.model
    whole = model.model.layers
    with cases.cut_to(model, 1):
        assert len(model.model.layers) == model.config.num_hidden_layers == 1
        traced = trace_run(fp.Run(model, pair.a.calls[0]))
        assert not [op for op in traced.trace.ops if op.module.startswith("model.layers.1")]
    assert model.model.layers is whole
    assert model.config.num_hidden_layers == 2


def test_bytes_are_counted_once_for_each_value() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.half()  # 24 elements of 2 bytes
            return y.view(6, 4).sum(1)  # a view counts for nothing, the sum has 6

    trace = trace_run(fp.Run(Model(), {"x": torch.ones(2, 3, 4)})).trace
    inputs = 24 * 4 * sum(trace.ops[e.op].is_input and e.status == "digest" for e in trace.events)
    assert cases.digested(trace)[0] - inputs == 24 * 2 + 6 * 2


@pytest.mark.parametrize("name", [name for name in peers.WAYS if name != "torchlens"])
def test_a_peer_leaves_the_model_as_it_was(name: str, pair: cases.Pair) -> None:
    model = pair.a.model

    def state() -> dict[str, tuple[list[str], int, int]]:
        return {
            path: (list(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks))
            for path, m in model.named_modules()
        }

    before = state()
    with peers.WAYS[name].around(pair):
        peers.WAYS[name].run(pair)
    assert state() == before
    assert not torch.overrides._get_current_function_mode_stack()


def test_storing_finds_what_differs(pair: cases.Pair) -> None:
    """The comparison is real: with other token ids in one run, values differ; with the same, hardly any."""
    other = dict(pair.b.calls[0])
    other["input_ids"] = other["input_ids"] + 1
    changed = cases.Pair(pair.a, fp.Run(pair.a.model, other))
    _, same = peers.store(cases.Pair(pair.a, pair.a))  # type: ignore[misc]
    _, differs = peers.store(changed)  # type: ignore[misc]
    assert len(same) > 50
    assert not any(same)
    assert sum(differs) > len(differs) / 4


def test_loops_find_what_differs_and_refuse_long_prompts(pair: cases.Pair) -> None:
    other = dict(pair.b.calls[0])
    other["input_ids"] = other["input_ids"] + 1
    states, found = peers.loops(cases.Pair(pair.a, fp.Run(pair.a.model, other)))  # type: ignore[misc]
    ours, theirs = (kept[0][0][:9] for kept in states)
    assert [f for f in found if f[0] == 0] == [(0, *at) for at in (ours != theirs).nonzero().tolist()]
    with pytest.raises(peers.NotHereError, match="64"):
        peers.loops(cases.pair(pair.a.model, 65))


@pytest.mark.usefixtures("hasty")
def test_a_way_that_fails_or_is_missing_stops_nothing(
    pair: cases.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(pair: cases.Pair) -> None:
        raise RuntimeError("broken\nin two lines")

    def missing(pair: cases.Pair) -> None:
        import nowhere_to_be_found  # noqa: F401

    for name, run in (("debugmode", fails), ("store", missing)):
        way = peers.WAYS[name]
        monkeypatch.setitem(peers.WAYS, name, peers.Way(way.label, run, True, way.around, way.note))
    found = tracing.compare_ways(pair, ["plain", "debugmode", "store", "mode"], 2, 2, 10, 1e9)["ways"]
    assert found["debugmode"]["failed"] == "RuntimeError: broken"
    assert found["store"]["skipped"] == "nowhere_to_be_found is not installed"
    assert found["mode"]["repetitions"] == found["plain"]["repetitions"] == 2
    hurried = tracing.compare_ways(pair, ["plain", "loops"], 2, 2, 1e-9, 1e9)["ways"]
    assert hurried["loops"]["skipped"].startswith("left out: its first pass took")
    assert hurried["plain"]["repetitions"] == 2


@pytest.mark.usefixtures("hasty")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--model llama7b --device cpu --dtype float32 --layers 2 --hidden 16 --tokens 9 --repetitions 2 --only forkpoint mode"
    more = [
        "--scaling",
        "--scaling-tokens",
        "8",
        "16",
        "--scaling-layers",
        "1",
        "2",
        "4",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["tracing.py", *options.split(), *more])
    tracing.main()
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert list(report["cases"][0]["ways"]) == ["plain", "forkpoint", "mode"]
    assert [case["layers"] for case in report["scaling"]["layers"]] == [1, 2]
    assert [case["tokens"] for case in report["scaling"]["tokens"]] == [8, 16]
    assert "**forkpoint**" in table.section(path.stem, report)


@pytest.mark.usefixtures("hasty")
def test_no_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--model llama7b --device cpu --layers 1 --hidden 16 --seconds 0 --json"
    monkeypatch.setattr(sys, "argv", ["tracing.py", *options.split(), str(tmp_path / "figures.json")])
    tracing.main()
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report["left_out"] == ["50 tokens", "509 tokens"]


def test_the_verdict_of_the_next_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the other process is told to do, done in this one."""
    options = "--model llama7b --device cpu --dtype float32 --layers 1 --hidden 16 --threads 1"
    monkeypatch.setattr(sys, "argv", ["tracing.py", *options.split()])
    again = tracing.same_model(tracing.arguments())
    assert again[1] == "--verdict-alone"
    assert set(again[2:]) == set(options.split())
    assert waits._next(["-c", "print('loading'); print('[1]')"]) == [1]
    monkeypatch.setattr(sys, "argv", again)
    tracing.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["kind"], found["tokens"], found["padded"]) == ("rounding", 18, 50)
    assert 0 < found["verdict_seconds"] < found["scene_seconds"]
