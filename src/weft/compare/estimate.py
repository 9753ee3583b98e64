"""The mean over seeds and its interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        values: one for each seed.
        mean: theirs.
        half: half the width of the 95% interval of the mean by Student's t; None of one value.
    """

    values: tuple[float, ...]
    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """From one value for each seed."""
        count = len(values)
        half = None
        if count > 1:
            t = float(stdtrit(count - 1, (1 + LEVEL) / 2))
            half = t * statistics.stdev(values) / math.sqrt(count)
        return cls(tuple(values), statistics.fmean(values), half)

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value; without an interval, none but the mean."""
        return abs(value - self.mean) <= (self.half or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        interval = None if self.half is None else [self.mean - self.half, self.mean + self.half]
        return {"values": list(self.values), "mean": self.mean, "interval": interval}
