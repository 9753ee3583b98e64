"""The low-rank arithmetic as tensor functions, with no modules and no adapters."""

from weft.ops.conv import add_conv
from weft.ops.dropout import drop
from weft.ops.embedding import add_embedding
from weft.ops.linear import adapted_linear, add_linear
from weft.ops.reference import conv, embedding, linear
from weft.ops.rescale import rescale
from weft.ops.transforms import is_transformed

__all__ = [
    "adapted_linear",
    "add_conv",
    "add_embedding",
    "add_linear",
    "conv",
    "drop",
    "embedding",
    "is_transformed",
    "linear",
    "rescale",
]
