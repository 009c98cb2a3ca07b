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


def page(found: Generation, words: Words) -> str:
    """Both texts and the first token that differs, and then the page of the comparison."""
    about, ways, token, *_ = document(found, words).sections
    if found.result is None:
        said = words("generation.page", a=found.name_a, b=found.name_b)
        return plain_page(said, about, [token, ways], words)
    return page_of_result(replace(found.result, call=found.call), lang=words.lang, above=(token, ways))


def document(found: Generation, words: Words) -> Document:
    """What both ways made, the first token that differs, and the comparison up to there."""
    ways = tuple(
        Fact(words(f"run.{run}"), (line(words.phrase(name)), line(muted(_shown(text)))))
        for run, name, text in (("a", found.name_a, found.text_a), ("b", found.name_b, found.text_b))
    )
    model, prompt = (
        ("", "") if found.result is not None else (found.model, found.text)
    )  # its header says both
    sections = [
        identity.asked(found.call, model, prompt, found.prompt, words),
        Section("ways", line(words("generation.ways")), ways),
    ]
    if found.first is None:
        shorter = min(len(found.tokens_a), len(found.tokens_b))
        said = words.many("generation.same", shorter)
        sections.append(Section("token", (), (Paragraph(line(strong(words.sentence(said)))),)))
        return Document(tuple(sections))
    title = line(words("generation.first", number=found.first + 1))
    blocks = (
        Fact("A", (line(_candidate("A", found.candidate_a, found.margin_a, found.exact_a, words)),)),
        Fact("B", (line(_candidate("B", found.candidate_b, found.margin_b, found.exact_b, words)),)),
        Fact(words("label"), (line(strong(words(f"label.{found.label or 'none'}"))),)),
    )
    sections.append(Section("token", title, blocks))
    compared = (
        () if found.result is None else of_result(replace(found.result, call=""), lang=words.lang).sections
    )
    return Document((*sections, *compared))


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


def _candidate(run: str, token: str | None, margin: float | None, exact: float | None, words: Words) -> str:
    shown = "?" if margin is None else short(margin)
    said = words("generation.candidate", run=run, token=repr(token), margin=shown)
    return said if exact is None else said + words("generation.exact", exact=short(exact))
