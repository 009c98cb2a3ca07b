"""Layouts: which token coordinate sits at each (row, column) of every forward call.

A token is the same token wherever a layout puts it: unpadded, padded on either side, batched,
packed, or fed step by step through a cache. A `Layout` states where the tokens are; everything
else in forkpoint compares values at equal coordinates (stream, sample, position).

>>> import torch
>>> layout = Layout.from_mask(torch.tensor([[0, 0, 1, 1, 1]]))
>>> layout.calls[0]["main"].position.tolist()
[[-1, -1, 0, 1, 2]]
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import InputError, LayoutError
from forkpoint.runs.masks import CUMULATIVE_LENGTHS, find_mask, states_layout
from forkpoint.runs.returned import CACHES, cached_tokens
from forkpoint.support.restoring import by_itself

PADDING = -1
"""Sample and position of a column that holds no token."""

MAIN, DECODER, IMAGE = "main", "decoder", "image"
"""Streams of coordinates: what goes into the model, into the decoder of an encoder-decoder, and the image beside a text."""
STREAMS = (MAIN, DECODER, IMAGE)

_TOKENS = ("input_ids", "inputs_embeds", "input_values", "input_features", "pixel_values")
_DECODER_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds")
_IMAGES = "pixel_values"


@dataclass(frozen=True)
class Coordinates:
    """The token coordinate of every column of one input tensor.

    Attributes:
        sample: integer tensor, [rows, columns] (or [columns]); index of the sample, -1 for padding.
        position: integer tensor of the same shape; counts the sample's real tokens from 0, -1 for padding.
    """

    sample: Tensor
    position: Tensor

    def __post_init__(self) -> None:
        for name, value in (("sample", self.sample), ("position", self.position)):
            _check_tensor(value, name)
        if self.sample.shape != self.position.shape:
            raise LayoutError(
                f"sample has shape {tuple(self.sample.shape)} and position {tuple(self.position.shape)}",
                "two integer tensors of one shape",
            )
        for name, tensor in (("sample", self.sample), ("position", self.position)):
            if tensor.is_floating_point() or tensor.is_complex():
                raise LayoutError(f"{name} has dtype {tensor.dtype}", "integers, -1 for padding")
            object.__setattr__(self, name, tensor.detach().to("cpu", torch.int64))

    @property
    def valid(self) -> Tensor:
        """Bool tensor: True where a column holds a token."""
        return (self.sample >= 0) & (self.position >= 0)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sample.shape)


def stream_of(input_name: str) -> str:
    """The stream that an input of this name belongs to.

    >>> stream_of("decoder_input_ids"), stream_of("inputs_embeds")
    ('decoder', 'main')
    """
    if input_name == IMAGE:
        return IMAGE
    return DECODER if input_name == DECODER or input_name.startswith("decoder_") else MAIN


def _by_stream(call: Any) -> Mapping[str, Coordinates]:
    """The coordinates of one call, by stream.

    Raises:
        LayoutError: something else, or two inputs of one stream.
    """
    streams = {MAIN: call} if isinstance(call, Coordinates) else call
    if not isinstance(streams, Mapping) or not all(isinstance(one, Coordinates) for one in streams.values()):
        raise LayoutError(
            f"a call of type {type(call).__name__}", "fp.Coordinates, or a mapping from input names to them"
        )
    by_stream = {stream_of(name): coordinates for name, coordinates in streams.items()}
    if len(by_stream) < len(streams):
        raise LayoutError(
            f"two inputs of one stream among {sorted(streams)}",
            "coordinates of one for what goes in, one for the decoder, and one for images beside a text",
        )
    return by_stream


@dataclass(frozen=True)
class Layout:
    """Token coordinates of every forward call of a run.

    Args:
        calls: one entry a call: `Coordinates`, or a mapping from input name (`input_ids`,
            `decoder_input_ids`, `image` for the images that go in beside a text, one a row) to `Coordinates` where the
            model has several streams.
        names: names given to samples, by index; unnamed samples go by their index.
    """

    calls: tuple[Mapping[str, Coordinates], ...]
    names: Mapping[int, Hashable] = field(default_factory=dict[int, Hashable])

    def __init__(
        self,
        calls: Sequence[Coordinates | Mapping[str, Coordinates]],
        names: Mapping[int, Hashable] | None = None,
    ) -> None:
        if not isinstance(calls, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LayoutError(f"calls of type {type(calls).__name__}", "a list with one entry a call")
        object.__setattr__(self, "calls", tuple(map(_by_stream, calls)))
        object.__setattr__(self, "names", dict(names or {}))
        for name in self.names.values():
            if not isinstance(name, Hashable):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise LayoutError(f"a sample named {name!r}", "a name that can be hashed")

    @property
    def content(self) -> Hashable:
        """What two layouts that put the same tokens in the same places have in common."""
        return tuple(
            (index, stream, c.shape, c.sample.numpy().tobytes(), c.position.numpy().tobytes())
            for index, call in enumerate(self.calls)
            for stream, c in sorted(call.items())
        )

    # ------------------------------------------------------------------ the usual layouts

    @classmethod
    @by_itself
    def from_mask(cls, mask: Tensor, samples: Sequence[Hashable] | None = None) -> Layout:
        """A layout of one call from its attention mask.

        Args:
            mask: [rows, columns], nonzero where a column holds a token; padding on either side.
            samples: a name for each row; equal names in two runs are the same sample.
        """
        coordinates = _from_mask(_as_mask(mask, "mask"))
        if samples is not None and len(samples) != coordinates.shape[0]:
            raise LayoutError(
                f"{len(samples)} sample names for a mask of {coordinates.shape[0]} rows", "one name a row"
            )
        return cls([coordinates], dict(enumerate(samples or ())))

    @classmethod
    @by_itself
    def packed(
        cls,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Layout:
        """A layout of one call whose rows hold several samples one after the other.

        Args:
            position_ids: [rows, columns]; a sample begins wherever they restart at 0.
            cu_seqlens: [samples + 1], cumulative lengths of the samples in a single row.
            mask: [rows, columns], 0 where a column is padding.
        """
        if (position_ids is None) == (cu_seqlens is None):
            raise LayoutError("both or none of position_ids and cu_seqlens", "exactly one of them")
        if cu_seqlens is not None:
            return cls([_from_lengths(cu_seqlens, None)])
        _check_tensor(position_ids, "position_ids")
        assert position_ids is not None
        valid = torch.ones_like(position_ids, dtype=torch.bool) if mask is None else _as_mask(mask, "mask")
        return cls([_from_positions(position_ids.cpu(), valid)])

    @classmethod
    @by_itself
    def steps(cls, masks: Sequence[Tensor], samples: Sequence[Hashable] | None = None) -> Layout:
        """A layout of several calls that share a cache: positions go on from call to call.

        Args:
            masks: for each call, [rows, columns of that call], nonzero where a column holds a token.
            samples: a name for each row.
        """
        seen: Tensor | None = None
        calls: list[Coordinates] = []
        for mask in masks:
            coordinates = _from_mask(_as_mask(mask, "mask"), seen)
            seen = _count(coordinates, seen)
            calls.append(coordinates)
        return cls(calls, dict(enumerate(samples or ())))

    @classmethod
    @by_itself
    def read(cls, calls: Sequence[Mapping[str, Any]], *, after_cache: bool = False) -> Layout:
        """The layout that the inputs themselves state.

        Read, in this order: packed `position_ids` that restart, `cu_seqlens`, `attention_mask` (and
        `decoder_attention_mask`), masks of padding, lengths; without any, every column is a token. Positions go on from
        call to call, but for an encoder's: what it reads goes in anew with every step of its decoder.

        Args:
            calls: the inputs of each call.
            after_cache: whether they go on, too, from the cache that the first call is given.

        Raises:
            InputError: a mask whose shape does not fit its tokens, without a single token, or that can be read both ways.
        """
        seen: dict[str, Tensor] = {}
        entries: list[dict[str, Coordinates]] = []
        for index, inputs in enumerate(calls):
            entry: dict[str, Coordinates] = {}
            decodes = token_tensor(inputs, DECODER) is not None
            if after_cache and index == 0:
                stream = DECODER if decodes else MAIN
                seen.update(_cached(inputs, stream))
            for stream in (MAIN, DECODER):
                before = None if decodes and stream == MAIN else seen.get(stream)
                coordinates = _read_stream(inputs, stream, before, index)
                if coordinates is not None:
                    entry[stream] = coordinates
                    seen[stream] = _count(coordinates, before)
            images = _read_images(inputs, entry.get(MAIN))
            if images is not None:
                entry[IMAGE] = images
            entries.append(entry)
        layout = cls(entries)
        streams = [c for entry in layout.calls for c in entry.values()]
        if streams and not any(c.sample.numel() for c in streams):
            raise InputError("inputs without a row or a column", "one token or more")
        if streams and not any(bool(c.valid.any()) for c in streams):
            raise InputError(
                "an attention mask of zeros: no column holds a token",
                "a mask with 1 at every real token",
                "pass the mask that the tokenizer returned",
            )
        return layout

    # ------------------------------------------------------------------ what it holds

    def name(self, sample: int) -> Hashable:
        """The name of a sample: the one given to it, or its index."""
        return self.names.get(sample, sample)

    @property
    def samples(self) -> list[int]:
        """Indices of all samples that have at least one token, ascending."""
        samples: set[int] = set()
        for entry in self.calls:
            for coordinates in entry.values():
                samples.update(coordinates.sample[coordinates.valid].tolist())
        return sorted(samples)


# ---------------------------------------------------------------------- reading inputs


def _check_tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise LayoutError(f"{name} of type {type(value).__name__}", "a tensor")


def _as_mask(mask: Tensor, name: str) -> Tensor:
    _check_tensor(mask, name)
    if mask.dim() not in (1, 2):
        raise LayoutError(
            f"{name} of shape {tuple(mask.shape)}", "[rows, columns]", "for 4-D masks give the layout by hand"
        )
    return mask.detach().cpu() != 0


def _count(coordinates: Coordinates, seen: Tensor | None) -> Tensor:
    """Real tokens of each row so far, [rows]."""
    valid = coordinates.valid
    count = valid.sum(-1) if valid.dim() > 1 else valid.sum().reshape(1)
    return count if seen is None or seen.shape != count.shape else count + seen


def _cached(inputs: Mapping[str, Any], stream: str) -> dict[str, Tensor]:
    """The stream, and how many real tokens of each row are in the cache that a call is given, [rows]; nothing without one."""
    tokens = token_tensor(inputs, stream)
    cache = next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)
    if tokens is None or cache is None:
        return {}
    rows, columns = tokens[1].shape[0], tokens[1].shape[-1 if tokens[1].dim() < 3 else 1]
    mask = find_mask(inputs, tokens[1], decoder=stream == DECODER)
    if mask is not None and mask.valid.dim() == 2 and mask.valid.shape[-1] > columns:
        return {stream: mask.valid.cpu()[:, :-columns].sum(-1)}
    length = cached_tokens(cache)
    return {} if length is None else {stream: torch.full((rows,), length)}


def _from_mask(valid: Tensor, seen: Tensor | None = None) -> Coordinates:
    two = valid if valid.dim() == 2 else valid[None]
    position = two.long().cumsum(-1) - 1
    if seen is not None and seen.shape[0] == two.shape[0]:
        position = position + seen[:, None]
    sample = torch.arange(two.shape[0])[:, None].expand_as(two)
    return Coordinates(
        torch.where(two, sample, PADDING).reshape(valid.shape),
        torch.where(two, position, PADDING).reshape(valid.shape),
    )


def _from_positions(position_ids: Tensor, valid: Tensor) -> Coordinates:
    """Samples of rows in which positions restart at 0."""
    sample = torch.full(valid.shape, PADDING)
    position = torch.full(valid.shape, PADDING)
    current = -1
    for row in range(valid.shape[0]):
        start, count = True, 0
        for column in range(valid.shape[1]):
            if not bool(valid[row, column]):
                continue
            if start or int(position_ids[row, column]) == 0:
                current, count, start = current + 1, 0, False
            sample[row, column], position[row, column] = current, count
            count += 1
    return Coordinates(sample, position)


def _from_lengths(cu_seqlens: Tensor, shape: tuple[int, ...] | None) -> Coordinates:
    _check_tensor(cu_seqlens, "cu_seqlens")
    edges = cu_seqlens.detach().cpu().long()
    if edges.dim() != 1 or len(edges) < 2 or int(edges[0]) < 0 or bool((edges.diff() < 0).any()):
        raise LayoutError(
            f"cu_seqlens {edges.tolist()}",
            "[samples + 1] numbers that never fall: 0, then where each sample ends",
        )
    total = int(edges[-1])
    sample = torch.bucketize(torch.arange(total), edges[1:], right=True)
    position = torch.arange(total) - edges[sample]
    if shape is None:
        shape = (1, total)
    width = 1
    for size in shape:
        width *= size
    if width < total:
        raise LayoutError(
            f"cu_seqlens ends at {total}, the tokens are {width}", "lengths that add up to the tokens"
        )
    tail = torch.full((width - total,), PADDING)
    return Coordinates(torch.cat([sample, tail]).reshape(shape), torch.cat([position, tail]).reshape(shape))


def token_tensor(inputs: Mapping[str, Any], stream: str) -> tuple[str, Tensor] | None:
    """The tensor of a call that carries a stream's tokens: its name and itself; None without one."""
    if stream == IMAGE:
        pixels = inputs.get(_IMAGES)
        return (_IMAGES, pixels) if isinstance(pixels, Tensor) else None
    names = _TOKENS if stream == MAIN else _DECODER_TOKENS
    for name in names:
        value = inputs.get(name)
        if isinstance(value, Tensor):
            return name, value
    if stream == DECODER:
        return None
    encoded = inputs.get("encoder_outputs")
    if encoded is not None:
        hidden = encoded if isinstance(encoded, Tensor) else encoded[0]
        return "encoder_outputs", hidden
    for name, value in inputs.items():
        if (
            isinstance(value, Tensor)
            and value.dim() > 0
            and name != "labels"
            and not states_layout(name)
            and not name.startswith("decoder_")
        ):
            return name, value
    return None


