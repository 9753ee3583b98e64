"""The low-rank arithmetic as tensor functions, with no modules and no adapters."""

from weft.ops.linear import add_linear
from weft.ops.reference import conv, drop, embedding, linear

__all__ = ["add_linear", "conv", "drop", "embedding", "linear"]
