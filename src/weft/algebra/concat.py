"""The weighted sum, with the factors side by side as they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from weft.adapter import weighted_terms
from weft.algebra.method import Method, methods, truncated
from weft.linalg import Limit, LowRank, Truncation


@methods.register("concat")
@dataclass(frozen=True)
class Concat(Method):
    """sum of w_i D_i, as [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]: exact, and the ranks add up."""

    name: ClassVar[str] = "concat"

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        total = weighted_terms(terms, weights)
        return Truncation(total, 0.0) if limit is None else truncated(total, limit)
