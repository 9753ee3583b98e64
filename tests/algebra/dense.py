"""The merge methods' specification: the papers' formulas on dense matrices in float64, one line a step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from weft.linalg import LowRank


def dense(terms: Sequence[LowRank | None], weights: Sequence[float]) -> list[Tensor]:
    """w_j D_j, those missing as zeros."""
    shape = next(term.shape for term in terms if term is not None)
    return [
        torch.zeros(shape, dtype=torch.float64) if term is None else w * term.to(dtype=torch.float64).dense()
        for term, w in zip(terms, weights, strict=True)
    ]


def trimmed(M: Tensor, density: float) -> Tensor:
    """M with its round(density * size) entries of largest magnitude."""
    magnitudes = M.abs().flatten().sort(descending=True).values
    threshold = magnitudes[max(1, round(density * M.numel())) - 1]
    return torch.where(M.abs() >= threshold, M, 0.0)


def disjoint_mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of the values with the elected sign, entry by entry."""
    V = torch.stack(list(values))
    w = torch.tensor(weights, dtype=V.dtype).abs().view(-1, *[1] * (V.ndim - 1))
    agrees = (V.sign() == V.sum(dim=0).sign()) & (V != 0)
    return torch.where(agrees, V, 0.0).sum(dim=0) / torch.where(agrees, w, 0.0).sum(dim=0).clamp(min=1e-300)
