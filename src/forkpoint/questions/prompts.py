"""From prompts to a run: token ids, padding, mask and position ids."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.errors import InputError
from forkpoint.questions.limits import check_length, check_memory, tried
from forkpoint.runs.layout import Coordinates, Layout
from forkpoint.runs.modules import embeddings_of, innermost
from forkpoint.runs.returned import cache_parameters
from forkpoint.runs.run import Run
from forkpoint.runs.state import kept_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from forkpoint.questions.choices import PositionIds, Side


def tokenise(
    model: Any, tokenizer: Any, prompts: str | Sequence[str], *, chat_template: bool = False
) -> list[list[int]]:
    """Token ids of each prompt, without padding.

    Raises:
        InputError: a model of images or sound, no tokenizer, no prompt, an empty one, one that is no text or has no tokens,
            ids that the model does not know, or a chat template that the tokenizer lacks.
    """
    check_reads(innermost(model)[1])
    if not callable(tokenizer) or isinstance(tokenizer, torch.nn.Module):
        raise InputError(f"a tokenizer of type {type(tokenizer).__name__}", "the model's tokenizer")
    several = hasattr(prompts, "__iter__") and not isinstance(prompts, str)
    texts: list[Any] = list(prompts) if several else [prompts]
    strange = [text for text in texts if not isinstance(text, str)]
    if strange:
        raise InputError(f"a prompt of type {type(strange[0]).__name__}", "a text, or a list of texts")
    if not texts:
        raise InputError("no prompt", "at least one")
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise InputError("a tokenizer without a chat template", "one that has it", "leave chat_template out")
    rows = [_token_ids(tokenizer, text, chat_template=chat_template) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not text or not row:
            raise InputError(f"an empty prompt {text!r}", "a prompt of at least one token")
    _check_known(model, max(map(max, rows)), "token id")
    return rows


_OTHER_INPUTS = ("pixel_values", "input_features", "input_values")
"""What a model may take, and need, besides token ids."""


def check_reads(model: Any) -> None:
    """Check that a model of transformers takes token ids, and needs nothing else.

    Raises:
        InputError: it takes images or sound, alone or with token ids, or is no model.
    """
    if not hasattr(model, "forward"):
        raise InputError(f"a model of type {type(model).__name__}", "a model of transformers")
    name = getattr(model, "main_input_name", "input_ids")
    takes = inspect.signature(model.forward).parameters
    hint = "compare runs of it by fp.compare"
    if name != "input_ids" and "input_ids" not in takes:
        raise InputError(
            f"a {type(model).__name__}, which takes {name} and no token ids", "a model that reads text", hint
        )
    if any(other in takes for other in _OTHER_INPUTS):
        config = getattr(model, "config", None)
        inputs = {"input_ids": torch.full((1, 1), 1, device=device_of(model))}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = inputs["input_ids"]
        tried(
            Run(model, inputs), f"a {type(model).__name__}, which can't run on token ids alone",
            "a model that reads text", hint,
        )  # fmt: skip


def pad_token_id(model: Any, tokenizer: Any) -> int:
    """The tokenizer's pad token, or its eos token if it has none.

    Raises:
        InputError: it has neither, or the model would take the token for a real one.
    """
    token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if token_id is None:
        raise InputError(
            "a tokenizer that has neither a pad nor an eos token", "a pad token", "set tokenizer.pad_token"
        )
    _check_known(model, int(token_id), "pad token id")
    counting = counting_padding_idx(innermost(model)[1])
    if counting not in {None, token_id}:
        raise InputError(
            f"pad token id {token_id}, for a model that counts positions from every token but {counting}",
            f"pad token id {counting}",
            "set tokenizer.pad_token",
        )
    return int(token_id)


@dataclass(frozen=True)
class Padded:
    """The inputs of one forward call, and what they don't tell of their layout.

    Attributes:
        inputs: keyword arguments of the model's forward.
        mask: int64 `[rows, length]`, 1 at every real token.
        layout: where the tokens are, if the inputs don't tell; else None.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    layout: Layout | None


def padded_run(
    model: Any,
    rows: Sequence[Sequence[int]],
    length: int,
    *,
    pad: int,
    side: Side = "right",
    position_ids: PositionIds = "mask",
    name: str | None = None,
) -> Run:
    """One forward call on rows of token ids padded to a common length."""
    made = padded(model, rows, length, pad=pad, side=side, position_ids=position_ids)
    return Run(model, made.inputs, layout=made.layout, name=name)