def grid_shape(name: str, tokens: Tensor) -> tuple[int, ...] | None:
    """The (rows, columns) that hold tokens in an input, or None where each row is a whole sample.

    Integers and floats of three dimensions have their columns in dimension 1; images, and vectors
    of features, have none.
    """
    if not tokens.is_floating_point() and not tokens.is_complex():
        return tuple(tokens.shape[:2])
    if name == "input_values" and tokens.dim() == 2:
        return tuple(tokens.shape)
    if name == "input_values" and tokens.dim() == 3 and tokens.shape[1] <= 2 < tokens.shape[2]:
        return (tokens.shape[0], tokens.shape[2])  # audio, [rows, channels, samples]
    if tokens.dim() == 3 and name not in ("pixel_values", "input_features"):
        return tuple(tokens.shape[:2])
    return None


def has_columns_last(tokens: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether [rows, columns] of this shape are the first and the last dimension of [rows, features, columns].

    >>> has_columns_last(torch.zeros(2, 80, 50), (2, 50)), has_columns_last(torch.zeros(2, 50, 80), (2, 50))
    (True, False)
    """
    if tokens.dim() != 3 or len(shape) != 2 or tuple(tokens.shape[:2]) == shape:
        return False
    return (tokens.shape[0], tokens.shape[2]) == shape


def _read_stream(
    inputs: Mapping[str, Any], stream: str, seen: Tensor | None, call: int
) -> Coordinates | None:
    carrier = token_tensor(inputs, stream)
    if carrier is None:
        return None
    name, tokens = carrier
    if tokens.is_nested:
        return None  # its rows have lengths of their own
    shape = grid_shape(name, tokens)
    masked = find_mask(inputs, tokens, decoder=stream == DECODER)
    if stream == MAIN:
        for key in CUMULATIVE_LENGTHS:
            if isinstance(inputs.get(key), Tensor) and shape is not None:
                return _from_lengths(inputs[key], shape)
    if masked is None:
        if shape is None:
            if tokens.dim() < 2:
                return None  # a list of numbers has neither rows nor columns
            rows = torch.arange(tokens.shape[0])
            return Coordinates(rows, torch.zeros_like(rows)) if seen is None else None
        valid = torch.ones(shape, dtype=torch.bool)
    else:
        valid = _fit_mask(*masked, name, tokens, shape, call)
        if (
            shape is not None and valid.shape != shape and not has_columns_last(tokens, tuple(valid.shape))
        ):  # [columns, rows], as nn.TransformerEncoder without batch_first
            by_column = _from_mask(valid, seen)
            return Coordinates(by_column.sample.T, by_column.position.T)
    positions = inputs.get("position_ids")
    if (
        stream == MAIN
        and isinstance(positions, Tensor)
        and positions.shape == valid.shape
        and valid.dim() == 2
    ):
        packed = _from_positions(positions.cpu(), valid.cpu())
        if int(packed.sample.max()) + 1 > valid.shape[0] and seen is None:
            return packed
    return _from_mask(valid.cpu(), seen)


def _read_images(inputs: Mapping[str, Any], text: Coordinates | None) -> Coordinates | None:
    """The images that go in beside a text, each that of the sample in its row; None where that can't be told."""
    images = token_tensor(inputs, IMAGE)
    beside = token_tensor(inputs, MAIN)
    if images is None or text is None or beside is None or beside[0] == images[0] or text.sample.dim() != 2:
        return None
    pixels, samples = images[1], text.sample.max(-1).values
    several = ((text.sample != samples[:, None]) & text.valid).any()
    if pixels.dim() < 4 or pixels.shape[0] != len(samples) or bool(several) or bool((samples < 0).any()):
        return None
    return Coordinates(samples, torch.zeros_like(samples))


def _fit_mask(
    mask_name: str, valid: Tensor, name: str, tokens: Tensor, shape: tuple[int, ...] | None, call: int
) -> Tensor:
    """The mask's columns that belong to this call's own tokens, in the shape of the tokens."""
    valid = valid.detach().cpu()
    if has_columns_last(tokens, tuple(valid.shape)) and (shape is None or tuple(valid.shape) != shape):
        return valid
    if shape is None:
        # Features with the time in the last dimension, [rows, features, frames].
        if tokens.dim() >= 2 and valid.dim() == 2 and valid.shape[0] == tokens.shape[0]:
            return valid
    elif valid.dim() == len(shape) and valid.shape[:-1] == shape[:-1] and valid.shape[-1] >= shape[-1]:
        # With a cache the mask covers the earlier calls too: its last columns are this call's.
        return valid[..., valid.shape[-1] - shape[-1] :]
    elif len(shape) == 2 and valid.dim() == 2 and tuple(valid.T.shape) == shape:
        return valid
    raise InputError(
        f"call {call}: {mask_name} of shape {tuple(valid.shape)} for {name} of shape {tuple(tokens.shape)}",
        "a mask with a column for each token (and for each token in the cache)",
    )
