"""What a question lets one choose, by name. Free of torch, so that the command line can list it at once."""

from __future__ import annotations

from typing import Literal

Side = Literal["left", "right"]
"""Where padding goes."""

PositionIds = Literal["mask", "none"]
"""Made from the mask as the architecture does in `generate`, or left to the model."""
