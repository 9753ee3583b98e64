"""What a reduction cost: relative Frobenius errors, for each module and overall."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from weft.adapter import Adapter
from weft.linalg import LowRank


@dataclass(frozen=True, eq=False)
class ModuleCost:
    """One module.

    Attributes:
        rank_before: the inner size of what went in, summed over the adapters.
        kept: D', what became of the exact result D.
        relative_error: ||D - D'||_F / ||D||_F.
    """

    rank_before: int
    kept: LowRank
    relative_error: float

    @cached_property
    def norm(self) -> float:
        """||D||_F: D' is a projection of D, so that ||D||^2 = ||D'||^2 + ||D - D'||^2."""
        # By the Gram matrices of the factors, not their QR: quick, and good to the digits that anybody reads.
        return math.sqrt(max(float(self.kept.inner(self.kept)), 0.0)) / math.sqrt(1 - self.relative_error**2)

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {
            "rank_before": self.rank_before,
            "rank": self.kept.rank,
            "norm": self.norm,
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True)
class Costs:
    """All modules.

    Attributes:
        modules: module path -> its cost; modules that share a weight share it.
    """

    modules: Mapping[str, ModuleCost]

    @property
    def relative_error(self) -> float:
        """||D - D'||_F / ||D||_F of the whole change, in which shared weights count once; 0 for one that is zero."""
        distinct = {id(cost): cost for cost in self.modules.values()}.values()
        norm = math.hypot(*(cost.norm for cost in distinct))
        return math.hypot(*(cost.norm * cost.relative_error for cost in distinct)) / norm if norm else 0.0


@dataclass(frozen=True)
class Costed:
    """A new adapter, and what it cost to reduce it to its ranks."""

    adapter: Adapter
    costs: Costs
