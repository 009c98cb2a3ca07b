"""A model as it is, or quantised."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from forkpoint.errors import InputError, ModelError
from forkpoint.models.loading import quiet
from forkpoint.questions.asking import Options, copied, one_of, two_models
from forkpoint.questions.choices import Quantization
from forkpoint.questions.prompts import device_of
from forkpoint.runs.modules import innermost
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from forkpoint.result import Result


@says_call
def quantize(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    against: Quantization = "int8",
    **options: Unpack[Options],
) -> Result:
    """Compare a model with itself, its linear layers quantised.

        fp.quantize(model, tokenizer, "I've got a lovely bunch of coconuts", against="nf4")

    Both runs are one forward call, `[prompts, longest]`. Run B's model is a copy.

    Args:
        model: a model of transformers that is not quantised.
        tokenizer: its tokenizer.
        prompts: one text or several.
        against: `int8` or `nf4` of bitsandbytes, `int8-dynamic` of PyTorch (on the CPU), `torchao-int8` (weights alone).
        options: see `Options`.

    Raises:
        ModelError: the library is not installed, or can't quantise the model.
        InputError: another word, a model that is quantised already, or gradients through `int8-dynamic`.
    """
    if against == "int8-dynamic" and options.get("backward", False):
        raise InputError(
            "gradients through int8-dynamic, which PyTorch does not differentiate", "another quantization"
        )
    other = quantized(model, against)
    return two_models(model, other, tokenizer, prompts, ("as it is", against), options)


def quantized(model: Any, kind: Quantization) -> Any:
    """A copy of a model, its linear layers quantised.

    Raises:
        ModelError: the library is not installed, or can't quantise the model.
        InputError: another word, or a model that is quantised already.
    """
    chosen = one_of("quantization", kind, get_args(Quantization))
    if is_quantized(model):
        raise InputError(f"a {type(model).__name__} that is quantised already", "a model that is not")
    make, library, hint = _WAYS[chosen]
    if importlib.util.find_spec(library) is None:
        raise ModelError(f"quantisation {chosen} without {library}", f"the package {library}", hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each library says of itself that it is about to move
            return make(model)
    except (InputError, ModelError):
        raise
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ModelError(
            f"quantisation {chosen} for a {type(model).__name__}: {reason}", "a model that it can quantise"
        ) from error


def is_quantized(model: Any) -> bool:
    """Whether a model says that its weights are quantised."""
    return getattr(getattr(model, "config", None), "quantization_config", None) is not None


def _bitsandbytes(**settings: Any) -> Callable[[Any], Any]:
    """Save the model and load it again: bitsandbytes quantises weights as they are loaded."""

    def make(model: Any) -> Any:
        from transformers import BitsAndBytesConfig

        plain = innermost(model)[1]
        with quiet(), tempfile.TemporaryDirectory(prefix="forkpoint-") as folder:
            _save(plain, folder)
            other = type(plain).from_pretrained(
                folder,
                quantization_config=BitsAndBytesConfig(**settings),
                device_map={"": device_of(plain)},
                dtype=plain.dtype,
                attn_implementation=plain.config._attn_implementation,
            )
        other.config.name_or_path = plain.config.name_or_path
        return other.eval()

    return make


def _save(model: Any, folder: str) -> None:
    """Save a model without leaving a mark: `save_pretrained` writes to its configuration."""
    before = model.config
    model.config = copy.deepcopy(before)
    try:
        model.save_pretrained(folder)
    finally:
        model.config = before


def _dynamic(model: Any) -> Any:
    from torch.ao.quantization import quantize_dynamic  # pyright: ignore[reportDeprecated]

    if device_of(innermost(model)[1]).type != "cpu":
        raise InputError("int8-dynamic for a model on a GPU", "a model on the CPU", "--device cpu")
    return quantize_dynamic(  # pyright: ignore[reportDeprecated]
        copied(model, "quantization"), {nn.Linear}, dtype=torch.qint8
    )


def _torchao(model: Any) -> Any:
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8WeightOnlyConfig,  # pyright: ignore[reportUnknownVariableType]
        quantize_,  # pyright: ignore[reportUnknownVariableType]
    )

    other = copied(model, "quantization")
    quantize_(other, Int8WeightOnlyConfig())
    return other


_INT8 = "pip install 'forkpoint[int8]'"
_WAYS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "int8": (_bitsandbytes(load_in_8bit=True), "bitsandbytes", _INT8),
    "nf4": (_bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "bitsandbytes", _INT8),
    "int8-dynamic": (_dynamic, "torch", ""),
    "torchao-int8": (_torchao, "torchao", "pip install torchao"),
}
"""For each kind: what makes the model, the library that it needs, and how to get it."""
