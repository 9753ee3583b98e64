"""Adapters from adapters: combined, and of lower rank. Pure functions of their factors; no base, no dense delta."""

from weft.algebra import concat, linear, svd
from weft.algebra.combine import combine, combine_with_costs
from weft.algebra.concat import Concat
from weft.algebra.costs import Costed, Costs, ModuleCost
from weft.algebra.linear import Linear
from weft.algebra.method import Method, methods, truncated
from weft.algebra.resize import resize, resize_with_costs
from weft.algebra.svd import SVD

__all__ = [
    "SVD",
    "Concat",
    "Costed",
    "Costs",
    "Linear",
    "Method",
    "ModuleCost",
    "combine",
    "combine_with_costs",
    "concat",
    "linear",
    "methods",
    "resize",
    "resize_with_costs",
    "svd",
    "truncated",
]
