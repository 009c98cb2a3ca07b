"""An embedding pipeline by name: sentence-transformers' own where that is installed, else an encoder to be pooled."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forkpoint.errors import ModelError
from forkpoint.models.loading import DTYPES, LoadedModel, load, parse_device, quiet
from forkpoint.support.progress import status

_MODULES = "modules.json"
"""What sentence-transformers writes into a folder: the modules that follow each other."""
_PACKAGE = "sentence_transformers"
_MEANS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""How its configuration of a pooling says what is done."""


@dataclass(frozen=True)
class Embedding:
    """A pipeline, or an encoder and how it is pooled.

    Attributes:
        model: what is asked for texts.
        tokenizer: an encoder's; None for a pipeline, which has its own.
        pooling: an encoder's.
        notes: what a reader of the results should know.
    """

    model: Any
    tokenizer: Any
    pooling: str
    notes: list[str] = field(default_factory=list[str])


def load_embedding(
    name: str,
    *,
    pooling: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    attn: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Embedding:
    """Load what makes vectors of texts.

    A folder (or a model of the hub) that sentence-transformers has written is loaded by it if it is installed, unless a
    pooling is asked for. Otherwise the encoder is loaded by transformers, to be pooled as is asked, as the folder says, or
    by the mean.

    Args:
        name: a local folder or a hub id.
        pooling: `mean` or `cls`.
        dtype, device, attn, revision, trust_remote_code: as in `fp.load`.

    Raises:
        ModelError: it can't be found or loaded.
    """
    written = _modules_of(name, revision)
    if written is not None and pooling is None and importlib.util.find_spec(_PACKAGE) is not None:
        if not trust_remote_code:
            _check_modules(name, written)
        options = {"dtype": DTYPES.get(str(dtype), dtype), "attn_implementation": attn}
        model = _by_sentence_transformers(
            name, {key: value for key, value in options.items() if value is not None},
            device=str(parse_device(device)), revision=revision, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        return Embedding(model, None, "")
    loaded: LoadedModel = load(
        name, dtype=dtype, device=device, attn=attn, revision=revision, trust_remote_code=trust_remote_code
    )
    own_pooling = None if written is None else _pooling_of(name, written)
    chosen = pooling or own_pooling or "mean"
    notes = list(loaded.notes)
    if written is not None and pooling is None:
        notes.append(
            f"Without sentence-transformers: the last hidden state is pooled ({chosen}), and modules behind it are left out."
        )
    return Embedding(loaded.model, loaded.tokenizer, chosen, notes)


def _by_sentence_transformers(name: str, options: dict[str, Any], **arguments: Any) -> Any:
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

    try:
        with quiet(), status(f"loading {name}"):
            return SentenceTransformer(name, model_kwargs=options, **arguments).eval()
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"{name} can't be loaded by sentence-transformers: {reason}") from error


def _modules_of(name: str, revision: str | None) -> list[dict[str, Any]] | None:
    """The modules that sentence-transformers has noted for a model; None where it has not written it.

    Raises:
        ModelError: they can't be read.
    """
    path = Path(name) / _MODULES
    if not Path(name).is_dir():
        file = _from_hub(name, revision)
        if file is None:
            return None
        path = file
    elif not path.is_file():
        return None
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [{"type": str(one["type"]), "path": str(one["path"])} for one in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} can't be read: {error!r}", "a list of modules") from error


def _from_hub(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download

    if name == "demo" or name.count("/") > 1 or Path(name).is_file():
        return None
    try:
        return Path(hf_hub_download(name, _MODULES, revision=revision))
    except Exception:  # noqa: BLE001 - what is wrong with the name or the network shows when the model is loaded
        return None


def _check_modules(name: str, modules: list[dict[str, Any]]) -> None:
    """A folder may not choose which code is imported; its user may (`--trust-remote-code`).

    Raises:
        ModelError: it names a class that is not of sentence-transformers.
    """
    for module in modules:
        if not module["type"].startswith(f"{_PACKAGE}."):
            raise ModelError(
                f"{name} asks for the class {module['type']}",
                "classes of sentence-transformers",
                "--trust-remote-code, if you trust whoever wrote it",
            )


def _pooling_of(name: str, modules: list[dict[str, Any]]) -> str | None:
    """What a folder's pooling module does, of what is known here."""
    for module in modules:
        file = Path(name) / Path(module["path"]).name / "config.json"
        if module["type"].endswith(".Pooling") and file.is_file():
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                return None
            modes = [
                key for key, value in config.items() if key.startswith("pooling_mode_") and value is True
            ]
            return _MEANS.get(modes[0]) if len(modes) == 1 else None
    return None
