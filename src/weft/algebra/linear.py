"""The weighted sum, in the fewest ranks that hold it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.adapter import weighted_terms
from weft.algebra.method import Method, methods, truncated
from weft.linalg import Limit, LowRank, Truncation


@methods.register("linear")
@dataclass(frozen=True)
class Linear(Method):
    """sum of w_i D_i (task arithmetic: Ilharco et al., 2022, arXiv 2212.04089), in delta space: no cross terms.

    Directions that cancel or coincide are not kept twice: what is dropped without a limit is below the rounding of
    the factors.
    """

    name: ClassVar[str] = "linear"

    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        total = weighted_terms(terms, weights)
        if limit is not None:
            return truncated(total, limit)
        dtype = torch.promote_types(total.dtype, torch.float32)
        return total.truncate(error=4 * torch.finfo(dtype).eps)
