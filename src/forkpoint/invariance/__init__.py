"""Layout-invariant inference: a token's result has the same bits in every layout.

Once this is imported, transformers knows `attn_implementation="forkpoint"`.
"""

from forkpoint.invariance import attention
from forkpoint.invariance.block import Invariance, invariant

attention.register()

__all__ = ["Invariance", "invariant"]
