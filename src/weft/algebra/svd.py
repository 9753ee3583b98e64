"""The weighted sum, at a rank that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from weft.adapter import weighted_terms
from weft.algebra.method import Method, methods, truncated
from weft.linalg import Limit, LowRank, Truncation


@methods.register("svd")
@dataclass(frozen=True)
class SVD(Method):
    """The matrix nearest to sum of w_i D_i (Eckart and Young, 1936) that has, without a limit, the largest rank given.

    PEFT's "svd" forms the dense sum and its full SVD for this; here it is QR of the factors and an SVD of their core.
    """

    name: ClassVar[str] = "svd"

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        limit = limit or Limit(rank=max(term.rank for term in terms if term is not None))
        return truncated(weighted_terms(terms, weights), limit)
