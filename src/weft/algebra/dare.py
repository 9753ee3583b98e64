"""The weighted sum of changes with entries dropped at random and the others rescaled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from weft.algebra.drop import Dropped
from weft.algebra.elementwise import Elementwise, nearest_low_rank, total
from weft.algebra.linear import Linear
from weft.algebra.method import Method, methods
from weft.algebra.rows import present_terms
from weft.algebra.settings import check_density, check_seed
from weft.linalg import Limit, LowRank, Truncation


@methods.register("dare")
@dataclass(frozen=True)
class Dare(Method):
    """sum of w_i drop(D_i): drop and rescale, so that each entry keeps its mean (Yu et al., 2023, arXiv 2311.03099).

    Weights multiply, as in `linear`; `linear` itself is what density 1 gives. Dropping adds noise of
    (1 - density) / density times the change's squared norm, nearly all of which a low rank leaves out again: a relative
    error near sqrt(1 - density) is to be expected, and what is kept lies nearer to the undropped sum than the dropped
    one does.

    Attributes:
        density: the share of entries that stay, on average; 1 - p in the paper.
        seed: which ones; they follow from it, the module's path and the adapter's place among those merged.

    Raises:
        ConfigError: density is not above 0 and up to 1, or seed is negative.
    """

    name: ClassVar[str] = "dare"
    adds_ranks: ClassVar[bool] = False
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        check_seed(self.seed)

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        if self.density == 1:
            return Linear().merge(path, terms, weights, limit)
        parts = [Dropped(term, self.density, self.seed, path) for term in present_terms(terms, weights)]
        return nearest_low_rank(Elementwise(parts, total), limit)
