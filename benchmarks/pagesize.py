"""How large the page of a long run of a deep model is, and how soon a browser shows it.

    python benchmarks/pagesize.py --out benchmarks/results/pagesize.json [--case rounding] [--tokens 4093] [--hidden 64]

The model has Llama-2-7B's 32 layers and its ops. Unless asked for, its width, heads and vocabulary are less, as a page shows names,
shapes and gaps and no values; its weights are random. Where another machine makes the comparisons and has no browser,

    python benchmarks/pagesize.py --hidden 4096 --heads 32 --dtype bfloat16 --device cuda --keep pages --no-browser

leaves them in `pages`, and with the same `--keep` they are measured where there is one. Each case is a comparison that is made here: the prompt twice (identical), padded (rounding), padded with a leak
planted in the first layer (semantic), and several prompts alone against the same in a batch. Needs playwright, and Chromium. Each load is by a browser
that was just started.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import statistics
import tempfile
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import forkpoint as fp
from machine import describe
from results import Json

SYLLABLES = ("ba", "co", "du", "fe", "gi", "ha", "ko", "lu", "me", "ni", "po", "ra", "su", "te", "vi", "wo")
LAYERS = 32
ROWS = 8
DRAWN = """() => document.querySelector("#ops-table tbody tr") !== null
  && [...document.querySelectorAll(".plot")].every((plot) => plot.querySelector(".main-svg"))"""
TIMES = """async () => ({
  shown: performance.getEntriesByName("first-contentful-paint")[0].startTime,
  largest: await new Promise((done) => new PerformanceObserver((seen) => done(seen.getEntries().at(-1).startTime))
    .observe({ type: "largest-contentful-paint", buffered: true })),
  parsed: performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd,
})"""
FIRST = """() => [...document.querySelectorAll("h1, section")].filter((one) => one.getBoundingClientRect().top < innerHeight)
  .map((one) => one.id || one.tagName)"""


@dataclass(frozen=True)
class Making:
    """How a result was made."""

    tokens: int
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    rows: int
    dtype: str
    device: str


def loaded(asked: Making) -> tuple[Any, Any]:
    """A random Llama, and a tokenizer whose words are made of syllables."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<unk>": 1}
    for number in range(asked.vocabulary - len(words)):
        word = "".join(SYLLABLES[number >> shift & 15] for shift in (12, 8, 4, 0))
        words[word] = len(words)
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=asked.vocabulary, hidden_size=asked.hidden, intermediate_size=asked.hidden * 43 // 16,
        num_hidden_layers=asked.layers, num_attention_heads=asked.heads, num_key_value_heads=asked.heads,
        max_position_embeddings=2 * asked.tokens,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, asked.dtype))
    try:
        with torch.device(asked.device):
            return LlamaForCausalLM(config).eval(), tokenizer
    finally:
        torch.set_default_dtype(before)


def prompt(tokenizer: Any, tokens: int, seed: int) -> str:
    drawn = random.Random(seed)
    words = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha()]
    return " ".join(drawn.choice(words) for _ in range(tokens))


def leaking(model: Any) -> Any:
    """The same model; the first layer's MLP adds some of the mean over all columns, so that whatever follows differs."""
    first = model.model.layers[0]
    first.mlp.register_forward_hook(lambda _module, _given, out: out + 0.1 * out.mean(1, keepdim=True))
    return model


