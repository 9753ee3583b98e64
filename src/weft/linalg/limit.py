"""How much of a matrix to keep: a rank, a share of the energy, or a largest error; one of the three."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft.errors import ConfigError

# A relative error of so many eps is none: what rounding leaves of a residual that would be zero is 2 to 6 eps.
ROUNDING = 16


@dataclass(frozen=True)
class Limit:
    """How far a matrix may be reduced; exactly one of the three is given.

    Attributes:
        rank: keep at most this many singular values.
        energy: keep the fewest whose squares sum to at least this share of all, 0 < energy <= 1.
        error: keep the fewest with a relative Frobenius error of at most this, 0 <= error < 1.

    Raises:
        ConfigError: none or several are given, or one is out of its range.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        given = self.to_dict()
        if len(given) != 1:
            raise ConfigError(f"give exactly one of rank, energy and error; found {' and '.join(given) or 'none'}")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ConfigError(f"rank: expected a whole number of at least 1, found {self.rank!r}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy: expected a share above 0 and up to 1, found {self.energy!r}")
        if self.error is not None and not 0 <= self.error < 1:
            raise ConfigError(f"error: expected a relative error from 0 up to, but not, 1, found {self.error!r}")

    @classmethod
    def of(cls, rank: int | None, energy: float | None, error: float | None) -> "Limit | None":
        """The limit that is given, or None if none is."""
        return None if rank is energy is error is None else cls(rank, energy, error)

    def to_dict(self) -> dict[str, float]:
        """Which of the three it is, and its value."""
        all_three: dict[str, float | None] = {"rank": self.rank, "energy": self.energy, "error": self.error}
        return {name: value for name, value in all_three.items() if value is not None}

    def allows(self, error: float, rounding: float = 0.0) -> bool:
        """Whether a relative Frobenius error is small enough; for a rank, any is.

        Args:
            error: the error.
            rounding: an error that counts as none.
        """
        if self.rank is not None:
            return True
        # Energies are shares of squares.
        allowed = (1 - self.energy) ** 0.5 if self.energy is not None else self.error or 0.0
        return error <= max(allowed, rounding)

    def kept_rank(self, errors: Sequence[float], rounding: float = 0.0) -> int:
        """How many singular values to keep, one at least and never more than there are.

        Args:
            errors: entry k is the relative Frobenius error of keeping k singular values, k = 0 ... len(S).
            rounding: an error that counts as none.
        """
        most = len(errors) - 1
        if self.rank is not None:
            return min(self.rank, most)
        return next((k for k in range(1, most) if self.allows(errors[k], rounding)), most)


def truncation_errors(S: Sequence[float], missed: float = 0.0) -> list[float]:
    """Entry k is the relative Frobenius error of keeping the first k of these singular values, k = 0 ... len(S).

    Args:
        S: singular values, descending; not empty.
        missed: the norm of a part of the matrix that is orthogonal to what S belongs to, and always lost.
    """
    largest = max(S[0], missed) or 1.0
    tail = [(missed / largest) ** 2]
    # From the smallest up, and relative to the largest: nothing is lost or overflows, and no two sums subtract.
    for value in reversed(S):
        tail.append(tail[-1] + (value / largest) ** 2)
    total = tail[-1] or 1.0
    return [(x / total) ** 0.5 for x in reversed(tail)]
