"""`forkpoint padding`."""

from typing import Annotated

import typer

from forkpoint.cli import options, scene
from forkpoint.cli.loading import load
from forkpoint.cli.outcome import finish
from forkpoint.support.files import check_writable
from forkpoint.support.progress import status, watching


def padding(
    model: options.Model,
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    pad_to: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length in tokens to pad to; by default 50 or more.",
            rich_help_panel="Prompt",
            show_default=False,
        ),
    ] = None,
    side: options.PaddingSide = "right",
    position_ids: options.Positions = "mask",
    chat_template: options.ChatTemplate = False,
    revision: options.Revision = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    attn: options.Attention = None,
    load_in_8bit: options.Int8 = False,
    trust_remote_code: options.TrustRemoteCode = False,
    max_memory: options.MaxMemory = None,
    ops: options.Ops = False,
    json: options.Json = None,
    lang: options.Language = "en",
    scene_folder: scene.SceneFolder = None,
    no_probes: options.NoProbes = False,
) -> None:
    """Compare a prompt as it is with the same prompt padded."""
    texts = options.read_prompts(prompt, prompts)
    memory = options.read_size(max_memory)
    if json is not None:
        check_writable(json)
    scene.check(scene_folder)
    loaded = load(
        model, dtype=dtype, device=device, attn=attn, load_in_8bit=load_in_8bit, revision=revision,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    with watching() as progress:
        import forkpoint as fp

        result = fp.padding(
            loaded.model,
            loaded.tokenizer,
            texts,
            pad_to,
            side,
            position_ids=position_ids,
            probes=not no_probes,
            chat_template=chat_template,
            max_memory=memory,
            progress=progress,
        )
    with status("saving the scene"):
        notes = (*loaded.notes, *scene.save(result, scene_folder))
    finish(result, notes=notes, ops=ops, json=json, lang=lang, probes=not no_probes)
