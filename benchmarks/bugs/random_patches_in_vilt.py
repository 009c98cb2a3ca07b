"""ViLT in eval mode returns its patches in another order each time: the same call, twice, differs from itself.

It draws the patches (also when it keeps all of them) with `torch.multinomial`, so `last_hidden_state` depends on the
random state: what stands at an index of the image is another patch in each call.
"""

import torch
from transformers import ViltConfig, ViltModel

torch.manual_seed(0)
config = ViltConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16,
    patch_size=4, initializer_range=0.2,
)  # fmt: skip
model = ViltModel(config).double().eval()
ids, pixels = torch.randint(3, 60, (1, 6)), torch.randn(1, 3, 16, 16, dtype=torch.float64)
with torch.no_grad():
    first, second = (model(input_ids=ids, pixel_values=pixels).last_hidden_state for _ in range(2))
print(f"image: {(first - second)[:, 6:].abs().max():.2g}, text: {(first - second)[:, :6].abs().max():.2g}")
