"""What a report is about: the call, the model, the prompt, and the names of the runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkpoint.report.document import Fact, Line, Section, Span, code, line, muted
from forkpoint.report.numbers import shape
from forkpoint.report.safe import quoted

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import InputRow, Result, RunSummary

PROMPT_SHOWN = 50
"""Characters of a prompt that are shown."""
CALL_SHOWN = 120
"""Characters of a call that are shown."""


def header(result: Result, words: Words) -> Section:
    """By what one tells this report from another: what is not known is left out."""
    return named(result.call, result.a, result.b, words)


def named(call: str, a: RunSummary, b: RunSummary, words: Words) -> Section:
    """The same of two runs and the call that compared them."""
    facts: list[Fact] = []
    if call:
        facts.append(Fact(words("identity.call"), (line(code(_cut(call))),)))
    if a.model and a.model == b.model:
        facts.append(Fact(words("identity.model"), (line(a.model),)))
    prompt = _prompt(a, words)
    if prompt:
        facts.append(Fact(*prompt))
    alike = a.name == b.name
    facts += [
        Fact(label, (_name(run, label, words, model=a.model != b.model, alike=alike),))
        for label, run in ((words("run.a"), a), (words("run.b"), b))
    ]
    return Section("header", (), tuple(facts))


def question(call: str, model: str, prompt: str, tokens: int, words: Words) -> Section:
    """The same where nothing was compared: the call, the model and the prompt."""
    facts: list[Fact] = []
    if call:
        facts.append(Fact(words("identity.call"), (line(code(_cut(call))),)))
    if model:
        facts.append(Fact(words("identity.model"), (line(model),)))
    if prompt:
        counted = muted(words("aside", text=words.many("tokens", tokens)))
        facts.append(Fact(words("identity.prompt"), (line(quoted(prompt, PROMPT_SHOWN), counted),)))
    return Section("header", (), tuple(facts))


def _cut(text: str) -> str:
    return text if len(text) <= CALL_SHOWN else text[: CALL_SHOWN - 1] + "…"


def _name(run: RunSummary, label: str, words: Words, *, model: bool, alike: bool) -> Line:
    """The run's name; what went in where the name tells nothing, and its model where the runs have two."""
    parts: list[str] = []
    if run.name != label:
        parts.append(words.phrase(run.name))
    if alike or run.name == label:
        parts.append(_inputs(run))
    if model and run.model:
        parts.append(run.model)
    return line(words("comma").join(filter(None, parts)))


def _inputs(run: RunSummary) -> str:
    """The shape of the first input, dtype and device: `input_ids [1, 15], bfloat16, cpu`."""
    shapes = next(iter(run.calls), {})
    first = next((f"{name} {shape(size)}" for name, size in shapes.items()), "")
    return ", ".join(filter(None, (first, run.dtype, run.device)))


def _prompt(run: RunSummary, words: Words) -> tuple[str, tuple[Line, ...]] | None:
    """The text of the first sample, if a tokenizer is known, or else the digest of what goes in."""
    first = next((row for row in run.rows if _text(row)), None)
    if first is None:
        return (words("identity.inputs"), (line(muted(f"sha256 {run.digest}…")),)) if run.digest else None
    samples = f"{words('comma')}{words.many('identity.more', run.samples - 1)}" if run.samples > 1 else ""
    tokens = words("aside", text=words.many("tokens", run.tokens))
    spans: list[str | Span] = [quoted(_text(first), PROMPT_SHOWN), samples, muted(tokens)]
    return words("identity.prompt"), (line(*spans),)


def _text(row: InputRow) -> str:
    """The tokens of a row, as far as they are needed."""
    texts = [text for _, _, text in row.columns if text]
    return "".join(texts[: PROMPT_SHOWN + 1])
