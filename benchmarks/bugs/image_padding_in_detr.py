"""DETR: padding beside an image, with the pixel mask given, changes the detections.

In float64 a gap of rounding would be about 1e-15. The backbone is given no mask: from its second convolution on, the
pixels at the edge of the image see what the first one has made of the padding.
"""

import torch
from transformers import DetrConfig, DetrModel, ResNetConfig

torch.manual_seed(0)
backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
config = DetrConfig(
    backbone_config=backbone, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=5,
)  # fmt: skip
model = DetrModel(config).double().eval()
pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
padded = torch.nn.functional.pad(pixels, (0, 32, 0, 32))
mask = torch.nn.functional.pad(torch.ones(1, 32, 32, dtype=torch.long), (0, 32, 0, 32))
with torch.no_grad():
    alone = model(pixels, pixel_mask=torch.ones(1, 32, 32, dtype=torch.long)).last_hidden_state
    beside = model(padded, pixel_mask=mask).last_hidden_state
print(f"{(alone - beside).abs().max():.2g} of {alone.abs().max():.2g}")
