"""Changes with entries dropped at random, a sign elected for each entry, and the mean of those that agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from weft.algebra.drop import Dropped
from weft.algebra.elementwise import Elementwise, nearest_low_rank
from weft.algebra.method import Method, methods
from weft.algebra.rows import present_terms
from weft.algebra.settings import check_density, check_seed
from weft.algebra.signs import disjoint_mean
from weft.linalg import Limit, LowRank, Truncation


@methods.register("dare_ties")
@dataclass(frozen=True)
class DareTies(Method):
    """Drop and rescale (Yu et al., 2023, arXiv 2311.03099) in place of the trimming of `ties`.

    Elects signs and takes the mean as `ties` does, and weights enter likewise: only their ratios matter. PEFT's
    "dare_ties_svd" takes the mean too (weights apart, see `ties`); mergekit by default adds up the weighted values
    that agree. A dropped value does not count in the mean, so what several adapters agree on grows: it is the value
    over `density`, unless all of them drop it.

    Attributes:
        density: the share of entries that stay, on average; 1 - p in the paper.
        seed: which ones; they follow from it, the module's path and the adapter's place among those merged.

    Raises:
        ConfigError: density is not above 0 and up to 1, or seed is negative.
    """

    name: ClassVar[str] = "dare_ties"
    adds_ranks: ClassVar[bool] = False
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        check_seed(self.seed)

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        present = present_terms(terms, weights)
        parts = [Dropped(term, self.density, self.seed, path) for term in present]
        merged = Elementwise(parts, partial(disjoint_mean, weights=[term.weight for term in present]))
        return nearest_low_rank(merged, limit)
