"""What a question lets one choose, by name. Free of torch, so that the command line can list it at once."""

from __future__ import annotations

from typing import Literal

Side = Literal["left", "right"]
"""Where padding goes."""

PositionIds = Literal["mask", "none"]
"""Made from the mask as the architecture does in `generate`, or left to the model."""

CacheKind = Literal["dynamic", "static", "sliding", "offloaded", "quantized"]
"""How the keys and values of earlier calls are kept."""

Quantization = Literal["int8", "nf4", "int8-dynamic", "torchao-int8"]
"""int8 and nf4 of bitsandbytes, PyTorch's own dynamic int8, and torchao's int8 weights."""

Backend = Literal["eager", "aot_eager", "inductor"]
"""What `torch.compile` hands the captured graph to."""

Generating = Literal["batch", "no-cache", "static", "sliding", "offloaded", "quantized", "assisted"]
"""Another way to generate: in a batch with others, without a cache, with a cache of that kind, or assisted."""

Pooling = Literal["mean", "cls"]
"""How an encoder's tokens become one vector: their mean, or the first of them."""
