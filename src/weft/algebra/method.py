"""What a merge method is: how the changes of one module by several adapters become one.

A method is a tagged value whose settings are its fields, registered under the name by which files and the command
line spell it. A new one is one file:

    @methods.register("mine")
    @dataclass(frozen=True)
    class Mine(Method):
        name: ClassVar[str] = "mine"

        def merge(self, path, terms, weights, limit): ...
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from weft.config import Choice
from weft.errors import ConfigError
from weft.linalg import LowRank, Truncation
from weft.registry import Registry


@dataclass(frozen=True)
class Limit:
    """How far a change may be reduced: exactly one of the three is given; see `LowRank.truncate`.

    Attributes:
        rank: keep at most this many singular values.
        energy: keep the fewest whose squares sum to this share of all.
        error: keep the fewest with a relative Frobenius error of at most this.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "error") if getattr(self, name) is not None]
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
        return {name: value for name, value in asdict(self).items() if value is not None}

    def truncate(self, value: LowRank) -> Truncation:
        """The nearest matrix within the limit, and the relative error that it cost."""
        return value.truncate(rank=self.rank, energy=self.energy, error=self.error)


class Method(Choice, ABC):
    """A merge method."""

    @abstractmethod
    def merge(
        self, path: str, terms: Sequence[LowRank | None], weights: Sequence[float], limit: Limit | None
    ) -> Truncation:
        """One module's combined change.

        Args:
            path: the module.
            terms: its change (out, in) by each adapter, in order; None where an adapter leaves it alone. At least one
                is there.
            weights: one for each term.
            limit: how far the result may be reduced; None for what the method does by itself.

        Returns:
            The change, and its relative Frobenius distance from what the method means without a limit.
        """


methods: Registry[type[Method]] = Registry("merge method", home="weft.algebra")


def weighted_terms(terms: Sequence[LowRank | None], weights: Sequence[float]) -> LowRank:
    """The weighted sum, exactly: the factors side by side. Terms of weight 0 are left out, if others remain."""
    present = [(term, weight) for term, weight in zip(terms, weights, strict=True) if term is not None]
    first, *others = (weight * term for term, weight in [p for p in present if p[1] != 0] or present[:1])
    return first.concat(*others) if others else first
