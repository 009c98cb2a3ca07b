"""An engine of plain torch with vLLM's layout, against transformers: nothing is blamed in a sound one, and each fault at its op."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.fake import FakeEngine, recorded
from tests.engines.planted import ENGINE, REFERENCE, Fault
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import forkpoint as fp
from forkpoint.engines.folder import FACTS
from forkpoint.engines.recording import read_recording

PROMPTS = [[5, 6, 7, 8, 9, 20, 30, 11, 40, 77], [10, 11, 12, 99, 55]]


def made(kind: str) -> torch.nn.Module:
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2, "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**sizes)).eval()


@pytest.fixture(params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return made(request.param)


@pytest.fixture
def qwen3() -> torch.nn.Module:
    return made("qwen3")


def test_a_sound_engine_is_rounding_and_every_op_has_its_place(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    found = fp.compare_engine(model, recorded(FakeEngine(model), PROMPTS, tmp_path / "r"), prompts=PROMPTS)
    assert found.verdict == "rounding", str(found)
    assert found.agrees and found.first is None
    assert {check.outcome for check in found.question} == {"same"}, found.question
    assert {row.status for row in found.ops} <= {"identical", "rounding"}
    assert {one.status for one in found.listed} == {"compared", "within"}, [
        o for o in found.listed if o.status == "listed"
    ]
    layer = {
        row.reference.removeprefix("model.layers.1.") for row in found.ops if "layers.1." in row.reference
    }
    wanted = {
        "input_layernorm/input", "input_layernorm/output", "self_attn.q_proj/output", "self_attn.k_proj/output",
        "self_attn.v_proj/output", "self_attn/query", "self_attn/key", "self_attn/value", "self_attn.o_proj/input",
        "self_attn.o_proj/output", "post_attention_layernorm/input", "post_attention_layernorm/output",
        "mlp.gate_proj/output", "mlp.up_proj/output", "mlp.down_proj/input", "mlp.down_proj/output",
    }  # fmt: skip
    assert wanted <= layer
    assert found.cost is not None and found.cost.tokens == 15 and found.cost.max_kl < 1e-9
    assert found.cost.mean_abs < 1e-5 and abs(found.cost.ratio - 1) < 1e-5 and found.cost.top1_flips == 0


def test_the_model_is_as_it_was(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r")
    before = {name: value.clone() for name, value in qwen3.state_dict().items()}
    fp.compare_engine(qwen3, folder)
    assert all(torch.equal(value, before[name]) for name, value in qwen3.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in qwen3.modules())


@pytest.mark.parametrize("fault", ENGINE, ids=lambda fault: fault.name)
def test_a_fault_of_the_engine_is_found_at_its_op(
    qwen3: torch.nn.Module, tmp_path: Path, fault: Fault
) -> None:
    engine = FakeEngine(qwen3)
    with fault.planted(engine):
        folder = recorded(engine, PROMPTS, tmp_path / "r")
    found = fp.compare_engine(qwen3, folder)
    assert found.first is not None, str(found)
    assert found.first.reference in fault.at
    assert found.verdict == "semantic"


@pytest.mark.parametrize("fault", REFERENCE, ids=lambda fault: fault.name)
def test_a_fault_of_the_reference_is_found_at_its_op(
    qwen3: torch.nn.Module, tmp_path: Path, fault: Fault
) -> None:
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r")
    with fault.planted(qwen3):
        found = fp.compare_engine(qwen3, folder)
    assert found.first is not None, str(found)
    assert found.first.reference in fault.at


# ---------------------------------------------------------------------- what misleads


def test_a_warm_up_is_left_out_and_counted(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    engine = FakeEngine(qwen3)
    with fp.record(tmp_path / "r", layout=engine.where, model=engine, values=["*/output"]):
        engine.warm_up(9)
        engine.answer(PROMPTS)
    assert engine.dropped == 1
    assert read_recording(tmp_path / "r").recorded.manifest["calls"] == 6
    facts = recorded(engine, PROMPTS, tmp_path / "s")
    found = fp.compare_engine(qwen3, facts)
    assert "1 calls of the engine that computed no request's tokens were left out" in str(found).replace("\n", " ").replace(
        "                            ", ""
    )  # fmt: skip


def test_a_warm_up_recorded_as_the_prompt_is_told_as_that(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    zeros = [[0] * len(prompt) for prompt in PROMPTS]
    folder = recorded(FakeEngine(qwen3), zeros, tmp_path / "r")
    found = fp.compare_engine(qwen3, folder, prompts=PROMPTS)
    assert (found.verdict, found.mechanism) == ("inputs", "token_ids")
    assert (
        found.summary
        == "sample 0 was given 10 times the token 0: a warm-up was recorded in place of the prompt"
    )


def test_other_token_ids_are_told(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    folder = recorded(FakeEngine(qwen3), [[5, 6, 8, 8], [1, 2]], tmp_path / "r")
    found = fp.compare_engine(qwen3, folder, prompts=[[5, 6, 7, 8], [1, 2]])
    assert (found.verdict, found.mechanism) == ("inputs", "token_ids")
    assert found.summary == "sample 0 was given other token ids at 1 of 4 positions, first at 2"


def test_a_residual_pair_is_joined(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    found = fp.compare_engine(qwen3, recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r"))
    rows = {row.reference: row for row in found.ops}
    assert rows["model.layers.0/output"].found == "sum"
    assert rows["model.layers.1.input_layernorm/input"].found == "residual"
    assert rows["model.layers.1.input_layernorm/input"].op == "model.layers.1.input_layernorm/add"


def test_the_first_part_of_a_pair_recorded_alone_is_told_as_that(
    qwen3: torch.nn.Module, tmp_path: Path
) -> None:
    class Hooked(FakeEngine):
        """As somebody would hook it by hand: of each layer the first of what it returns."""

    engine = Hooked(qwen3)
    folder = recorded(engine, PROMPTS, tmp_path / "r")
    drop_second_outputs(folder, "model.layers.0")
    found = fp.compare_engine(qwen3, folder)
    note = "what was recorded as model.layers.0/output is the value of model.layers.0.mlp.down_proj/output"
    assert found.notes == (note,), str(found)
    assert found.agrees
    assert [row.status for row in found.ops if row.reference == "model.layers.0/output"] == ["mislabelled"]


def drop_second_outputs(folder: Path, module: str) -> None:
    """Remove the values of the second output of a module from a recording."""
    recording = read_recording(folder)
    read = recording.recorded
    rows = [
        i
        for i, event in enumerate(recording.events)
        if (event.op.module, event.op.function, event.op.output) == (module, "output", 1)
    ]
    assert rows
    for row in rows:
        read.values[row].unlink()


def test_a_tensor_written_in_place_afterwards_is_told_as_that(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    """Recorded by reference: what q_norm returned is, when it is looked at, what the rotation made of it."""
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r")
    recording = read_recording(folder)
    read = recording.recorded
    names = {
        "model.layers.0.self_attn.q_norm": ("output", 0),
        "model.layers.0.self_attn.attn": ("input:query", 0),
    }
    for call in {event.call for event in recording.events}:
        at = {
            event.op.module: i
            for i, event in enumerate(recording.events)
            if event.call == call and names.get(event.op.module) == (event.op.function, event.op.output)
        }
        if len(at) == 2:
            overwrite(
                read.values[at["model.layers.0.self_attn.q_norm"]],
                read.values[at["model.layers.0.self_attn.attn"]],
            )
    found = fp.compare_engine(qwen3, folder)
    assert found.notes == (
        "what was recorded as model.layers.0.self_attn.q_norm/output is the value of model.layers.0.self_attn/query",
    )
    assert found.agrees, str(found)


def overwrite(target: Path, source: Path) -> None:
    """Put the elements of one value that was kept in the place of another's."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(source), "pt") as file:
        value = file.get_tensor("value")
    with safe_open(str(target), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        about = file.metadata()
    tensors["value"] = value.reshape(tensors["value"].shape)
    save_file(tensors, str(target), metadata=about)


def test_fused_projections_are_taken_apart_and_their_weights_proved(
    qwen3: torch.nn.Module, tmp_path: Path
) -> None:
    engine = FakeEngine(qwen3)
    found = fp.compare_engine(qwen3, recorded(engine, PROMPTS, tmp_path / "r"))
    fused = [row for row in found.ops if row.found == "fused"]
    assert len(fused) == 2 * 5
    weights = next(check for check in found.question if check.name == "weights")
    assert (weights.outcome, weights.text) == ("same", "25 parameters are the same, bit for bit")
    with torch.no_grad():  # the sync forgot one
        engine.model.layers[1].self_attn.qkv_proj.weight[40] += 1e-3
    stale = fp.compare_engine(qwen3, recorded(engine, PROMPTS, tmp_path / "s"))
    assert (stale.verdict, stale.mechanism) == ("inputs", "parameters")
    assert "model.layers.1.self_attn.k_proj.weight first" not in stale.summary
    assert stale.summary.startswith(
        "1 parameters of the engine differ from the reference's, model.layers.1.self_attn."
    )
    assert stale.first is not None and stale.first.reference.startswith("model.layers.1.self_attn.")


def test_positions_that_are_shifted_are_told(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    engine = FakeEngine(qwen3)
    engine.shift = 1
    found = fp.compare_engine(qwen3, recorded(engine, PROMPTS, tmp_path / "r"))
    assert (found.verdict, found.mechanism) == ("semantic", "position_ids")
    assert found.first is not None and found.first.reference == "model.layers.0.self_attn/query"


@pytest.mark.parametrize("fresh", [True, False])
def test_a_prefix_cache_of_other_weights_is_told(qwen3: torch.nn.Module, tmp_path: Path, fresh: bool) -> None:
    engine = FakeEngine(qwen3)
    whole = engine.model.layers[0].self_attn.qkv_proj.weight
    now = whole.detach().clone()
    if not fresh:
        with torch.no_grad():
            whole *= 1.01
    engine.answer(PROMPTS)  # fills the cache
    with torch.no_grad():
        whole.copy_(now)  # the sync
    engine.known = {0: 4}
    folder = recorded(engine, PROMPTS, tmp_path / "r")
    keep_cached(engine, folder, 0, 4)
    found = fp.compare_engine(qwen3, folder)
    prefix = next(check for check in found.question if check.name == "prefix_cache")
    assert prefix.text.startswith(
        "keys and values of the first 4 tokens of sample 0 were found in the prefix cache"
    )
    if fresh:
        assert found.agrees, str(found)
    else:
        assert (found.verdict, found.mechanism) == ("semantic", "cache_state")
        assert found.summary.startswith(
            "the prefix cache is stale: of the tokens that were found in it, 4 have other values"
        )
        assert "reset_prefix_cache" in found.switch


def keep_cached(engine: FakeEngine, folder: Path, request: int, tokens: int) -> None:
    """Write down the keys and values that a request found."""
    from safetensors.torch import save_file

    tensors = {}
    for i, page in enumerate(engine.pages):
        for name, cache in (("key", page.keys), ("value", page.values)):
            whole = torch.cat([cache[request, b] for b in range((tokens + 3) // 4)])[:tokens]
            tensors[f"cache.{request}.model.layers.{i}.self_attn.attn.{name}"] = whole.clone()
    save_file(tensors, str(folder / "engine.safetensors"))


def with_a_known_prefix(engine: FakeEngine, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A recording in which the first four tokens of a request were found in the prefix cache, and what it says of itself."""
    engine.answer(PROMPTS)
    engine.known = {0: 4}
    recorded(engine, PROMPTS, folder)
    keep_cached(engine, folder, 0, 4)
    return folder, json.loads((folder / FACTS).read_text())


def test_log_probabilities_of_tokens_that_were_not_computed_are_told(
    qwen3: torch.nn.Module, tmp_path: Path
) -> None:
    """As a prefix cache returns those of an earlier run."""
    folder, facts = with_a_known_prefix(FakeEngine(qwen3), tmp_path / "r")
    facts["reported"][0]["logprobs"][1:5] = [-3.0, -3.1, -3.2, -3.3]
    (folder / FACTS).write_text(json.dumps(facts))
    found = fp.compare_engine(qwen3, folder)
    assert (found.verdict, found.mechanism) == ("semantic", "cache_state")
    assert (
        found.summary
        == "4 log-probabilities were returned of tokens whose logits were not computed in this run"
    )
    assert "reset_prefix_cache" in found.switch


def test_log_probabilities_of_an_earlier_run_that_are_right_are_no_error(
    qwen3: torch.nn.Module, tmp_path: Path
) -> None:
    before = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "whole")
    folder, facts = with_a_known_prefix(FakeEngine(qwen3), tmp_path / "r")
    facts["reported"] = json.loads((before / FACTS).read_text())["reported"]
    (folder / FACTS).write_text(json.dumps(facts))
    found = fp.compare_engine(qwen3, folder)
    assert found.agrees, str(found)
    [check] = [check for check in found.question if check.name == "reported_elsewhere"]
    assert check.outcome == "unknown"


def test_other_log_probabilities_than_those_of_its_logits_are_not_blamed_on_the_cache(
    qwen3: torch.nn.Module, tmp_path: Path
) -> None:
    """Although some tokens were found in it."""
    folder, facts = with_a_known_prefix(FakeEngine(qwen3), tmp_path / "r")
    told = facts["reported"][1]["logprobs"]
    facts["reported"][1]["logprobs"] = [None if p is None else p - 0.5 for p in told]
    (folder / FACTS).write_text(json.dumps(facts))
    found = fp.compare_engine(qwen3, folder)
    assert (found.verdict, found.mechanism, found.switch) == ("semantic", None, "")


def test_a_temperature_on_one_side_is_told(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r", temperature=0.7)
    found = fp.compare_engine(qwen3, folder)
    assert (found.verdict, found.mechanism) == ("inputs", "temperature")
    assert "temperature=0.7" in found.summary
    assert {row.status for row in found.ops} <= {"identical", "rounding"}  # the model itself is sound
    assert any(c.name == "reported" and c.outcome == "differs" for c in found.question)


def test_a_temperature_that_nobody_mentions_is_told_by_the_numbers(
    qwen3: torch.nn.Module, tmp_path: Path
) -> None:
    longer = [
        torch.randint(0, 128, (40,), generator=torch.Generator().manual_seed(s)).tolist() for s in (1, 2)
    ]
    folder = recorded(FakeEngine(qwen3), longer, tmp_path / "r", temperature=0.7)
    facts = json.loads((folder / FACTS).read_text())
    facts["settings"]["temperature"] = 1.0
    (folder / FACTS).write_text(json.dumps(facts))
    found = fp.compare_engine(qwen3, folder)
    assert (found.verdict, found.mechanism) == ("inputs", "temperature"), str(found)


def test_raw_log_probabilities_are_not_blamed_on_a_temperature(
    qwen3: torch.nn.Module, tmp_path: Path
) -> None:
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r")
    facts = json.loads((folder / FACTS).read_text())
    facts["settings"] |= {"temperature": 0.7, "top_p": 0.8, "logprobs_mode": "raw_logprobs"}
    (folder / FACTS).write_text(json.dumps(facts))
    found = fp.compare_engine(qwen3, folder)
    assert found.agrees
    assert "temperature=0.7, top_p=0.8" in next(c.text for c in found.question if c.name == "sampling")


# ---------------------------------------------------------------------- other recordings


def test_a_recording_without_facts_is_compared(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    """As of a hand-written engine: `record` with a layout and values is enough."""
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r", facts=False)
    found = fp.compare_engine(qwen3, folder, rename={"logits_processor": "lm_head"})
    assert found.verdict == "rounding", str(found)
    assert found.engine == "r"
    outcomes = {check.name: check.outcome for check in found.question}
    assert (outcomes["sampling"], outcomes["token_ids"]) == ("unknown", "same")


def test_without_logits_it_is_undetermined(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r", facts=False)
    found = fp.compare_engine(qwen3, folder)  # that logits_processor is lm_head was not said
    assert found.verdict == "undetermined"
    assert found.cost is None


def test_a_trace_without_values_is_one_clear_line(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    with fp.record(tmp_path / "r"):
        qwen3(torch.tensor([[1, 2, 3]]))
    with pytest.raises(fp.InputError, match="a trace without values; expected values of the engine's ops"):
        fp.compare_engine(qwen3, tmp_path / "r")


def test_facts_of_another_version_are_one_clear_line(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    folder = recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r")
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**facts, "format_version": 2}))
    with pytest.raises(fp.InputError, match="not of format version 1"):
        fp.compare_engine(qwen3, folder)
    (folder / FACTS).write_text("{")
    with pytest.raises(fp.InputError, match=r"engine\.json, which can't be read"):
        fp.compare_engine(qwen3, folder)


def test_it_travels_as_json_and_has_no_truth_value(qwen3: torch.nn.Module, tmp_path: Path) -> None:
    found = fp.compare_engine(qwen3, recorded(FakeEngine(qwen3), PROMPTS, tmp_path / "r"))
    found.to_json(tmp_path / "found.json")
    data = json.loads((tmp_path / "found.json").read_text())
    assert data["agrees"] is True and data["verdict"] == "rounding"
    assert len(data["ops"]) == len(found.ops)
    with pytest.raises(TypeError, match=r"comparison\.agrees"):
        bool(found)


def test_an_llm_elsewhere_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM lives in an environment of its own")
    with pytest.raises(fp.InputError, match="VLLM_ENABLE_V1_MULTIPROCESSING=0"):
        fp.record_engine(object(), [[1]], tmp_path)
