"""Wav2Vec2-Conformer: silence behind a recording changes its frames, though the attention mask is given.

In float64 a gap of rounding would be about 1e-15. The depthwise convolution reads the frames of the padding;
the same module of Wav2Vec2-BERT sets them to zero before it.
"""

import torch
from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel

torch.manual_seed(0)
config = Wav2Vec2ConformerConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16),
    conv_kernel=(5, 3), conv_stride=(3, 2), num_feat_extract_layers=2, feat_extract_norm="layer",
    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, layerdrop=0.0,
)  # fmt: skip
model = Wav2Vec2ConformerModel(config).double().eval()
wave = torch.randn(1, 70, dtype=torch.float64)
padded = torch.nn.functional.pad(wave, (0, 27))
mask = torch.nn.functional.pad(torch.ones(1, 70, dtype=torch.long), (0, 27))
with torch.no_grad():
    alone = model(wave, attention_mask=torch.ones(1, 70, dtype=torch.long)).last_hidden_state
    beside = model(padded, attention_mask=mask).last_hidden_state[:, : alone.shape[1]]
print(f"{(alone - beside).abs().max():.2g} of {alone.abs().max():.2g}")
