"""What layout-invariant inference costs: stock attention of torch and `fp.invariant`, turn by turn, in one run.

python benchmarks/invariance.py                              # SmolLM2 in float32 on the CPU, 50 and 509 tokens
python benchmarks/invariance.py --device cuda                # the shape of Llama-2-7B in bfloat16
python benchmarks/invariance.py --device cuda --peers        # beside it other ways, with how many layouts break
python benchmarks/invariance.py --error                      # distances from float64 instead, next to stock's
python benchmarks/invariance.py --error --products           # those of one product by itself
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import pstats
import statistics
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers as tf

import forkpoint as fp
from invarianceerror import NAMES, distances, products
from machine import describe

LENGTHS = {"cpu": (50, 509), "cuda": (53, 509, 1024, 4093)}
Way = Callable[[], AbstractContextManager[object]]


def main() -> None:
    """Prints and writes one row for each case: the fastest and the median time of each way, and their ratios to stock's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--peers", action="store_true", help="other ways too: an override of operators, deterministic mode"
    )
    parser.add_argument("--error", action="store_true", help="distances from float64 instead")
    parser.add_argument("--products", action="store_true", help="--error of one product, by its rows")
    parser.add_argument("--model", action="append", choices=NAMES, help="of those of --error")
    parser.add_argument("--dtype", action="append", help="of those of --error; or of the model on a GPU")
    parser.add_argument("--tokens", type=int, default=100, help="of a prompt of --error")
    parser.add_argument(
        "--profile", action="store_true", help="where Python's time goes in each case instead"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of --error: begin no other seed after that time"
    )
    given = parser.parse_args()
    told = describe(torch.device(given.device)) | {"date": datetime.now(UTC).date().isoformat()}
    if given.error:
        names, dtypes = given.model or (), given.dtype or ()
        if given.products:
            errors = products(given.device, given.repeats, dtypes, given.seconds)
        else:
            errors = distances(given.device, given.repeats, names, dtypes, given.tokens, given.seconds)
        _written(given.out, told, errors)
        return
    model = _model(given.device, *(given.dtype or ())[:1])
    if given.profile:
        for name, call in _cases(model, given.device):
            print(name)
            _profiled(model, call)
        return
    ways: dict[str, Way] = {"stock": nullcontext, "invariant": lambda: fp.invariant(model)}
    if given.peers:
        ways |= _peers()
    rows: list[dict[str, object]] = []
    for name, call in _cases(model, given.device):
        times = _timed(model, call, given.repeats, ways)
        stock = times["stock"]
        for way, seconds in times.items():
            rows.append({
                "case": name,
                "way": way,
                "seconds": statistics.median(seconds),
                "fastest": min(seconds),
                "ratio": statistics.median(seconds) / statistics.median(stock),
                "ratio_of_fastest": min(seconds) / min(stock),
            })  # fmt: skip
            print(f"{name:26} {way:14} {1e3 * statistics.median(seconds):8.2f} ms, {rows[-1]['ratio']:.3f} times "
                  f"({rows[-1]['ratio_of_fastest']:.3f} of the fastest)", flush=True)  # fmt: skip
    if given.peers:
        for way, context in ways.items():
            tried, broken = _broken(model, given.device, context)
            rows.append({"way": way, "layouts": tried, "broken": broken})
            print(f"{way:14} {broken} of {tried} layouts have other bits than the row alone", flush=True)
    _written(given.out, told, rows)


def _written(out: Path | None, told: dict[str, object], rows: list[dict[str, object]]) -> None:
    if out is not None:
        out.write_text(json.dumps({**told, "rows": rows}, indent=1) + "\n")


def _peers() -> dict[str, Way]:
    from batchinvariant import batch_invariant

    return {"override": batch_invariant, "deterministic": _deterministic}


