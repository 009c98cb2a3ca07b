"""Any model in float64 on the fly, so that rounding can be told from a real difference."""

from forkpoint.promotion.promotion import Promotion
from forkpoint.promotion.refusals import Refusal

__all__ = ["Promotion", "Refusal"]
