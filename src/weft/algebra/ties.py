"""Changes trimmed, a sign elected for each entry, and the mean of those that agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from weft.algebra.elementwise import Elementwise, nearest_low_rank
from weft.algebra.method import Method, methods
from weft.algebra.rows import present_terms
from weft.algebra.settings import check_density
from weft.algebra.signs import disjoint_mean
from weft.algebra.trim import Trimmed
from weft.linalg import Limit, LowRank, Truncation


@methods.register("ties")
@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect sign, disjoint merge (Yadav et al., 2023, arXiv 2306.01708), of each module's changes D_i.

    1. Each D_i keeps its entries of largest magnitude.
    2. Each entry takes the sign of the weighted sum of what is left: of the greater total magnitude.
    3. It becomes the weighted mean of the values that have that sign; those trimmed away do not count.

    Weights say how much each change counts in the vote and in the mean; only their ratios matter, as mergekit has it
    by default (`normalize`). Equal weights give the paper's method, with its final scaling lambda = 1; for another one
    multiply the result: ``0.7 * adapter``. A negative weight merges -D_i. PEFT's "ties_svd" instead votes without
    weights and divides by the number that agree, so there weights of 1 give the paper's method; and where positive
    and negative values balance exactly it takes the positive ones, where here, as in the paper's formula, no sign wins
    and the entry is zero.

    Attributes:
        density: the share of each change's entries to keep; the paper's k, 20% there.

    Raises:
        ConfigError: density is not above 0 and up to 1.
    """

    name: ClassVar[str] = "ties"
    adds_ranks: ClassVar[bool] = False
    density: float = 0.2

    def __post_init__(self) -> None:
        check_density(self.density)

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        present = present_terms(terms, weights)
        parts = [Trimmed(term, self.density) for term in present]
        merged = Elementwise(parts, partial(disjoint_mean, weights=[term.weight for term in present]))
        return nearest_low_rank(merged, limit)
