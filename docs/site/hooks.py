"""What the documentation site makes of the program itself: a page for each verdict and mechanism, the gallery, the API.

Every output is that of a comparison made while the site is built, of a case of the corpus of verdicts (tests/corpus), whose
truth is proved in plain torch, or of a question where no case shows it. A verdict that no case shows any more fails the build; of a mechanism that none shows on this
machine the page says so.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.architectures import ARCHITECTURES  # noqa: E402
from tests.corpus import CASES, Case  # noqa: E402
from tests.questions.words import word_tokenizer  # noqa: E402

import forkpoint as fp  # noqa: E402
from forkpoint.report.catalogue.english import PHRASES  # noqa: E402

log = logging.getLogger("mkdocs.hooks.forkpoint")
TRIED = 25
"""Cases that are tried for one page: which kernel rounds how depends on the machine."""
STATUS = dict.fromkeys(("identical", "rounding"), 0) | {"undetermined": 3}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    gallery: list[str] = []
    for group, slugs in (
        ("verdicts", [kind.value for kind in fp.VerdictKind]),
        ("mechanisms", [key.partition(".")[2] for key in PHRASES if key.startswith("mechanism.")]),
    ):
        rows: list[str] = []
        for slug in slugs:
            shown = _shown(group, slug)
            text = _page(group, slug, shown)
            files.append(File.generated(config, f"{group}/{slug}.md", content=text))
            rows.append(f"| [{slug}]({slug}.md) | {_meaning(group, slug)} |")
            if shown is None:
                continue
            made, result = shown
            page = f"{group}-{slug}.html"
            log.info("%s: %s", page, made)
            files.append(File.generated(config, f"gallery/{page}", content=_html(result)))
            gallery.append(f"| [{slug}]({page}) | `{made}` | {_meaning(group, slug)} |")
        table = "\n".join([f"# {group.capitalize()}", "", "| slug | what it means |", "| --- | --- |", *rows])
        files.append(File.generated(config, f"{group}/index.md", content=table + "\n"))
    head = [
        "# Gallery",
        "",
        "Reports of comparisons made when this site was built, as `--html` writes them.",
        "",
    ]
    table = "\n".join(
        [
            *head,
            "| report | case of the corpus, or question | what it means |",
            "| --- | --- | --- |",
            *gallery,
        ]
    )
    files.append(File.generated(config, "gallery/index.md", content=table + "\n"))
    files.append(File.generated(config, "api.md", content=_api()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links out of docs/ lead to the repository's files, which the site has not: their names stay."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def _meaning(group: str, slug: str) -> str:
    return PHRASES[f"{'meaning' if group == 'verdicts' else 'mechanism'}.{slug}"]


def _shown(group: str, slug: str) -> tuple[str, fp.Result] | None:
    """The first case of which the program says that, or else a question, and what it says."""
    fitting = [case for case in CASES.values() if not case.pending and _may_say(case, group, slug)]
    for case in sorted(fitting, key=_answers)[:TRIED]:
        a, b, how, patches = case.build()
        with patches:
            result = fp.compare(a, b, **how)
        if _says(result, group) == slug:
            return case.id, result.without_runs()
    if (group, slug) == ("mechanisms", "quantization"):
        result = fp.quantize(ARCHITECTURES["llama"].build(), word_tokenizer(), "w5 w6 w7", "int8-dynamic")
        if _says(result, group) == slug:
            return result.call, result.without_runs()
    if group == "verdicts":
        raise PluginError(f"no case of the corpus shows {slug}")
    return None


def _says(result: fp.Result, group: str) -> str | None:
    return result.verdict.kind.value if group == "verdicts" else result.verdict.mechanism


def _may_say(case: Case, group: str, slug: str) -> bool:
    if group == "verdicts":
        return any(expect.kind == slug for expect in case.expected)
    return any(slug in set(expect.mechanism) for expect in case.expected)


def _answers(case: Case) -> int:
    """How many answers are right for a case: of few, one is the likelier."""
    return sum(len(set(expect.mechanism)) for expect in case.expected)


def _page(group: str, slug: str, shown: tuple[str, fp.Result] | None) -> str:
    parts = [f"# {slug}", "", f"{_meaning(group, slug).capitalize()}.", ""]
    if group == "verdicts":
        parts += [f"Exit status {STATUS.get(slug, 1)}.", ""]
    advice = PHRASES.get(f"advice.{slug}" if group == "mechanisms" else f"advice.kind.{slug}")
    if advice:
        parts += ["## What to do", "", advice, ""]
    if shown is None:
        return "\n".join([*parts, "No case of the corpus shows it on the machine that built this site.", ""])
    made, result = shown
    of_corpus = f"Case `{made}` of the corpus." if made in CASES else f"`{made}`, of a small Llama."
    parts += ["## An example", "", of_corpus, ""]
    parts += [
        "```text",
        result.to_text(width=90),
        "```",
        "",
        f"[The same as a page](../gallery/{group}-{slug}.html)",
        "",
    ]
    return "\n".join(parts)


def _html(result: fp.Result) -> str:
    from forkpoint.report.page import to_html

    return to_html(result)


def _api() -> str:
    """Every public name, from its docstring."""
    names = [name for name in fp.__all__ if not name.startswith("_") and name != "testing"]
    blocks = [f"::: forkpoint.{name}" for name in names] + ["::: forkpoint.testing"]
    return "# API\n\n" + "\n\n".join(blocks) + "\n"
