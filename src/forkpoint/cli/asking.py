"""What the commands that ask a question share: their options, loading, asking for each prompt, and the answer.

    @question
    def repeat() -> Ask:
        return lambda fp, asked: fp.repeat(asked.model, asked.tokenizer, asked.text, **asked.options)

That is a whole command, with all the options of `_shared`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from forkpoint.cli import options, scene
from forkpoint.cli.loading import load, say_first
from forkpoint.cli.outcome import finish, let_go
from forkpoint.support.files import check_writable
from forkpoint.support.progress import status, watching

if TYPE_CHECKING:
    from forkpoint.result import Result


@dataclass(frozen=True)
class Asked:
    """A question about one prompt.

    Attributes:
        name: MODEL, as it was given.
        model, tokenizer: what it names.
        text: the prompt.
        others: the other prompts that were given.
        options: `position_ids`, `chat_template`, `probes`, `max_memory` and `progress` of every question.
        load: loads another model as MODEL was, by its name; each once.
    """

    name: str
    model: Any
    tokenizer: Any
    text: str
    others: tuple[str, ...]
    options: dict[str, Any]
    load: Callable[[str], Any]


Ask = Callable[[Any, Asked], "Result"]
"""Puts the question to the library, which is its first argument."""


def _shared(
    model: options.Model,
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    position_ids: options.Positions = "mask",
    chat_template: options.ChatTemplate = False,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attn: options.Attention = None,
    load_in_8bit: options.Int8 = False,
    trust_remote_code: options.TrustRemoteCode = False,
    max_memory: options.MaxMemory = None,
    details: options.Details = False,
    ops: options.Ops = False,
    op: options.Op = None,
    json: options.Json = None,
    html: options.Html = None,
    lang: options.Language = options.LANGUAGE,
    scene_folder: scene.SceneFolder = None,
    no_probes: options.NoProbes = False,
) -> None:
    """The options of every question; see `question`."""


def question(own: Callable[..., Ask]) -> Callable[..., None]:
    """A command out of a function that takes its own options alone and says what to ask of the library.

    The command has the options of every question as well. The function is called before anything is loaded, so that it
    may refuse what can't be used.
    """
    shared, mine = (inspect.signature(one).parameters for one in (_shared, own))
    first = [shared[name] for name in ("model", "prompt", "prompts")]
    arguments = [one for one in mine.values() if one.default is inspect.Parameter.empty]
    choices = [one for one in mine.values() if one.default is not inspect.Parameter.empty]
    rest = [one for one in shared.values() if one not in first]
    every = [first[0], *arguments, *first[1:], *choices, *rest]

    @wraps(own)
    def command(**given: Any) -> None:
        ask = own(**{name: given.pop(name) for name in mine})
        _answer(ask, **given)

    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([one.replace(kind=named) for one in every], return_annotation=None)
    command.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {one.name: one.annotation for one in every}
    return command


def _answer(
    ask: Ask,
    *,
    model: str,
    prompt: list[str] | None,
    prompts: Any,
    position_ids: str,
    chat_template: bool,
    max_memory: str | None,
    details: bool,
    ops: bool,
    op: str | None,
    json: Any,
    html: Any,
    lang: str,
    scene_folder: Any,
    no_probes: bool,
    **loading: Any,
) -> None:
    texts = options.read_prompts(prompt, prompts)
    shared: dict[str, Any] = {
        "position_ids": position_ids,
        "chat_template": chat_template,
        "probes": not no_probes,
        "max_memory": options.read_size(max_memory),
    }
    for file in (json, html):
        if file is not None:
            check_writable(file)
    scene.check(scene_folder)
    loaded = load(model, **loading)
    say_first(loaded, lang)
    again = cache(lambda name: load(name, **loading))

    import forkpoint as fp

    answers: list[tuple[str, Result]] = []
    with watching() as progress:
        for index, text in enumerate(texts):
            others = tuple(texts[index + 1 :] + texts[:index])
            given = {**shared, "progress": progress}
            asked = Asked(model, loaded.model, loaded.tokenizer, text, others, given, again)
            answers.append((text, ask(fp, asked)))
            let_go(answers)
    finish(
        answers, notes=tuple(loaded.notes), details=details, ops=ops, op=op, json=json, html=html, lang=lang, probes=not no_probes,
        save=lambda result: _saved(result, scene_folder),
    )  # fmt: skip


def _saved(result: "Result", folder: Any) -> tuple[str, ...]:
    with status("saving the scene"):
        return scene.save(result, folder)
