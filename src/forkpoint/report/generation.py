"""The report of two ways to generate: what each made, the first token that differs, and then the comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from forkpoint.report import identity
from forkpoint.report.build import document as of_result
from forkpoint.report.document import Document, Fact, Paragraph, Section, line, muted, strong
from forkpoint.report.numbers import short
from forkpoint.report.page import plain_page
from forkpoint.report.page import to_html as page_of_result
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.questions.answers import Generation

SHOWN = 400
"""Characters of a generated text that are shown."""


def page(generation: Generation, words: Words) -> str:
    """Both texts and the first token that differs, and then the page of the comparison."""
    about, ways, token, *_ = document(generation, words).sections
    if generation.result is None:
        title = words("generation.page", a=generation.name_a, b=generation.name_b)
        return plain_page(title, about, [token, ways], words)
    return page_of_result(
        replace(generation.result, call=generation.call), lang=words.lang, above=(token, ways)
    )


def document(generation: Generation, words: Words) -> Document:
    """What both ways made, the first token that differs, and the comparison up to there."""
    ways = tuple(
        Fact(words(f"run.{run}"), (line(words.phrase(name)), line(muted(_shown(text)))))
        for run, name, text in (
            ("a", generation.name_a, generation.text_a),
            ("b", generation.name_b, generation.text_b),
        )
    )
    model, prompt = (
        ("", "") if generation.result is not None else (generation.model, generation.text)
    )  # its header says both
    sections = [
        identity.question(generation.call, model, prompt, generation.prompt, words),
        Section("ways", line(words("generation.ways")), ways),
    ]
    if generation.first is None:
        shorter = min(len(generation.tokens_a), len(generation.tokens_b))
        phrase = words.many("generation.same", shorter)
        sections.append(Section("token", (), (Paragraph(line(strong(words.sentence(phrase)))),)))
        return Document(tuple(sections))
    title = line(words("generation.first", number=generation.first + 1))
    blocks = (
        Fact(
            "A",
            (line(_candidate("A", generation.candidate_a, generation.margin_a, generation.exact_a, words)),),
        ),
        Fact(
            "B",
            (line(_candidate("B", generation.candidate_b, generation.margin_b, generation.exact_b, words)),),
        ),
        Fact(words("label"), (line(strong(words(f"label.{generation.label or 'none'}"))),)),
    )
    sections.append(Section("token", title, blocks))
    compared = (
        ()
        if generation.result is None
        else of_result(replace(generation.result, call=""), lang=words.lang).sections
    )
    return Document((*sections, *compared))


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


def _candidate(run: str, token: str | None, margin: float | None, exact: float | None, words: Words) -> str:
    shown = "?" if margin is None else short(margin)
    text = words("generation.candidate", run=run, token=repr(token), margin=shown)
    return text if exact is None else text + words("generation.exact", exact=short(exact))
