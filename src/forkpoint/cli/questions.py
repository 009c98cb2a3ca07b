"""The commands that ask one question of a model, each the same as the function of that name in Python."""

from inspect import unwrap
from typing import Annotated, Any

import typer

from forkpoint.cli import options
from forkpoint.cli.asking import Ask, Request, fixing, question
from forkpoint.questions.choices import Backend, CacheKind, Quantization

_PROMPT, _RUN = "Prompt", "Run"


def _against(text: str) -> Any:
    return typer.Option("--against", metavar="NAME", help=text, rich_help_panel=_RUN, show_default=False)


@question
def padding(
    pad_to: options.PadTo = None,
    side: options.PaddingSide = "right",
) -> Ask:
    """Compare a prompt as it is with the same prompt padded."""
    return lambda fp, request: fp.padding(
        request.model, request.tokenizer, [request.text], pad_to, side, **request.options
    )


@question
def batch(
    size: Annotated[
        int, typer.Option(min=2, help="Rows of the batch, the prompt's among them.", rich_help_panel=_PROMPT)
    ] = 8,
    same_length: Annotated[
        bool,
        typer.Option("--same-length", help="Make the others as long as the prompt.", rich_help_panel=_PROMPT),
    ] = False,
    side: options.PaddingSide = "right",
) -> Ask:
    """Compare a prompt by itself with the same prompt in a batch with others."""
    return lambda fp, request: fp.batch(
        request.model, request.tokenizer, request.text, size, others=request.others, same_length=same_length, side=side,
        **request.options,
    )  # fmt: skip


@question
def cache(
    split: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of the first call; by default three quarters of them.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None,
    chunk: Annotated[
        int,
        typer.Option(min=1, help="Tokens of each call after it; 1 decodes.", rich_help_panel=_RUN),
    ] = 1,
    kind: Annotated[
        CacheKind, typer.Option("--cache", help="How the cache is kept.", rich_help_panel=_RUN)
    ] = "dynamic",
) -> Ask:
    """Compare one forward pass with the same tokens step by step, from a cache."""
    return lambda fp, request: fp.cache(
        request.model, request.tokenizer, request.text, split, chunk=chunk, kind=kind, **request.options
    )


@question
def attention(
    against: Annotated[
        str | None,
        _against(
            "Another implementation: eager, sdpa, sdpa:math, sdpa:efficient, sdpa:flash, flex_attention, …; by default "
            "eager, or sdpa where the model is eager."
        ),
    ] = None,
) -> Ask:
    """Compare the model's attention implementation with another one."""
    return lambda fp, request: fp.attention(
        request.model, request.tokenizer, request.text, against, **request.options
    )


@question
def dtype(
    against: Annotated[
        str | None,
        _against(
            "Another dtype: float32, bfloat16, float16, float64; by default bfloat16, or float32 where the model is "
            "narrower."
        ),
    ] = None,
) -> Ask:
    """Compare a model with itself in another dtype."""
    return lambda fp, request: fp.dtype(
        request.model, request.tokenizer, request.text, against, **request.options
    )


@question
def autocast(
    against: Annotated[
        str, typer.Option("--against", metavar="NAME", help="bfloat16 or float16.", rich_help_panel=_RUN)
    ] = "bfloat16",
) -> Ask:
    """Compare a model with itself under torch.autocast."""
    return lambda fp, request: fp.autocast(
        request.model, request.tokenizer, request.text, against, **request.options
    )


@question
def device(
    against: Annotated[
        str | None,
        _against(
            "Another device: cpu, cuda, cuda:1, mps; by default cuda, or cpu where the model is not on it."
        ),
    ] = None,
) -> Ask:
    """Compare a model on one device with itself on another."""
    return lambda fp, request: fp.device(
        request.model, request.tokenizer, request.text, against, **request.options
    )


@question
def quantize(
    against: Annotated[
        Quantization,
        typer.Option(
            "--against",
            help="int8 and nf4 of bitsandbytes, int8-dynamic of PyTorch, torchao-int8.",
            rich_help_panel=_RUN,
        ),
    ] = "int8",
) -> Ask:
    """Compare a model with itself, its linear layers quantised."""
    return lambda fp, request: fp.quantize(
        request.model, request.tokenizer, request.text, against, **request.options
    )


@question
def compiled(
    backend: Annotated[
        Backend, typer.Option(help="What the captured graph is handed to.", rich_help_panel=_RUN)
    ] = "inductor",
) -> Ask:
    """Compare a model with itself, its layers compiled."""
    return lambda fp, request: fp.compiled(
        request.model, request.tokenizer, request.text, backend, **request.options
    )


@question
def packed() -> Ask:
    """Compare a prompt by itself with the same prompt packed into one row with others."""
    return lambda fp, request: fp.packed(
        request.model, request.tokenizer, [request.text, *request.others], **request.options
    )


@question
def repeat() -> Ask:
    """Compare a run with itself, made again."""
    return lambda fp, request: fp.repeat(request.model, request.tokenizer, request.text, **request.options)


@question
def models(
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="The second model, named like MODEL.", show_default=False)
    ],
) -> Ask:
    """Compare two checkpoints: another revision, a fine-tuned child, a merge."""

    def ask(fp: Any, request: Request) -> Any:
        from forkpoint.questions.checkpoints import unlike

        second = request.load(other)
        for note in unlike(
            request.model, request.tokenizer, second.model, second.tokenizer, request.text,
            {"chat_template": request.options["chat_template"]},
        ):  # fmt: skip
            request.say(note)
        return fp.checkpoints(
            request.model, request.tokenizer, second.model, second.tokenizer, request.text, names=(request.name, other),
            **request.options,
        )  # fmt: skip

    return ask


COMMANDS = {
    "padding": (padding, "forkpoint padding demo -p 'Hello there' --pad-to 50"),
    "batch": (batch, "forkpoint batch demo -p 'Hello there' --size 4"),
    "cache": (cache, "forkpoint cache demo -p 'Hello there, how are you?' --split 3"),
    "attention": (attention, "forkpoint attention demo -p 'Hello there' --against sdpa:math"),
    "dtype": (dtype, "forkpoint dtype demo -p 'Hello there' --against float16"),
    "autocast": (autocast, "forkpoint autocast demo -p 'Hello there'"),
    "device": (device, "forkpoint device demo -p 'Hello there' --against cuda"),
    "quantize": (quantize, "forkpoint quantize demo -p 'Hello there' --against int8-dynamic"),
    "compile": (compiled, "forkpoint compile demo -p 'Hello there' --backend aot_eager"),
    "packed": (packed, "forkpoint packed demo -p 'Hello there' -p 'How are you?'"),
    "repeat": (repeat, "forkpoint repeat demo -p 'Hello there'"),
    "models": (models, "forkpoint models demo demo -p 'Hello there'"),
}
"""By name: the command, and an example of it."""

FIXES = {
    name: (
        fixing(unwrap(COMMANDS[name][0])),
        f"forkpoint fix {COMMANDS[name][1].removeprefix('forkpoint ')}",
    )
    for name in ("padding", "batch", "cache", "packed", "repeat")
}
"""By name: what asks a question of layouts as it is and under `fp.invariant`, and an example of it."""
