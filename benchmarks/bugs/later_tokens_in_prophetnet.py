"""ProphetNet: what the decoder predicts depends on later tokens, and is another thing from a cache.

In float64 a gap of rounding would be about 1e-15. `get_predict_relative_pos_embeddings` lays its numbers out as (row, token,
stream, head), and its buckets as (row, stream, head, token): a token gets what was made of another one.
"""

import torch
from transformers import ProphetNetConfig, ProphetNetForConditionalGeneration

torch.manual_seed(0)
config = ProphetNetConfig(
    vocab_size=64, hidden_size=32, encoder_ffn_dim=48, decoder_ffn_dim=48, num_encoder_layers=2, num_decoder_layers=2,
    num_encoder_attention_heads=4, num_decoder_attention_heads=4, init_std=0.2,
)  # fmt: skip
model = ProphetNetForConditionalGeneration(config).double().eval()
ids = torch.randint(3, 60, (1, 8))
later = ids.clone()
later[:, 3] = 61
with torch.no_grad():
    whole = model(input_ids=ids, decoder_input_ids=ids).logits[0]
    changed = model(input_ids=ids, decoder_input_ids=later).logits[0]
    first = model(input_ids=ids, decoder_input_ids=ids[:, :4], use_cache=True)
    step = model(input_ids=ids, decoder_input_ids=ids[:, 4:5], past_key_values=first.past_key_values)
print(f"token 0, token 3 being another: {(whole - changed)[0].abs().max():.2g} of {whole.abs().max():.2g}")
print(f"token 4, from a cache: {(whole[4] - step.logits[0, 0]).abs().max():.2g}")
