"""Adapters from adapters: combined, and of lower rank. Pure functions of their factors; no base, no dense delta."""

from weft.algebra import concat, dare, dare_ties, linear, magnitude_prune, svd, ties
from weft.algebra.combine import combine, combine_with_costs
from weft.algebra.concat import Concat
from weft.algebra.costs import Costed, Costs, ModuleCost
from weft.algebra.dare import Dare
from weft.algebra.dare_ties import DareTies
from weft.algebra.linear import Linear
from weft.algebra.magnitude_prune import MagnitudePrune
from weft.algebra.method import Method, methods, truncated
from weft.algebra.resize import resize, resize_with_costs
from weft.algebra.svd import SVD
from weft.algebra.ties import Ties

__all__ = [
    "SVD",
    "Concat",
    "Costed",
    "Costs",
    "Dare",
    "DareTies",
    "Linear",
    "MagnitudePrune",
    "Method",
    "ModuleCost",
    "Ties",
    "combine",
    "combine_with_costs",
    "concat",
    "dare",
    "dare_ties",
    "linear",
    "magnitude_prune",
    "methods",
    "resize",
    "resize_with_costs",
    "svd",
    "ties",
    "truncated",
]
