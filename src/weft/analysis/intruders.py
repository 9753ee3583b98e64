"""Intruder dimensions: strong directions of W + D that are no direction of W.

Shuttleworth, Andreas, Torralba and Sharma, "LoRA vs full fine-tuning: an illusion of equivalence" (2024, arXiv
2410.21228): LoRA puts such singular vectors into the weights where full fine-tuning does not, and they go with
forgetting.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.errors import ConfigError
from weft.linalg import LowRank, leading_svd
from weft.linalg.krylov import CosineBounds, largest_cosines

DENSE = 512
"""Up to this smaller side, the SVDs are computed whole: exact, and quicker than anything else."""


@dataclass(frozen=True)
class Search:
    """What to look for: their algorithm's k and epsilon.

    Attributes:
        top: k, how many of the leading left singular vectors of W + D to look at.
        epsilon: an intruder's largest cosine similarity to any left singular vector of W is below this.

    Raises:
        ConfigError: top below 1, or epsilon outside 0 to 1.
    """

    top: int = 10
    epsilon: float = 0.5

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ConfigError(f"top is {self.top}, expected 1 or more singular vectors to look at")
        if not 0 < self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon}, expected a cosine above 0, at most 1")


@dataclass(frozen=True)
class Intruders:
    """The leading left singular vectors of W + D, each with its largest cosine similarity to one of W.

    Attributes:
        search: k and epsilon; k is at most min(out, in).
        singular_values: the leading k of W + D.
        cosines: of each of their left singular vectors, bounds of the largest absolute cosine. They are equal where
            the matrix is small or the vector is not an intruder; of an intruder, low < high < epsilon.
    """

    search: Search
    singular_values: tuple[float, ...]
    cosines: tuple[CosineBounds, ...]

    @property
    def count(self) -> int:
        """How many are intruders, for certain."""
        return sum(cosine.high < self.search.epsilon for cosine in self.cosines)

    @property
    def undecided(self) -> int:
        """How many could not be told: their bounds have epsilon between them."""
        return sum(cosine.low < self.search.epsilon <= cosine.high for cosine in self.cosines)


def intruders(W: Tensor, D: LowRank, search: Search) -> Intruders:
    """The intruder dimensions of W + D, for W (out, in), which is formed here.

    With min(out, in) <= 512 from whole SVDs. Above that no SVD is made: the leading vectors of W + D come from block
    Krylov iteration (`leading_svd`), the bounds from Lanczos (`largest_cosines`; what they leave out stands there).
    """
    k = min(search.top, *D.shape)
    changed = W + D.dense(W.dtype)
    if min(D.shape) <= DENSE:
        U, S, _ = torch.linalg.svd(changed, full_matrices=False)
        base = torch.linalg.svd(W, full_matrices=False).U
        exact = (base.T @ U[:, :k]).abs().amax(dim=0).clamp(max=1).tolist()
        return Intruders(search, tuple(S[:k].tolist()), tuple(CosineBounds(value, value) for value in exact))
    leading = leading_svd(changed, k)
    del changed  # before the search needs room of its own
    return Intruders(search, tuple(leading.S.tolist()), tuple(largest_cosines(W, leading.U, threshold=search.epsilon)))
