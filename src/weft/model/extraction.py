"""What an extraction found: what the adapter keeps of each change, and what it leaves out."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weft.adapter import Adapter
from weft.model.difference import Sizes


@dataclass(frozen=True)
class ExtractedModule:
    """One weight that got factors.

    Attributes:
        modules: the paths of the modules that hold it; several where it is tied.
        rank: the factors' rank.
        sizes: ||D||_F of its change D, and ||W||_F of the base's weight.
        relative_error: ||D - s B A||_F / ||D||_F, the rounding to the factors' dtype included.
    """

    modules: tuple[str, ...]
    rank: int
    sizes: Sizes
    relative_error: float

    @property
    def energy(self) -> float:
        """The share of ||D||_F^2 that is kept."""
        return max(1 - self.relative_error**2, 0.0)


@dataclass(frozen=True)
class LeftOut:
    """A tensor that changed and is not in the adapter.

    Attributes:
        sizes: the norms of its change and of the base's tensor; None for whole numbers and quantised forms.
        reason: why.
    """

    sizes: Sizes | None
    reason: str


@dataclass(frozen=True)
class Extraction:
    """An extracted adapter, and how near it is.

    Attributes:
        adapter: the adapter.
        modules: path of the first module that holds a weight -> what was kept of its change.
        carried: name of a tensor -> the norms of its change, of those that the adapter holds whole.
        left_out: name of a tensor -> its change, of those that the adapter does not hold.
        unchanged: how many tensors are the base's.
        rounding: about which part of the norm of the whole change is the rounding of half-precision files: noise, that
            no low rank holds. An estimate, from the size of the weights.
    """

    adapter: Adapter
    modules: Mapping[str, ExtractedModule]
    carried: Mapping[str, Sizes]
    left_out: Mapping[str, LeftOut]
    unchanged: int
    rounding: float

    @property
    def norm(self) -> float:
        """||D||_F of the whole change."""
        return self._whole.change

    @property
    def relative_change(self) -> float:
        """||D||_F / ||W||_F over the tensors that changed."""
        return self._whole.relative

    @property
    def relative_error(self) -> float:
        """What the adapter lacks of the whole change, ||D - D'||_F / ||D||_F, with all that is left out."""
        lost = [module.sizes.change * module.relative_error for module in self.modules.values()]
        return math.hypot(*lost, self._missed.change) / (self.norm or 1.0)

    @property
    def energy_left_out(self) -> float:
        """The share of ||D||_F^2 in tensors that the adapter does not hold at all."""
        return (self._missed.change / (self.norm or 1.0)) ** 2

    @property
    def _whole(self) -> Sizes:
        return _together([*(module.sizes for module in self.modules.values()), *self.carried.values(), self._missed])

    @property
    def _missed(self) -> Sizes:
        return _together(missed.sizes for missed in self.left_out.values() if missed.sizes is not None)


def _together(parts: Iterable[Sizes]) -> Sizes:
    changes, bases = zip(*parts, strict=True) if (parts := list(parts)) else ((), ())
    return Sizes(math.hypot(*changes), math.hypot(*bases))