def compared(
    case: str, model: Any, tokenizer: Any, tokens: int, rows: int, *, probes: bool = True
) -> fp.Result:
    """The result that a page is made of."""
    if case == "batch":
        prompts = [prompt(tokenizer, tokens - 20 * number, number) for number in range(rows)]
        return fp.batch(model, tokenizer, prompts, size=rows, probes=probes)
    text = prompt(tokenizer, tokens, 0)
    if case == "identical":
        return fp.repeat(model, tokenizer, text, probes=probes)
    model = leaking(model) if case == "semantic" else model
    return fp.padding(model, tokenizer, text, pad_to=-(-tokens // 8) * 8, probes=probes)


def opened(page: Path, slowed: int) -> Json:
    """One load of the page by a browser that was just started, in milliseconds from the navigation.

    The first screen is `shown` when its first and its `largest` text are; the scripts are `parsed` and the map `drawn` below it.
    """
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        if slowed > 1:
            tab.context.new_cdp_session(tab).send("Emulation.setCPUThrottlingRate", {"rate": slowed})
        tab.goto(page.as_uri(), wait_until="commit")
        while not tab.evaluate(DRAWN):
            tab.wait_for_timeout(10)
        found = {
            "drawn": tab.evaluate("performance.now()"),
            **tab.evaluate(TIMES),
            "sections": tab.evaluate(FIRST),
        }
        found["browser"] = browser.version
        browser.close()
    return found


def measured(result: fp.Result, loads: int) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        start = perf_counter()
        result.to_html(file)
        written = perf_counter() - start
        held = file.read_bytes()
        found: Json = {
            "bytes": len(held),
            "gzip": len(gzip.compress(held)),
            "seconds_to_write": round(written, 2),
        }
        for slowed in (1, 4):
            times = [opened(file, slowed) for _ in range(loads)]
            key = "milliseconds" if slowed == 1 else f"milliseconds_with_a_processor_{slowed}_times_slower"
            found[key] = {
                name: {"median": round(statistics.median(values)), "most": round(max(values))}
                for name in ("shown", "largest", "parsed", "drawn")
                for values in [[one[name] for one in times]]
            }
        found["browser"], found["first_screen"] = times[0]["browser"], times[0]["sections"]
    return found


CASES = ("identical", "rounding", "semantic", "batch")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=CASES, help="by default each of them")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--tokens", type=int, default=4093)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the batch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", help="where the comparisons are made")
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--no-probes", action="store_true", help="the pages are then without their evidence")
    parser.add_argument(
        "--keep", type=Path, help="a folder for the pages and their results; one that is there is read"
    )
    parser.add_argument("--no-browser", action="store_true", help="only make what --keep holds")
    parser.add_argument("--out", type=Path, help="a file for the figures; rows of other cases stay in it")
    asked = parser.parse_args()
    asked_for = Making(**{one.name: getattr(asked, one.name) for one in fields(Making)})
    rows = []
    for case in asked.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            result, made = held(case, asked_for, asked.keep or Path(folder), probes=not asked.no_probes)
        assert result.impact is not None
        row: Json = {
            "case": case, "verdict": result.verdict.kind.value, "probes": result.verdict.probed,
            "compared_tokens": result.impact.tokens, "ops": len(result.ops), **made,
        }  # fmt: skip
        if not asked.no_browser:
            row |= measured(result, asked.loads)
        print(json.dumps(row), flush=True)
        rows.append(row)
    if asked.out:
        before = json.loads(asked.out.read_text(encoding="utf-8"))["rows"] if asked.out.exists() else []
        rows = [*(row for row in before if row["case"] not in {new["case"] for new in rows}), *rows]
        report = {**describe(torch.device("cpu")), "date": datetime.now(UTC).date().isoformat(),
                  "load_average": round(os.getloadavg()[1], 1), "rows": rows}  # fmt: skip
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def held(case: str, asked: Making, folder: Path, *, probes: bool) -> tuple[fp.Result, Json]:
    """The result of a case with how it was made, from the folder if they are there; else they and the page are put there."""
    kept = folder / f"{case}.json"
    told = folder / f"{case}-made.json"
    if not kept.exists():
        model, tokenizer = loaded(asked)
        began = perf_counter()
        result = compared(case, model, tokenizer, asked.tokens, asked.rows, probes=probes)
        taken = round(perf_counter() - began, 1)
        on = describe(torch.device(asked.device))
        folder.mkdir(parents=True, exist_ok=True)
        result.to_json(kept)
        result.to_html(kept.with_suffix(".html"))
        told.write_text(
            json.dumps({**asdict(asked), "seconds_to_compare": taken, "made_on": on}), encoding="utf-8"
        )
    return fp.Result.from_json(kept), json.loads(told.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
