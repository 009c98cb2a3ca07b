"""`forkpoint engines`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from forkpoint.cli import options
from forkpoint.cli.loading import load, say_first
from forkpoint.cli.outcome import answered
from forkpoint.cli.spoken import TYPED, command_line
from forkpoint.errors import InputError
from forkpoint.support.files import check_writable
from forkpoint.support.progress import watching

_ENGINE = "Engine"
Against = Annotated[
    str,
    typer.Option("--against", metavar="vllm|FOLDER", help="vllm, or what an engine recorded.", rich_help_panel=_ENGINE),
]  # fmt: skip
Python = Annotated[
    str | None,
    typer.Option(
        "--python", metavar="PATH", help="The Python of an environment that has vLLM; by default this one.",
        rich_help_panel=_ENGINE, show_default=False,
    ),
]  # fmt: skip
EngineArgument = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg", metavar="NAME=VALUE", help="An argument of vllm.LLM; may be given again.",
        rich_help_panel=_ENGINE, show_default=False,
    ),
]  # fmt: skip
Keep = Annotated[
    Path | None,
    typer.Option("--keep", metavar="DIR", help="Keep what the engine recorded there.", rich_help_panel=_ENGINE, show_default=False),
]  # fmt: skip
Temperature = Annotated[
    float | None, typer.Option(min=0.0, help="The engine's; by default it is greedy.", rich_help_panel=_ENGINE, show_default=False)
]  # fmt: skip
TopP = Annotated[
    float | None, typer.Option("--top-p", min=0.0, max=1.0, help="The engine's.", rich_help_panel=_ENGINE, show_default=False)
]  # fmt: skip
TopK = Annotated[
    int | None, typer.Option("--top-k", min=0, help="The engine's.", rich_help_panel=_ENGINE, show_default=False)
]  # fmt: skip
NewTokens = Annotated[
    int, typer.Option("--new-tokens", min=1, help="Tokens that the engine generates.", rich_help_panel=_ENGINE)
]  # fmt: skip
Rename = Annotated[
    list[str] | None,
    typer.Option(
        help="THEIRS=OURS: modules of the engine whose paths begin or end so are the reference's; may be given again.",
        rich_help_panel=_ENGINE, show_default=False,
    ),
]  # fmt: skip


def engines(
    model: options.Model,
    against: Against = "vllm",
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    chat_template: options.ChatTemplate = False,
    new_tokens: NewTokens = 4,
    python: Python = None,
    engine_arg: EngineArgument = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    keep: Keep = None,
    rename: Rename = None,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    details: options.Details = False,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    lang: options.Language = options.LANGUAGE,
) -> None:
    """Hold an engine against transformers, op by op on the same inputs: were both asked the same, where do they part, what does it cost?

    Exit status: 0 if nothing but rounding is seen, 1 if there is more, 3 if it can't be told.
    """
    from forkpoint.engines.launch import interpreter, parse_arguments

    arguments = parse_arguments(engine_arg or ())
    texts = options.read_prompts(prompt, prompts) if prompt or prompts or against == "vllm" else []
    renamed = [text.partition("=") for text in rename or ()]
    for theirs, equals, _ in renamed:
        if not equals:
            raise InputError(f"--rename {theirs}", "THEIRS=OURS")
    check_writable(json, html)
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise InputError(f"--keep {keep}, where there is something already", "a folder that is new or empty")
    if against != "vllm" and not Path(against).is_dir():
        raise InputError(f"--against {against}", "vllm, or a folder that an engine was recorded to")
    engine = interpreter(python) if against == "vllm" else ""
    loaded = load(model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    say_first(loaded, lang, aside=quiet or json == options.STDOUT)
    ids = _token_ids(loaded, texts, chat_template=chat_template)
    sampling = {
        k: v for k, v in (("temperature", temperature), ("top_p", top_p), ("top_k", top_k)) if v is not None
    }
    with ExitStack() as stack, watching() as progress:
        folder = Path(against)
        if against == "vllm":
            from forkpoint.engines.launch import run_vllm

            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forkpoint-engine-")))
            progress.begin("loading vLLM and recording it")
            where = _on_disk(model, loaded, work, revision)
            folder = keep or work / "recorded"
            settings = {"dtype": str(loaded.model.dtype).removeprefix("torch."), **where, **arguments}
            if trust_remote_code:
                settings["trust_remote_code"] = True
            run_vllm(
                engine,
                settings.pop("model"),
                ids,
                folder,
                max_tokens=new_tokens,
                sampling=sampling,
                engine=settings,
            )
        import forkpoint as fp

        comparison = fp.compare_engine(
            loaded.model, folder, prompts=ids or None, rename={theirs: ours for theirs, _, ours in renamed}, progress=progress
        )  # fmt: skip
    comparison = replace(comparison, call=command_line(TYPED.get()))
    answered(comparison, json=json, html=html, quiet=quiet, lang=lang, details=details)


def _token_ids(loaded: Any, texts: list[str], *, chat_template: bool) -> list[list[int]]:
    rows: list[list[int]] = []
    for text in texts:
        if chat_template:
            encoded = loaded.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True
            )
            rows.append(list(encoded["input_ids"] if hasattr(encoded, "keys") else encoded))
        else:
            rows.append(list(loaded.tokenizer(text)["input_ids"]))
    return rows


def _on_disk(name: str, loaded: Any, work: Path, revision: str | None) -> dict[str, Any]:
    """Where vLLM finds the model: where it is, or a copy in safetensors of what only transformers reads."""
    path = Path(name)
    if name == "demo" or path.suffix == ".gguf":
        from forkpoint.models.loading import quiet

        with quiet():
            loaded.model.save_pretrained(work / "model")
        return {"model": str(work / "model")}
    return {"model": name, **({"revision": revision} if revision is not None else {})}
