"""What goes in beside the tokens: a prompt with a mask of its own; states that a scan hands on; a row and more of it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from .case import Pair, Side, case
from .expect import CACHE, LEAK, MASK, SOUND, semantic
from .modules import seeded
from .pairs import cached
from .tokens import VOCABULARY, floats, main_tensor, pad_floats, row, whole, words

# ---------------------------------------------------------------------- a prompt beside an image


class Prompted(nn.Module):
    """Patches that attend to a prompt, whose mask is heeded or not; `joint`: and to each other."""

    def __init__(self, *, joint: bool, heeds: bool) -> None:
        super().__init__()
        self.patches, self.words = nn.Linear(8, 16), nn.Linear(6, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 8)
        self.joint, self.heeds = joint, heeds

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        patches, prompt = self.patches(hidden_states), self.words(encoder_hidden_states)
        seen, mask = prompt, encoder_attention_mask.bool()
        if self.joint:
            seen = torch.cat([prompt, patches], 1)
            mask = torch.cat([mask, mask.new_ones(patches.shape[:2])], 1)
        mixed = F.scaled_dot_product_attention(
            self.query(patches),
            self.key(seen),
            self.value(seen),
            attn_mask=mask[:, None] if self.heeds else None,
        )
        return self.out(patches + mixed)


def _prompted(*, joint: bool, heeds: bool) -> Pair:
    model, image, prompt = (
        seeded(Prompted, joint=joint, heeds=heeds),
        floats(1, 7, 8),
        floats(1, 5, 6, seed=1),
    )
    longer, mask = pad_floats(prompt, "right", 4)
    alone = {"encoder_hidden_states": prompt, "encoder_attention_mask": torch.ones(1, 5, dtype=torch.long)}
    padded = {"encoder_hidden_states": longer, "encoder_attention_mask": mask}
    return Pair(
        Side(model, {"hidden_states": image, **alone}, whole()),
        Side(model, {"hidden_states": image, **padded}, whole()),
    )


for _joint in (True, False):
    _name = "joint" if _joint else "cross"
    case(
        f"55-prompt-{_name}-mask-ignored",
        f"An image's patches in {_name} attention with a padded prompt, whose mask is not used",
        MASK,
        semantic(None, by_design=None),
        floor=1e-2,
        origin="scaled_dot_product_attention",
        source="diffusers#8673",
    )(partial(_prompted, joint=_joint, heeds=False))
    case(f"55-prompt-{_name}-mask", f"The same {_name} attention with the mask", *SOUND)(
        partial(_prompted, joint=_joint, heeds=True)
    )

# ---------------------------------------------------------------------- a state that is wrong when it is kept


class Scanned(nn.Module):
    """A recurrence over a prompt in chunks of four, filled up; its state is that of the last token, or of what fills up."""

    def __init__(self, *, of_filling: bool) -> None:
        super().__init__()
        self.embed, self.inner, self.head = (
            nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), nn.Linear(16, VOCABULARY),
        )  # fmt: skip
        self.of_filling = of_filling

    def forward(self, input_ids: Tensor, past_key_values: Tensor | None = None) -> CausalLMOutputWithPast:
        steps = self.inner(self.embed(input_ids))
        tokens = steps.shape[1]
        state = torch.zeros_like(steps[:, 0]) if past_key_values is None else past_key_values
        filled = F.pad(steps, (0, 0, 0, -tokens % 4)) if past_key_values is None else steps
        states: list[Tensor] = []
        for step in filled.unbind(1):
            state = 0.8 * state + step
            states.append(state)
        kept = states[-1] if self.of_filling else states[tokens - 1]
        return CausalLMOutputWithPast(
            logits=self.head(torch.stack(states[:tokens], 1)),
            past_key_values=kept,  # pyright: ignore[reportArgumentType]
        )


def _claims_nothing_of_the_cache(pair: Pair) -> None:
    """The state was wrong as it was kept: nothing shows that it was right."""
    import forkpoint as fp

    found = fp.compare(fp.Run(pair.a.model, pair.a.inputs), fp.Run(pair.b.model, pair.b.inputs))
    assert "right" not in found.verdict.summary


case(
    "55-scan-state-of-filling",
    "The state of a scan goes on over what fills up the last chunk",
    CACHE,
    floor=1e-2,
    check=_claims_nothing_of_the_cache,
)(lambda: cached(seeded(Scanned, of_filling=True)))
case("55-scan-state-of-token", "The same with the state of the last token", *SOUND)(
    lambda: cached(seeded(Scanned, of_filling=False))
)

# ---------------------------------------------------------------------- a row, and more of it


class Neighbours(nn.Module):
    """A convolution of each token with the two before it, or with one of either side."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.conv, self.first = nn.Conv1d(16, 16, 3, padding=2), 0 if causal else 1

    def forward(self, input_ids: Tensor) -> Tensor:
        made = self.conv(self.embed(input_ids).transpose(1, 2))
        return self.head(made.narrow(-1, self.first, input_ids.shape[1]).transpose(1, 2))


def _prefix(*, causal: bool) -> Pair:
    model, tokens = seeded(Neighbours, causal=causal), words(9)
    return Pair(
        Side(model, {"input_ids": row(tokens[:6])}, whole()),
        Side(model, {"input_ids": row(tokens)}, lambda outputs: main_tensor(outputs[0])[:, :6]),
    )


def _speaks_of_later_tokens(pair: Pair) -> None:
    """Neither run has padding or another row."""
    import forkpoint as fp

    found = fp.compare(fp.Run(pair.a.model, pair.a.inputs), fp.Run(pair.b.model, pair.b.inputs)).verdict
    assert "later tokens of its own row" in found.summary
    assert "padd" not in found.summary + found.advice


case(
    "55-later-token-seen",
    "A prefix, or more of the row: a convolution sees the next token",
    LEAK,
    floor=1e-2,
    check=_speaks_of_later_tokens,
)(partial(_prefix, causal=False))
case("55-later-token-unseen", "The same with a causal one", *SOUND)(partial(_prefix, causal=True))
