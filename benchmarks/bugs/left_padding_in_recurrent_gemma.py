"""RecurrentGemma: padding on the left changes real tokens, though the attention mask and the positions are given.

In float64 a gap of rounding would be about 1e-15. The convolution of a recurrent block reads the padding before it.
"""

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0)
config = RecurrentGemmaConfig(
    vocab_size=64, hidden_size=32, lru_width=32, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
    intermediate_size=48, attention_window_size=16, initializer_range=0.2,
)  # fmt: skip
model = RecurrentGemmaForCausalLM(config).double().eval()
torch.nn.init.normal_(
    model.model.embed_tokens.weight
)  # trained weights have an embedding for padding, new ones zeros
ids = torch.randint(3, 60, (1, 8))
padded = torch.nn.functional.pad(ids, (6, 0))
mask = (padded != 0).long()
with torch.no_grad():
    alone = model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(8)[None]).logits
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    beside = model(padded, attention_mask=mask, position_ids=positions).logits[:, 6:]
print(f"{(alone - beside).abs().max():.2g} of {alone.abs().max():.2g}")
