"""What a sampler that puts rows of like length together asks of a data set."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class KnowsLengths(Protocol):
    """A data set that can say how long its rows are without making them."""

    @property
    def lengths(self) -> list[int]:
        """Of each row, in whatever unit."""
        ...
