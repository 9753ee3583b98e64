"""The low-rank arithmetic as tensor functions, with no modules and no adapters."""

from weft.ops.reference import conv, drop, embedding, linear

__all__ = ["conv", "drop", "embedding", "linear"]
