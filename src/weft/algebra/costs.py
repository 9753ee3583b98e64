"""What a reduction cost: relative Frobenius errors, for each module and overall."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from weft.adapter import Adapter
from weft.linalg import LowRank, Truncation


@dataclass(frozen=True)
class ModuleCost:
    """One module.

    Attributes:
        rank_before: the inner size of what went in, summed over the adapters.
        rank: that of the result.
        norm: ||D||_F of the exact result.
        relative_error: ||D - D'||_F / ||D||_F, D' being what was kept.
    """

    rank_before: int
    rank: int
    norm: float
    relative_error: float

    @classmethod
    def of(cls, rank_before: int, kept: Truncation) -> "ModuleCost":
        """The cost of a truncation, which is a projection: ||D||^2 = ||D'||^2 + ||D - D'||^2."""
        # By the Gram matrices of the factors, not their QR: quick, and good to the digits that anybody reads.
        norm = math.sqrt(max(float(kept.value.inner(kept.value)), 0.0)) / math.sqrt(1 - kept.relative_error**2)
        return cls(rank_before, kept.value.rank, norm, kept.relative_error)


@dataclass(frozen=True)
class Costs:
    """All modules.

    Attributes:
        modules: module path -> its cost.
        factors: module path -> what was kept; modules that share a weight share it, and count once.
    """

    modules: Mapping[str, ModuleCost]
    factors: Mapping[str, LowRank]

    @property
    def relative_error(self) -> float:
        """||D - D'||_F / ||D||_F of the whole change; 0 for one that is zero."""
        distinct = {id(self.factors[path]): cost for path, cost in self.modules.items()}.values()
        norm = math.hypot(*(cost.norm for cost in distinct))
        return math.hypot(*(cost.norm * cost.relative_error for cost in distinct)) / norm if norm else 0.0


@dataclass(frozen=True)
class Costed:
    """A new adapter, and what it cost to reduce it to its ranks."""

    adapter: Adapter
    costs: Costs