def padded(
    model: Any,
    rows: Sequence[Sequence[int]],
    length: int,
    *,
    pad: int,
    side: Side = "right",
    position_ids: PositionIds = "mask",
) -> Padded:
    """Rows of token ids padded to a common length, on the model's device.

    The inputs are `input_ids` and, where the model's forward takes them, `attention_mask` and with
    `position_ids="mask"` also `position_ids`, each int64 `[rows, length]`; for an encoder-decoder also
    `decoder_input_ids`, one start token a row.

    Raises:
        InputError: another side, or a length beyond what the model or the memory can take.
    """
    if side not in ("left", "right"):
        raise InputError(f"side {side!r}", "left or right")
    plain = innermost(model)[1]
    device = device_of(plain)
    check_memory(plain, device, len(rows), length)
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    takes = inspect.signature(plain.forward).parameters
    inputs = {"input_ids": ids}
    layout = None
    if "attention_mask" in takes:
        inputs["attention_mask"] = mask
    else:
        layout = Layout.from_mask(mask)  # FNet: the inputs don't tell where the padding is
    config = getattr(plain, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.full((len(rows), 1), _decoder_start(config))
    elif position_ids == "mask" and "position_ids" in takes:
        positions = _positions(plain, ids, mask)
        if positions is not None:
            inputs["position_ids"] = positions
    inputs = {key: tensor.to(device) for key, tensor in inputs.items()}
    check_length(model, inputs, layout, length)
    return Padded(inputs, mask, layout)


def alone_run(
    model: Any, rows: Sequence[Sequence[int]], *, position_ids: PositionIds = "mask", name: str | None = None
) -> Run:
    """Each row of token ids by itself: one forward call a row, `[1, tokens]`, without padding or a common cache."""
    made = [padded(model, [row], len(row), pad=0, position_ids=position_ids) for row in rows]
    if len(made) == 1:
        return Run(model, made[0].inputs, layout=made[0].layout, name=name)
    caches = cache_parameters(innermost(model)[1])
    calls = [{**dict.fromkeys(caches), **one.inputs} for one in made]  # named, so that none is handed on
    layout = Layout([_of_sample(sample, one) for sample, one in enumerate(made)])
    return Run(model, calls, layout=layout, name=name)


def _of_sample(sample: int, made: Padded) -> dict[str, Coordinates]:
    """The coordinates of the one sample that a call holds."""
    coordinates: dict[str, Coordinates] = {}
    for stream in ("input_ids", "decoder_input_ids"):
        if stream in made.inputs:
            columns = made.inputs[stream].shape[1]
            coordinates[stream] = Coordinates(torch.full((1, columns), sample), torch.arange(columns)[None])
    return coordinates


def together(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    *,
    position_ids: PositionIds = "mask",
    name: str | None = None,
) -> Run:
    """All rows in one forward call, `[rows, longest]`, padded on the right where they are not of one length."""
    longest = max(map(len, rows))
    pad = 0 if all(len(row) == longest for row in rows) else pad_token_id(model, tokenizer)
    return padded_run(model, rows, longest, pad=pad, position_ids=position_ids, name=name)


def _token_ids(tokenizer: Any, text: str, *, chat_template: bool) -> list[int]:
    if chat_template:
        message = [{"role": "user", "content": text}]
        return list(
            tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        )
    return list(tokenizer(text)["input_ids"])


def _check_known(model: Any, token_id: int, what: str) -> None:
    plain = innermost(model)[1]
    vocabulary = getattr(embeddings_of(plain), "num_embeddings", None)
    if vocabulary is not None and token_id >= vocabulary:
        raise InputError(
            f"{what} {token_id}, for a model with embeddings for {vocabulary} tokens",
            "the tokenizer that belongs to the model",
            "else model.resize_token_embeddings(len(tokenizer))",
        )


def _positions(model: Any, ids: Tensor, mask: Tensor) -> Tensor | None:
    """Position ids as the architecture makes them from the mask; None where it makes them by itself.

    A generating model makes them itself in `generate`, by the very method called here. Encoders that take
    position ids count from 0 like decoders, except RoBERTa's family, which derives them from the token ids
    (they begin after `padding_idx`): handing those counted from 0 would be a bug of ours.
    """
    if counting_padding_idx(model) is not None:
        return None
    prepare = getattr(model, "_prepare_position_ids_for_generation", None)
    if prepare is None:
        return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    with kept_state(model, weights=False):  # vision models note rope_deltas on the way
        return prepare(ids, {"attention_mask": mask})


def counting_padding_idx(model: Any) -> int | None:
    """`padding_idx` of the module that makes positions from token ids; None where no module does."""
    name = "create_position_ids_from_input_ids"
    for module in model.modules():
        counts = hasattr(module, name) or hasattr(sys.modules.get(type(module).__module__), name)
        if counts and isinstance(padding_idx := getattr(module, "padding_idx", None), int):
            return padding_idx
    return None


def _decoder_start(config: Any) -> int:
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        if (token_id := getattr(config, name, None)) is not None:
            return int(token_id)
    return 0


def device_of(model: Any) -> torch.device:
    """Where a model takes its inputs."""
    embeddings = embeddings_of(model)
    weight = next((model if embeddings is None else embeddings).parameters(), None)
    return torch.device("cpu") if weight is None else weight.device
