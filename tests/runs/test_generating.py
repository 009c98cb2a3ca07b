"""`call=` that generates: each token at its own position, up to the first that differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, pad, prompt
from tests.questions.test_generate import llama, nearly_twins
from torch import Tensor

import forkpoint as fp
from forkpoint import InputError, Run, VerdictKind

ROW = prompt(7)
OTHERS = [prompt(2), prompt(11)]


def given(*rows: list[int], to: int | None = None) -> dict[str, Tensor]:
    ids, mask = pad(rows, to, "left")
    return {"input_ids": ids, "attention_mask": mask}


def generating(**settings: Any) -> Any:
    settings = {"max_new_tokens": 4, "pad_token_id": 0, "do_sample": False, **settings}
    return lambda model, inputs: model.generate(**inputs, **settings)


def sampling(seed: int | None) -> Any:
    def call(model: Any, inputs: dict[str, Any]) -> Any:
        if seed is not None:
            torch.manual_seed(seed)
        return generating(do_sample=True)(model, inputs)

    return call


def compared(model: Any, *calls: Any, batch: bool = False, **options: Any) -> fp.Result:
    a = Run(model, given(ROW), call=calls[0])
    b = Run(model, given(ROW, *OTHERS) if batch else given(ROW), call=calls[-1])
    return fp.compare(a, b, **options)


def sound(result: fp.Result) -> bool:
    return result.verdict.kind in (VerdictKind.ROUNDING, VerdictKind.IDENTICAL)


@pytest.mark.parametrize("name", ["llama", pytest.param("mamba", marks=pytest.mark.slow), "t5"])
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    model = ARCHITECTURES[name].build()
    model.generation_config.eos_token_id = None
    result = compared(model, generating(max_new_tokens=3), batch=True)
    assert sound(result), result
    assert "Both runs generate the same tokens, as far as both go." in result.notes
    assert result.impact is not None
    assert result.impact.tokens >= 3


@pytest.mark.parametrize(
    "other",
    [
        {"prompt_lookup_num_tokens": 3},
        pytest.param({"cache_implementation": "static", "disable_compile": True}, marks=pytest.mark.slow),
        pytest.param({"prefill_chunk_size": 3}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_other_ways_to_generate(other: dict[str, Any]) -> None:
    assert sound(compared(llama(), generating(), generating(**other)))


def test_a_tie_that_rounding_decides_is_compared_up_to_there() -> None:
    result = compared(
        nearly_twins(0), generating(max_new_tokens=16), generating(max_new_tokens=16, use_cache=False)
    )
    assert result.verdict.kind is VerdictKind.ROUNDING
    (note,) = [note for note in result.notes if note.startswith("Of the tokens generated")]
    assert "is the first that differs" in note
    assert result.impact is not None and result.impact.top1_flips == 1


def test_a_fault_at_a_generated_token_is_at_its_position() -> None:
    """The batch alone has it, from one token on."""
    model = llama()

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        wide = kwargs["position_ids"].shape[0] > 1
        at = kwargs["position_ids"] == len(ROW) + 2
        changed = output[0] if isinstance(output, tuple) else output
        changed = changed + 0.5 * (at[..., None] & wide)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    model.model.layers[0].register_forward_hook(hook, with_kwargs=True)
    result = compared(model, generating(), batch=True)
    assert result.verdict.kind is VerdictKind.SEMANTIC
    assert result.origin is not None
    assert (result.origin.position, result.origin.module) == (len(ROW) + 2, "model.layers.0")


def test_sampling_with_a_seed() -> None:
    assert compared(llama(), sampling(3)).identical


def test_another_seed_is_no_identity() -> None:
    result = compared(llama(), sampling(3), sampling(4))
    assert result.verdict.kind is VerdictKind.SEMANTIC
    assert result.first is None
    assert any("From the same logits they choose other tokens" in note for note in result.notes)


def test_sampling_without_a_seed_does_not_repeat_itself() -> None:
    verdict = compared(llama(), sampling(None)).verdict
    assert (verdict.kind, verdict.mechanism) == (VerdictKind.NONDETERMINISM, "random_state")


def test_a_row_that_ends_is_no_token_afterwards() -> None:
    model = llama()
    third = int(model.generate(**given(ROW), max_new_tokens=3, do_sample=False, pad_token_id=0)[0, -1])
    assert sound(compared(model, generating(eos_token_id=third), batch=True))


def test_what_the_call_returns_may_be_a_text() -> None:
    def told(model: Any, inputs: dict[str, Any]) -> str:
        return str(generating()(model, inputs).tolist())

    assert sound(compared(llama(), told, batch=True))


def test_one_run_generates_and_the_other_is_given_the_tokens() -> None:
    model = llama()
    whole = model.generate(**given(ROW), max_new_tokens=4, do_sample=False, pad_token_id=0)
    result = fp.compare(Run(model, {"input_ids": whole[:, :-1]}), Run(model, given(ROW), call=generating()))
    assert sound(result), result


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (generating(num_beams=2), "beams change places"),
        (lambda model, inputs: [generating()(model, inputs) for _ in range(2)], "generates 2 times"),
        (lambda model, inputs: (generating()(model, inputs), model(**inputs)), "with 1 forward calls besides"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Any, said: str) -> None:
    model = llama()
    with pytest.raises(InputError, match=said):
        compared(model, call)
    assert "generate" not in vars(model)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_generating_from_embeddings_is_refused() -> None:
    model = llama()
    run = Run(
        model,
        {"inputs_embeds": model.get_input_embeddings()(torch.tensor([ROW])).detach()},
        call=generating(),
    )
    with pytest.raises(InputError, match="something else than token ids"):
        fp.compare(run, run)
