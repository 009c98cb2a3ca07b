"""What the report says, in English and in Chinese, looked up by key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from forkpoint.errors import InputError
from forkpoint.report.catalogue import chinese, english
from forkpoint.report.numbers import count

LANGUAGES = ("en", "zh")
_PHRASES = {"en": english.PHRASES, "zh": chinese.PHRASES}


@dataclass(frozen=True)
class Words:
    """The phrases of one language.

    >>> Words("en")("loss.gap", gap="0.5")
    'gap 0.5'
    >>> Words("en").many("tokens", 1), Words("en").many("tokens", 1671)
    ('1 token', '1,671 tokens')
    """

    lang: str = "en"

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            raise InputError(f"language {self.lang!r}", f"one of {', '.join(LANGUAGES)}")

    def __call__(self, key: str, **values: object) -> str:
        """The phrase, with its placeholders filled."""
        return _PHRASES[self.lang][key].format(**values)

    def many(self, key: str, number: int, **values: object) -> str:
        """The phrase in singular or plural, parted by `|`; `{n}` is the number."""
        one, _, other = _PHRASES[self.lang][key].partition("|")
        form = one if number == 1 or not other else other
        return form.format(n=count(number), **values)

    def find(self, key: str) -> str | None:
        """A phrase without placeholders, or None if there is none: slugs that are not known yet."""
        return _PHRASES[self.lang].get(key)

    def name(self, group: str, slug: str) -> str:
        """The word for a slug; the slug itself if there is no word."""
        return self.find(f"{group}.{slug}") or slug

    def phrase(self, text: str) -> str:
        """What another part of forkpoint wrote in English, in this language if it is known.

        >>> Words("zh").phrase("not written yet")
        '尚未写入'
        """
        if self.lang == "en":
            return text
        whole = _translated(text)
        if whole is not None:
            return whole
        return self("semicolon").join(_sentence_wise(part) or part for part in text.split("; "))

    def help(self, paragraph: str) -> str:
        """A paragraph of a command's help; an example stays as it is typed.

        >>> Words("zh").help("Example: forkpoint report result.json")
        '例：forkpoint report result.json'
        """
        if self.lang == "en":
            return paragraph
        head, _, command = paragraph.partition("Example: ")
        if command and not head:
            return chinese.EXAMPLE + command
        return chinese.HELP.get(paragraph, paragraph)

    def error(self, part: str) -> str | None:
        """One of the three parts of an error; None where it is not known. Names, numbers and commands are in every language.

        >>> Words("zh").error("no file or folder ./model"), Words("zh").error("--device cpu")
        ('没有文件或文件夹 ./model', '--device cpu')
        """
        if self.lang == "en":
            return part
        for pattern, translation in _errors():
            match = pattern.fullmatch(part)
            if match:
                return translation.format(
                    **{name: self.error(value) or value for name, value in match.groupdict().items()}
                )
        return None if _ENGLISH.search(part) else part

    def message(self, error: str) -> str:
        """What the text of an error says; as it stands where a part of it is not known.

        >>> Words("zh").message("a prompt of 1 token; expected 2 or more, to be given in steps")
        '只有 1 个词元的提示词；应为 2 个或更多，以便逐步给出'
        """
        parts = _PARTS.fullmatch(error)
        return (self.joined(*(part or "" for part in parts.groups())) if parts else None) or error

    def joined(self, given: str, expected: str, hint: str) -> str | None:
        """The parts of an error in one line; None where one of them is not known."""
        text, wanted, advice = map(self.error, (given, expected, hint))
        if text is None or wanted is None or advice is None:
            return None
        text = self("error.expected", given=text, expected=wanted) if wanted else text
        return text + self("aside", text=advice) if advice else text

    def can_say(self, text: str) -> bool:
        """Whether `phrase` would leave nothing of the text in another language; an empty text says nothing."""
        if self.lang == "en":
            return bool(text)
        return _translated(text) is not None or all(_sentence_wise(part) for part in text.split("; "))

    def sentence(self, text: str) -> str:
        """The same as a sentence: it begins with a capital, unless with a name, and ends with a stop.

        >>> Words("en").sentence("the results differ"), Words("en").sentence("lm_head differs")
        ('The results differ.', 'lm_head differs.')
        """
        sentence = self.phrase(text)
        word = sentence.split(" ")[0]
        if word.isascii() and word.rstrip(",;:").isalpha():
            sentence = sentence[0].upper() + sentence[1:]
        if sentence and (sentence[-1].isalnum() or sentence[-1] in ")）%"):
            sentence += self("stop")
        return sentence


_PROSE = re.compile(r"\b[a-z]+ [a-z]+ [a-z]+\b|, its own place|, where ")
"""English in what was put into a sentence: half of one language and half of another is none."""
_PARTS = re.compile(r"(.+?)(?:; expected (.+?))?(?: \(([^()]*)\))?", re.DOTALL)
"""What was given, what was expected, what to do."""
_ENGLISH = re.compile(r"^(?!pip |mkdir |-)(?=.*[a-z]{2,} [a-z]{2,})", re.DOTALL)
"""Words in a row that are neither a command nor an option."""


def _translated(text: str) -> str | None:
    for pattern, translation in _sentences():
        match = pattern.fullmatch(text)
        if match:
            values = {name: _translated(value) or value for name, value in match.groupdict().items()}
            if not any(map(_PROSE.search, values.values())):
                return translation.format(**values)
    return None


def _sentence_wise(text: str) -> str | None:
    """The translation of a text, or of each of its sentences; None where one is not known."""
    whole = _translated(text)
    if whole is not None or ". " not in text:
        return whole
    *first, last = text.split(". ")
    parts = [_stopped(_translated(part)) or _translated(f"{part}.") for part in first] + [_translated(last)]
    return "".join(map(str, parts)) if all(parts) else None


def _stopped(sentence: str | None) -> str | None:
    return None if sentence is None else f"{sentence}{_PHRASES['zh']['stop']}"


@cache
def _errors() -> tuple[tuple[re.Pattern[str], str], ...]:
    """The template with the most text of its own first."""
    by_text = sorted(chinese.ERRORS.items(), key=lambda item: -len(re.sub(r"\{\w+\}", "", item[0])))
    return tuple((_pattern(source, reason=".+"), translation) for source, translation in by_text)


@cache
def _sentences() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((_pattern(source), translation) for source, translation in chinese.SENTENCES.items())


_NUMBER, _WORDS = r"[0-9,]+", r"(?:(?!; |\. ).)+?"


def _pattern(template: str, reason: str = _WORDS) -> re.Pattern[str]:
    """A pattern that reads back what `str.format` put in the template; `n` and `m` are numbers.

    What was put in holds neither a semicolon nor a stop with a space behind it: those part clauses and sentences.

    Args:
        reason: the pattern of a `reason`, which in an error is another library's and holds whatever that says.

    >>> _pattern("pad token {token} was set").fullmatch("pad token </s> was set").groupdict()
    {'token': '</s>'}
    """
    patterns = {"n": _NUMBER, "m": _NUMBER, "reason": reason}
    parts = [
        re.escape(part) if index % 2 == 0 else f"(?P<{part}>{patterns.get(part, _WORDS)})"
        for index, part in enumerate(re.split(r"\{(\w+)\}", template))
    ]
    return re.compile("".join(parts), re.DOTALL)
