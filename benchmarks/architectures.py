"""What forkpoint says of many architectures of transformers, each asked the same questions.

    python benchmarks/architectures.py [--only TEXT] [--again TEXT] [--jobs N]

Makes the rows that are missing (of `--only`: whose `architecture question` holds the text; those of `--again`, and those of
other versions of torch and transformers or of another commit, are made anew), keeps them in `results/architectures.json` as they come, and writes
the page of the documentation from that file. Run from the clone, with its root on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import shutil
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch
import transformers
from tests.questions.words import word_tokenizer

import forkpoint as fp
from forkpoint.match.join import OF_OTHERS
from forkpoint.questions.attention import using
from forkpoint.questions.dtype import cast_to
from machine import describe
from results import RESULTS, Json
from zoo import MEDIA, ZOO, Media
from zoopage import PAGE, page

FILE = RESULTS / "architectures.json"
PROMPT = "w5 w6 w7 w8 w9 w10 w11 w12"
OTHERS = ["w3 w4", "w20 w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31", "w9"]
NO_PARTNER = {OF_OTHERS, "not written yet"}
"""Reasons for which there is nothing to compare a value with: it stands for tokens that the other run has not there, or is
memory that was only reserved."""
QUESTIONS = ("padding right", "padding left", "batch", "cache", "attention", "dtype")


class NotAskedError(Exception):
    """A question that this architecture can't be asked; the text says why."""


def built(name: str, attention: str = "eager") -> Any:
    torch.manual_seed(0)  # what is no weight matrix is drawn by the model's own code
    return ZOO[name].build(attention=attention)


def other_attention(name: str) -> str:
    """The attention implementation that an architecture has besides its own eager one."""
    try:
        built(name, "sdpa")
    except ValueError as error:
        raise NotAskedError("it has one attention implementation, or none") from error
    return "sdpa"


def asked(name: str, question: str) -> fp.Result:
    """The answer to one question.

    Raises:
        NotAskedError: it can't be asked.
    """
    if question == "attention":
        other_attention(name)
    model = built(name)
    if name in MEDIA:
        return of_media(model, MEDIA[name], question)
    tokenizer = word_tokenizer()
    own = getattr(model.get_input_embeddings(), "padding_idx", None)
    if own is not None:  # MPNet has another than its configuration says
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(own)
    ask: dict[str, Callable[[], fp.Result]] = {
        "padding right": lambda: fp.padding(model, tokenizer, PROMPT, 14),
        "padding left": lambda: fp.padding(model, tokenizer, PROMPT, 14, "left"),
        "batch": lambda: fp.batch(model, tokenizer, PROMPT, 4, others=OTHERS),
        "cache": lambda: fp.cache(model, tokenizer, PROMPT),
        "attention": lambda: fp.attention(model, tokenizer, PROMPT, "sdpa"),
        "dtype": lambda: fp.dtype(model, tokenizer, PROMPT, "bfloat16"),
    }
    try:
        return ask[question]()
    except fp.InputError as error:
        raise NotAskedError(str(error)) from error


def of_media(model: Any, media: Media, question: str) -> fp.Result:
    """The same of a model whose inputs are no token ids alone."""
    rows = [exact(media.row(torch.Generator().manual_seed(seed))) for seed in range(3)]
    a = fp.Run(model, rows[0], name="as it is")
    if question == "padding right":
        if media.padded is None:
            raise NotAskedError("it takes inputs of one size")
        return fp.compare(a, fp.Run(model, media.padded(rows[0]), name="padded"))
    if question == "batch":
        together = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
        return fp.compare(
            fp.Run(model, rows[0], name="alone"), fp.Run(model, together, name="in a batch of 3")
        )
    if question == "attention":

        def other(model: Any, inputs: dict[str, Any]) -> Any:
            with using(model, "sdpa"):
                return model(**inputs)

        return fp.compare(a, fp.Run(model, rows[0], call=other, name="sdpa"))
    if question == "dtype":
        narrow = {k: v.bfloat16() if v.is_floating_point() else v for k, v in rows[0].items()}
        return fp.compare(a, fp.Run(cast_to(model, torch.bfloat16), narrow, name="bfloat16"))
    raise NotAskedError(
        "images and sound have no left padding" if question != "cache" else "no command decodes from them"
    )


