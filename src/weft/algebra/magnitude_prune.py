"""The weighted sum of changes pruned by magnitude."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from weft.algebra.elementwise import Elementwise, nearest_low_rank, total
from weft.algebra.linear import Linear
from weft.algebra.method import Method, methods
from weft.algebra.rows import present_terms
from weft.algebra.settings import check_density
from weft.algebra.trim import Trimmed
from weft.linalg import Limit, LowRank, Truncation


@methods.register("magnitude_prune")
@dataclass(frozen=True)
class MagnitudePrune(Method):
    """sum of w_i prune(D_i): each change keeps its entries of largest magnitude (Han et al., 2015, arXiv 1506.02626).

    Weights multiply, as in `linear`; `linear` itself is what density 1 gives. A pruned change is not low rank: without
    a limit the result has the sum of the ranks given, and its relative error says how far it lies from the pruned sum.

    Attributes:
        density: the share of each change's entries to keep.

    Raises:
        ConfigError: density is not above 0 and up to 1.
    """

    name: ClassVar[str] = "magnitude_prune"
    adds_ranks: ClassVar[bool] = False
    density: float = 0.2

    def __post_init__(self) -> None:
        check_density(self.density)

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        if self.density == 1:
            return Linear().merge(path, terms, weights, limit)
        parts = [Trimmed(term, self.density) for term in present_terms(terms, weights)]
        return nearest_low_rank(Elementwise(parts, total), limit)