@contextmanager
def _deterministic() -> Generator[None]:
    """Torch's own mode; its demand for a workspace of cuBLAS of a fixed size, a matter of the environment, is not met."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def _broken(model: torch.nn.Module, device: str, context: Way) -> tuple[int, int]:
    """How many layouts were tried: batches, padding on both sides, a step from a cache; and how many changed a bit."""
    generator = torch.Generator().manual_seed(1)
    tried = broken = 0
    for length in (1, 7, 16, 33, 53, 128, 200, 509):
        row = torch.randint(5, 30000, (1, length), generator=generator).to(device)
        others = torch.randint(5, 30000, (3, length), generator=generator).to(device)
        with torch.inference_mode(), context():
            alone = model(input_ids=row, use_cache=False).logits[0]
            made = [model(input_ids=torch.cat((row, others)), use_cache=False).logits[0]]
            for side in ("left", "right"):
                pad = (60, 0) if side == "left" else (0, 60)
                mask = torch.nn.functional.pad(torch.ones_like(row), pad)
                ids = torch.nn.functional.pad(row, pad)
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                padded = model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
                ).logits[0]
                made.append(padded[60:] if side == "left" else padded[:length])
            if length > 1:
                first = model(input_ids=row[:, :-1], use_cache=True)
                last = model(
                    input_ids=row[:, -1:], past_key_values=first.past_key_values, use_cache=True
                ).logits[0]
                made.append(torch.cat((first.logits[0], last)))
        tried += len(made)
        broken += sum(not torch.equal(one, alone) for one in made)
    return tried, broken


def _model(device: str, dtype: str = "bfloat16") -> torch.nn.Module:
    if device == "cpu":
        return fp.load("demo", dtype="float32", attn="sdpa").model
    with torch.device(device):
        config = tf.LlamaConfig(max_position_embeddings=8192)
        made = tf.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return made.eval()


def _cases(model: torch.nn.Module, device: str) -> list[tuple[str, Callable[[], object]]]:
    cases: list[tuple[str, Callable[[], object]]] = []
    generator = torch.Generator().manual_seed(0)

    def ids(rows: int, length: int) -> torch.Tensor:
        return torch.randint(5, 30000, (rows, length), generator=generator).to(device)

    for length in LENGTHS[device]:
        row = ids(1, length)
        cases.append((f"{length} tokens", lambda row=row: model(input_ids=row, use_cache=False)))
    width = 512 if device == "cuda" else 64
    padded = ids(8, width)
    mask = torch.ones_like(padded)
    mask[:, : width // 2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cases.append((
        "8 rows, half padding",
        lambda: model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False),
    ))  # fmt: skip
    for length in LENGTHS[device]:
        cases.append((f"a step after {length} tokens", _step(model, ids(1, length), ids(1, 1))))
    return cases


def _step(model: torch.nn.Module, row: torch.Tensor, token: torch.Tensor) -> Callable[[], object]:
    with torch.inference_mode():
        cache = model(input_ids=row, use_cache=True).past_key_values

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def _timed(
    model: torch.nn.Module, call: Callable[[], object], repeats: int, ways: dict[str, Way]
) -> dict[str, list[float]]:
    """Seconds of each call, every way by turns, after two of each that are not counted.

    On a CPU they are the process's own, which others on the machine lengthen less than those of a clock.
    """
    now = time.perf_counter if next(model.parameters()).is_cuda else time.process_time
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 2):
        for way, context in ways.items():
            with torch.inference_mode(), context():
                call()  # a block looks at the first call in it
                _wait(model)
                for _ in range(3):
                    start = now()
                    call()
                    _wait(model)
                    if turn >= 2:
                        times[way].append(now() - start)
    return times


def _profiled(model: torch.nn.Module, call: Callable[[], object]) -> None:
    profile = cProfile.Profile()
    with torch.inference_mode(), fp.invariant(model):
        call()
        call()
        with profile:
            call()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def _wait(model: torch.nn.Module) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