def exact(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, of values that bfloat16 has, too: an input that is rounded is another input."""
    return {
        key: value.bfloat16().float() if value.is_floating_point() else value for key, value in inputs.items()
    }


def row(name: str, question: str) -> Json:
    """What came out, as plain JSON."""
    began = time.perf_counter()
    try:
        result = asked(name, question)
    except NotAskedError as error:
        return {"reason": str(error)}
    missing = [r for r in result.ops if r.status == "not compared"]
    alone = sum(r.floating and r.reason in NO_PARTNER for r in missing)
    place = result.origin or result.first
    return {
        "verdict": result.verdict.kind.value,
        "mechanism": result.verdict.mechanism,
        "by_design": result.verdict.by_design,
        "summary": result.verdict.summary,
        "at": None if place is None else f"{place.op} ({place.source})",
        "gap": None if result.impact is None else result.impact.max_abs,
        "compared": sum(r.status in ("equal", "differs", "view") for r in result.ops),
        "floats": sum(r.floating and not r.status.startswith("only in") for r in result.ops),
        "no_partner": alone,
        "missing_floats": sum(r.floating for r in missing) - alone,
        "missing_whole": sum(not r.floating for r in missing),
        "reasons": dict(Counter(kind_of(r.reason) for r in missing).most_common()),
        "only_in_one": sum(r.status.startswith("only in") for r in result.ops),
        "seconds": round(time.perf_counter() - began, 2),
    }


def kind_of(reason: str) -> str:
    """A reason without its numbers, so that it can be counted."""
    return re.sub(r"\[[^]]*\]|\d+", "…", reason.partition(";")[0]) or "the runs share no coordinate of it"


def versions(of: str) -> Json:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "commit": of}


def last_commit() -> str:
    """The last commit that changed what the rows depend on."""
    if shutil.which("git") is None:
        return ""
    paths = ["src", "benchmarks/architectures.py", "benchmarks/zoo.py", "tests/architectures.py"]
    found = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", *paths], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--again", metavar="TEXT")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes that make rows at the same time"
    )
    parser.add_argument("--commit", default=last_commit(), metavar="ID", help="where there is no git to ask")
    given = parser.parse_args()
    of = versions(given.commit)
    known: Json = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    rows: Json = known.get("rows", {}) if known.get("of") == of else {}
    keys = [f"{name} {question}" for name in ZOO for question in QUESTIONS]
    wanted = [key for key in keys if given.only in key and (key not in rows or _again(key, given.again))]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn"), initializer=_quiet) as workers:
        made = {workers.submit(row, *key.split(" ", 1)): key for key in wanted}
        for done in as_completed(made):
            key = made[done]
            rows[key] = done.result()
            shown = (
                rows[key].get(k) for k in ("verdict", "mechanism", "missing_floats", "reason", "seconds")
            )
            print(key, *shown, flush=True)
            written(of, rows)
    PAGE.write_text(page(json.loads(FILE.read_text(encoding="utf-8"))), encoding="utf-8")


def _again(key: str, text: str | None) -> bool:
    return text is not None and text in key


def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def written(of: Json, rows: Json) -> None:
    ordered = {f"{name} {q}": rows[f"{name} {q}"] for name in ZOO for q in QUESTIONS if f"{name} {q}" in rows}
    data = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "of": of,
        "without": [name for name in ZOO if not any(key.startswith(f"{name} ") for key in rows)],
        "machine": describe(torch.device("cpu")),
        "rows": ordered,
    }
    FILE.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
