"""What a call of `generate` read and wrote: its tokens, where they are, and which forward call chose each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.errors import InputError
from forkpoint.runs.layout import PADDING
from forkpoint.runs.listening import HINT, GenerateCall, GenerationStep, stream_of_tokens


@dataclass(frozen=True)
class Text:
    """What a call of `generate` read and wrote.

    Attributes:
        call: the call of `generate`.
        ids: [rows, columns], what was given and generated.
        position: [rows, columns], of each token; -1 in padding, and after the end of a row.
        prompt: columns that were given.
        stops: for each step, the column after the last that it saw of what was kept.
    """

    call: GenerateCall
    ids: Tensor
    position: Tensor
    prompt: int
    stops: tuple[int, ...]

    @property
    def cached(self) -> bool:
        steps = self.call.steps
        return len(steps) == 1 or any(step.cached for step in steps[1:])

    def tokens(self, row: int) -> tuple[list[int], list[int]]:
        """The tokens of a row that were given, and those that were generated."""
        is_token = self.position[row] >= 0
        both = is_token.clone(), is_token.clone()
        both[0][self.prompt :], both[1][: self.prompt] = False, False
        prompt, new = (self.ids[row][mask].tolist() for mask in both)
        return prompt, new

    def chosen_by(self, row: int, column: int) -> Tensor | None:
        """The logits, [vocabulary], from which the token in a column was chosen; None where they were not noted."""
        for step, stop in zip(self.call.steps, self.stops, strict=True):
            if step.cached < column <= stop or (not self.cached and stop == column):
                logits, at = step.logits, column - 1 - step.cached - step.columns
                return logits[row, at] if logits.dim() == 3 and -at <= logits.shape[1] else None
        return None

    @property
    def greedy(self) -> bool:
        """Whether each token is the one with the largest logit."""
        for row, column in (self.position[:, self.prompt :] >= 0).nonzero().tolist():
            logits = self.chosen_by(row, column + self.prompt)
            if logits is None or int(logits.argmax()) != int(self.ids[row, column + self.prompt]):
                return False
        return True


def text_of(call: GenerateCall) -> Text:
    """Where the tokens are that a call of `generate` read and wrote.

    Raises:
        InputError: its forward calls don't see, row by row, what it returns: beams change places.
    """
    ids, steps = call.whole, call.steps
    stream = stream_of_tokens(steps[0].inputs)
    if ids is None or ids.dim() != 2 or call.arguments.get("inputs_embeds") is not None:
        raise InputError("a call that generates something else than token ids from token ids", "", HINT)
    first = steps[0].inputs[stream].cpu()
    if len(first) == len(ids) and not torch.equal(first[:, :1], ids[:, :1]):
        ids = torch.cat([first, ids], 1)  # some return without it what the decoder began with
    prompt = _given_columns(call, ids, stream)
    cached = len(steps) == 1 or any(step.cached for step in steps[1:])
    ends = (
        [step.cached for step in steps[1:]] if cached else [step.cached + step.columns for step in steps[:-1]]
    )
    stops = (*ends, min(steps[-1].cached + steps[-1].columns, max(ids.shape[1] - 1, prompt)))
    if not _sees(steps, stops, ids, stream):
        raise InputError(
            f"a call that generates with {len(steps[0].inputs[stream])} rows of tokens which are not the {len(ids)} that it returns",
            "greedy search or sampling: beams change places",
            "num_beams=1",
        )
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[:, :prompt] = _mask(call, prompt, len(ids))
    for row, column in _ends(call, ids, prompt):
        valid[row, column + 1 :] = False
    position = torch.where(valid, valid.long().cumsum(1) - 1, PADDING)
    return Text(call, ids, position, prompt, stops)


def _sees(steps: Sequence[GenerationStep], stops: Sequence[int], ids: Tensor, stream: str) -> bool:
    """Whether the forward calls see, row by row, what was returned, up to what was rejected."""
    for step, stop in zip(steps, stops, strict=True):
        seen = step.inputs[stream].cpu()[:, : max(stop - step.cached, 0)]
        if not torch.equal(seen, ids[:, step.cached : step.cached + seen.shape[1]]):
            return False
    return True


def _given_columns(call: GenerateCall, ids: Tensor, stream: str) -> int:
    """How many columns of what was returned had been given."""
    tokens = call.arguments.get(stream)
    if stream == "input_ids" and tokens is None:
        tokens = call.arguments.get("inputs")
    if isinstance(tokens, Tensor) and tokens.dim() == 2:
        begun = stream != "input_ids" and not torch.equal(ids[:, : tokens.shape[1]], tokens.cpu())
        return int(tokens.shape[1]) + begun  # a decoder is begun with a token of its own
    plain = getattr(type(call.module), "generate", None)
    own = getattr(plain, "__module__", "") != "transformers.generation.utils"
    return call.steps[0].cached + call.steps[0].columns if own or stream == "input_ids" else 1


def _mask(call: GenerateCall, columns: int, rows: int) -> Tensor:
    """Which columns of the prompt are tokens, [rows, columns]."""
    decodes = stream_of_tokens(call.steps[0].inputs) == "decoder_input_ids"
    name = "decoder_attention_mask" if decodes else "attention_mask"
    for mask in (call.arguments.get(name), call.steps[0].inputs.get(name)):
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == columns:
            return mask.cpu().bool().repeat_interleave(rows // len(mask), 0)
    return torch.ones(rows, columns, dtype=torch.bool)


def _ends(call: GenerateCall, ids: Tensor, prompt: int) -> list[tuple[int, int]]:
    """(row, column) of the token that ends each row which has ended."""
    config = call.arguments.get("generation_config") or getattr(call.module, "generation_config", None)
    end = call.arguments.get("eos_token_id", getattr(config, "eos_token_id", None))
    if end is None:
        return []
    end_ids = torch.as_tensor(end).reshape(-1).cpu()
    ends: dict[int, int] = {}
    for row, column in torch.isin(ids[:, prompt:], end_ids).nonzero().tolist():
        ends.setdefault(row, column + prompt)
    return list(ends.items())
