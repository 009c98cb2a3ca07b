"""What the commands that ask a question share: their options, loading, asking for each prompt, and the answer.

    @question
    def repeat() -> Ask:
        return lambda fp, asked: fp.repeat(asked.model, asked.tokenizer, asked.text, **asked.options)

That is a whole command, with all the options of `_shared`.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any

import typer

from forkpoint.cli import options, scene
from forkpoint.cli.configured import Config
from forkpoint.cli.loading import load, say, say_first
from forkpoint.cli.outcome import document, finish, let_go, show, worded, worst_if_not_identical
from forkpoint.cli.spoken import TYPED, command_line
from forkpoint.support.files import check_writable, write_json
from forkpoint.support.progress import status, watching

if TYPE_CHECKING:
    from forkpoint.result import Result


@dataclass(frozen=True)
class Request:
    """A question about one prompt.

    Attributes:
        name: MODEL, as it was given.
        model, tokenizer: what it names.
        text: the prompt.
        others: the other prompts that were given.
        options: `position_ids`, `chat_template`, `probes`, `sources`, `backward`, `max_memory` and `progress` of every question.
        load: loads another model as MODEL was, by its name; each once.
        say: prints a sentence before anything else is known; each once.
    """

    name: str
    model: Any
    tokenizer: Any
    text: str
    others: tuple[str, ...]
    options: dict[str, Any]
    load: Callable[[str], Any]
    say: Callable[[str], None] = lambda _: None


Ask = Callable[[Any, Request], "Result"]
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
    invariant: options.Invariant = False,
    details: options.Details = False,
    ops: options.Ops = False,
    op: options.Op = None,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
    scene_folder: scene.SceneFolder = None,
    all_sources: options.AllSources = False,
    backward: options.Backward = False,
    no_probes: options.NoProbes = False,
    config: Config = None,
) -> None:
    """The options of every question; see `question`."""


def question(own: Callable[..., Ask]) -> Callable[..., None]:
    """A command out of a function that takes its own options alone and says what to ask of the library.

    The command has the options of every question as well. The function is called before anything is loaded, so that it
    may refuse what can't be used.
    """
    return _command(own, _shared, _answer)


def _command(
    own: Callable[..., Ask], shared: Callable[..., None], answer: Callable[..., None]
) -> Callable[..., None]:
    """A command with the options of two functions, which answers what the first of them asks."""
    theirs, mine = (inspect.signature(one).parameters for one in (shared, own))
    first = [theirs[name] for name in ("model", "prompt", "prompts")]
    arguments = [one for one in mine.values() if one.default is inspect.Parameter.empty]
    choices = [one for one in mine.values() if one.default is not inspect.Parameter.empty]
    rest = [one for one in theirs.values() if one not in first]
    every = [first[0], *arguments, *first[1:], *choices, *rest]

    @wraps(own)
    def command(**chosen: Any) -> None:
        chosen.pop("config", None)  # its callback has read it
        ask = own(**{name: chosen.pop(name) for name in mine})
        answer(ask, **chosen)

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
    invariant: bool,
    details: bool,
    ops: bool,
    op: str | None,
    json: Any,
    html: Any,
    quiet: bool,
    lang: str,
    scene_folder: Any,
    all_sources: bool,
    backward: bool,
    no_probes: bool,
    **loading: Any,
) -> None:
    asking = Asking(
        ask, model, options.read_prompts(prompt, prompts),
        {
            "position_ids": position_ids, "chat_template": chat_template, "probes": not no_probes,
            "sources": all_sources, "backward": backward, "max_memory": options.read_size(max_memory),
        },
        loading,
    )  # fmt: skip
    check_writable(json, html)
    scene.check(scene_folder)
    asking.load()
    aside = quiet or json == options.STDOUT
    say_first(asking.loaded, lang, aside=aside)
    answers = asking.answers(invariant=invariant, say=partial(say, lang=lang, aside=aside))
    notes = (*asking.loaded.notes, *((INVARIANT_NOTE,) if invariant else ()))
    finish(
        answers, notes=notes, details=details, ops=ops, op=op, json=json, html=html, quiet=quiet, lang=lang,
        probes=not no_probes,
        save=lambda result: _saved(result, scene_folder),
    )  # fmt: skip


INVARIANT_NOTE = "Both runs were made under fp.invariant."


@dataclass
class Asking:
    """A question about some prompts and a model that is loaded once, however often it is asked.

    Attributes:
        ask: puts the question.
        model: MODEL, as it was given.
        texts: the prompts.
        shared: the options of every question.
        loading: how models are loaded.
    """

    ask: Ask
    model: str
    texts: list[str]
    shared: dict[str, Any]
    loading: dict[str, Any]

    def load(self) -> None:
        """Loads the model."""
        self.loaded = load(self.model, **self.loading)
        self._again = cache(lambda name: load(name, **self.loading))

    def answers(
        self, *, invariant: bool, say: Callable[[str], None] = lambda _: None
    ) -> "list[tuple[str, Result]]":
        """Each prompt and what was found; the worst alone keeps its traces.

        Args:
            invariant: both runs of each question are made under `fp.invariant`.
            say: prints what a reader should know before the answers.
        """
        import forkpoint as fp

        results: list[tuple[str, Result]] = []
        say_once = cache(say)
        with watching() as progress, ExitStack() as stack:

            def again(name: str) -> Any:
                other = self._again(name)
                if invariant:
                    stack.enter_context(fp.invariant(other.model))
                return other

            if invariant:
                stack.enter_context(fp.invariant(self.loaded.model))
            for index, text in enumerate(self.texts):
                others = tuple(self.texts[index + 1 :] + self.texts[:index])
                settings = {**self.shared, "progress": progress}
                request = Request(
                    self.model, self.loaded.model, self.loaded.tokenizer, text, others, settings, cache(again),
                    say_once,
                )  # fmt: skip
                results.append((text, self.ask(fp, request)))
                let_go(results)
        return results


def _saved(result: "Result", folder: Any) -> tuple[str, ...]:
    with status("saving the scene"):
        return scene.save(result, folder)


def _fixing(
    model: options.Model,
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    position_ids: options.Positions = "mask",
    chat_template: options.ChatTemplate = False,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attn: options.Attention = None,
    trust_remote_code: options.TrustRemoteCode = False,
    max_memory: options.MaxMemory = None,
    details: options.Details = False,
    json: options.Json = None,
    lang: options.Language = options.LANGUAGE,
) -> None:
    """The options of every command of `forkpoint fix`; see `fixing`."""


def fixing(own: Callable[..., Ask]) -> Callable[..., None]:
    """The command of `forkpoint fix` for a question: asks it as it is, and again under `fp.invariant`."""
    return _command(own, _fixing, _fix)


def _fix(
    ask: Ask,
    *,
    model: str,
    prompt: list[str] | None,
    prompts: Any,
    position_ids: str,
    chat_template: bool,
    max_memory: str | None,
    details: bool,
    json: Any,
    lang: str,
    **loading: Any,
) -> None:
    shared: dict[str, Any] = {
        "position_ids": position_ids, "chat_template": chat_template, "max_memory": options.read_size(max_memory),
    }  # fmt: skip
    asking = Asking(ask, model, options.read_prompts(prompt, prompts), shared, loading)
    check_writable(json)
    asking.load()
    say_first(asking.loaded, lang, aside=json == options.STDOUT)
    notes = tuple(asking.loaded.notes)
    typed = command_line([word for word in TYPED.get() if word != "fix"])
    before = worded(asking.answers(invariant=False), notes, typed)
    show(before, details=details, lang=lang, json=json)
    again = f"{typed} --invariant" if typed else ""
    after = worded(asking.answers(invariant=True), (*notes, INVARIANT_NOTE), again)
    show(after, details=details, lang=lang, json=json)
    if json is not None:
        write_json(json, {"as_it_is": document(before), "invariant": document(after)})
    raise typer.Exit(worst_if_not_identical(after))
