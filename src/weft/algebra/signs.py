"""Electing a sign for each entry, and the mean of the values that have it.

TIES (Yadav et al., 2023, arXiv 2306.01708), section 4: values of opposite signs would cancel when added, so each entry
takes the sign with the greater total magnitude, and only the values of that sign count.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def disjoint_mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """For each entry, the weighted mean of the values that have the sign of the sum.

    Args:
        values: w_j t_j, of one shape, each already multiplied by its weight; at least one.
        weights: w_j, of either sign. A negative one turns its t_j round; in the mean it counts by its magnitude.

    Returns:
        sum of w_j t_j over the j whose w_j t_j has the sign of all their sum, over the sum of their |w_j|. Zero where
        there is no such j: where all are zero, or positive and negative ones balance exactly.
    """
    elected = torch.zeros_like(values[0])
    for value in values:
        elected += value
    elected.sign_()
    total, weight = torch.zeros_like(elected), torch.zeros_like(elected)
    # In 0 and 1 of the values' dtype: torch's arithmetic on floats is several times faster than its boolean masks.
    for value, w in zip(values, weights, strict=True):
        agrees = value.sign().mul_(elected).relu_()
        total.addcmul_(value, agrees)
        weight.add_(agrees, alpha=abs(w))
    return total.div_(weight.clamp_(min=torch.finfo(weight.dtype).tiny))
