"""Which calls are given no mask."""

from __future__ import annotations

import pytest
from tests.corpus import CASES

import forkpoint as fp
from forkpoint.report.words import Words


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("14-llama-mask-dropped", "Run B gives no mask. "),
        ("20-t5-encoder-outputs-no-mask", "Run B gives no mask. "),
        (
            "20-bart-encode-then-decode",
            "Run B calls model.decoder.layers.0.encoder_attn/scaled_dot_product_attention ",
        ),
        ("m-mask-one-too-many-left", "Pass "),
        ("m-decode-mask-short", "Pass "),
        ("m-mask-inverted", "Pass "),
    ],
)
def test_advice(name: str, said: str) -> None:
    a, b, how, patches = CASES[name].build()
    with patches:
        verdict = fp.compare(a, b, **how).verdict
    assert verdict.advice.startswith(said), verdict.advice


def test_calls_by_their_numbers() -> None:
    from forkpoint.probes.masks import _calls

    assert [_calls(n) for n in ([1], [1, 2, 3], [0, 2])] == ["call 1", "calls 1 to 3", "calls 0, 2"]


def test_the_advice_is_translated_sentence_by_sentence() -> None:
    words = Words("zh")
    text = "Run B gives no mask in calls 1 to 3. Look at the op named: what comes after it only passes it on."
    assert words.can_say(text)
    assert words.phrase(text) == (
        "运行 B 在第 1 到 3 次调用中没有传 mask。请查看上面指出的算子：后面的算子只是把它传下去。"
    )
    assert not words.can_say("Run B gives no mask. Nobody has said this.")
