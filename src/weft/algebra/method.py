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
from typing import ClassVar

from weft.config import Choice
from weft.linalg import Limit, LowRank, Truncation
from weft.registry import Registry


class Method(Choice, ABC):
    """A merge method.

    Attributes:
        adds_ranks: whether a result's rank is at most the sum of the ranks that went in.
    """

    adds_ranks: ClassVar[bool] = True

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


def truncated(value: LowRank, limit: Limit) -> Truncation:
    """The nearest matrix within the limit, and the relative error that it costs."""
    return value.truncate(rank=limit.rank, energy=limit.energy, error=limit.error)
