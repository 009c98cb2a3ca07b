"""Results, traces and log-probabilities from strangers: read, shown in every form, or refused."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import forkpoint as fp
from forkpoint.errors import ForkpointError
from forkpoint.report.markdown import to_issue, to_markdown
from forkpoint.report.page import to_html
from forkpoint.report.terminal import render
from forkpoint.traces.reading import read as read_trace
from forkpoint.traces.schema import MANIFEST

from . import damage


def expect_one_line(error: ForkpointError) -> None:
    message = str(error)
    assert damage.is_one_line(message), f"not one readable line: {message[:300]!r}"


Input = Callable[[], bool]
WORDS = [
    "identical",
    "rounding",
    "semantic",
    "undetermined",
    "equal",
    "differs",
    "view",
    "only in a",
    "padding_leak",
    "nan",
]
SHOWN = ("terminal", "markdown", "issue", "page")


class Small(nn.Module):
    """A model of a few ops, one of which sees padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embed(input_ids)
        return {"logits": self.out(hidden + hidden.mean(1, keepdim=True)), "sum": attention_mask.sum()}


def sound() -> list[fp.Result]:
    """Results of several kinds."""
    torch.manual_seed(0)
    model = Small()
    ids = torch.tensor([[1, 2, 3]])
    plain = fp.Run(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    padded_ids, mask = torch.tensor([[1, 2, 3, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    padded = fp.Run(model, {"input_ids": padded_ids, "attention_mask": mask})
    return [fp.compare(plain, plain), fp.compare(plain, padded), fp.compare(plain, padded, probes=False)]


class Tags(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, frozenset[str]]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add((tag, frozenset(name for name, _ in attrs)))


def tags_of(page: str) -> set[tuple[str, frozenset[str]]]:
    parser = Tags()
    parser.feed(page)
    return parser.seen


def shortened(result: fp.Result) -> str:
    """The JSON of a result with a few of its ops: the rest are like those, and reading them takes most of the time."""
    found = result.to_dict()
    found["ops"] = found["ops"][:2] + [row for row in found["ops"] if row["status"] == "differs"][:2]
    return json.dumps(found)


def results(folder: Path) -> Callable[[random.Random], Input]:
    """The JSON of a result, with values changed, or bytes; some of what is read is shown in one of the forms."""
    texts = list(map(shortened, sound()))
    places = [damage.places(json.loads(text)) for text in texts]
    file = folder / "result.json"

    def draw(rng: random.Random) -> Input:
        number = rng.randrange(len(texts))
        if rng.random() < 0.9:
            changed = damage.damaged_json(texts[number], places[number], WORDS, rng)
        else:
            changed = damage.damaged_bytes(texts[number].encode(), rng)
        form = rng.choice(SHOWN) if rng.random() < 0.04 else ""
        lang = rng.choice(("en", "zh"))

        def read() -> bool:
            file.write_bytes(changed)
            try:
                found = fp.Result.from_json(file)
            except ForkpointError as error:
                expect_one_line(error)
                return False
            repr(found)
            if form:
                show(found, form, lang)
            return True

        return read

    return draw


def show(found: fp.Result, form: str, lang: str) -> None:
    """Nothing but what a report itself writes reaches a terminal or is markup of a page."""
    if form == "page":
        page = to_html(found, lang=lang)
        events = {name for _, names in tags_of(page) for name in names if name.startswith("on")}
        assert not events, f"attributes that run something: {events}"
        assert not {tag for tag, _ in tags_of(page)} & {"iframe", "object", "embed", "base", "form"}
        return
    if form == "terminal":
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            console = Console(file=nowhere, width=80, record=True)
            render(found, console, ops=True, lang=lang)
            shown = console.export_text()
    else:
        shown = to_markdown(found, lang=lang) if form == "markdown" else to_issue(found, lang=lang)
    hidden = {c for line in shown.split("\n") for c in line if not c.isprintable()}
    assert not hidden, f"characters that can't be seen: {hidden!r}"


def traces(folder: Path) -> Callable[[random.Random], Input]:
    """A file of a trace, damaged or missing; some of what can be read is compared with a sound one, and shown.

    The two differ in the values of one op, which both have kept, so that a comparison reads them.
    """
    torch.manual_seed(0)
    model, ids = Small(), torch.tensor([[1, 2, 3]])
    for name in ("sound", "other"):
        with torch.no_grad(), fp.record(folder / name, values=["*/linear", "*/embedding"]):
            model(ids, torch.ones_like(ids))
            model(ids + 1, torch.ones_like(ids))
        with torch.no_grad():
            model.embed.weight[2] += 1
    files = [(file, file.read_bytes()) for file in sorted((folder / "other").rglob("*")) if file.is_file()]
    manifest = json.loads((folder / "other" / MANIFEST).read_bytes())
    places = damage.places(manifest)

    def put(file: Path, data: bytes | None) -> None:
        if data is None:
            file.unlink()
            return
        # A new file each time: the old one may still be mapped into memory.
        (folder / "new").write_bytes(data)
        os.replace(folder / "new", file)

    def draw(rng: random.Random) -> Input:
        file, data = rng.choice(files)
        if rng.random() < 0.03:
            changed = None
        elif file.name == MANIFEST and rng.random() < 0.8:
            changed = damage.damaged_json(data.decode(), places, ["../../etc", "forkpoint-trace"], rng)
        elif rng.random() < 0.5:
            changed = rng.choice((damage.damaged_bytes, damage.damaged_number))(data, rng)
        elif file.suffix == ".arrow":
            changed = damage.damaged_table(data, rng)
        else:
            changed = damage.damaged_tensors(data, rng)
        compared = rng.random() < 0.3

        def read() -> bool:
            put(file, changed)
            try:
                if compared:
                    show(fp.compare_traces(folder / "sound", folder / "other"), "markdown", "en")
                else:
                    read_trace(folder / "other", "B").close()
            except ForkpointError as error:
                expect_one_line(error)
                return False
            finally:
                put(file, data)
            return True

        return read

    return draw


def records(folder: Path) -> Callable[[random.Random], Input]:
    """A file of log-probabilities, damaged."""
    rows = [{"id": n, "token_ids": [n, 2, 3, 4], "logprobs": [None, -0.5, -1.25 - n, -3.0]} for n in range(4)]
    lines = [json.dumps(row) for row in rows]
    places = [damage.places(row) for row in rows]
    (folder / "sound").write_text("\n".join(lines), encoding="utf-8")

    def draw(rng: random.Random) -> Input:
        number = rng.randrange(len(lines))
        if rng.random() < 0.7:
            new = damage.damaged_json(lines[number], places[number], [], rng)
            changed = b"\n".join(
                [*(text.encode() for text in lines[:number]), new, *map(str.encode, lines[number + 1 :])]
            )
        else:
            changed = damage.damaged_bytes("\n".join(lines).encode(), rng)

        def read() -> bool:
            (folder / "damaged").write_bytes(changed)
            try:
                found: Any = fp.logprobs(folder / "sound", folder / "damaged")
            except ForkpointError as error:
                expect_one_line(error)
                return False
            assert all(line.isprintable() for line in str(found).split("\n"))
            return True

        return read

    return draw
