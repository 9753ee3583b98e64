"""`Adapter`: a LoRA adapter as a value. Files, algebra, analysis and servers speak only of this.

An adapter holds its configuration, a factor pair for each adapted module, the other tensors that were
trained, the fingerprint of the base it was made for, and where it came from. Only `weft.model` ties it
to a live model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from weft.config import LoRAConfig
from weft.errors import ConfigError
from weft.fingerprint import Fingerprint
from weft.linalg import LowRank
from weft.registry import Registry


@dataclass(frozen=True)
class Layout:
    """How the matrix of a factor pair lies in the weight that it changes.

    | kind | B | A | the matrix B A |
    |---|---|---|---|
    | linear | (out, r) | (r, in) | the map (out, in); GPT-2's Conv1D stores its transpose |
    | embedding | (V, r) | (r, d) | the table (V, d) itself |
    | conv | (out, r) | (r, in/groups * prod(kernel)) | the weight (out, in/groups, *kernel), flattened |

    Attributes:
        kind: the layer kind's name.
        kernel: the kernel's size, for a convolution.
        groups: the convolution's groups.
    """

    kind: str = "linear"
    kernel: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA adapter.

    Attributes:
        config: what was asked for; the ranks and scalings that hold are those of `factors`.
        factors: module path -> factor pair, the change s B A of that module's weight.
        layouts: module path -> how that change lies in the weight; the same keys as `factors`.
        tensors: parameter path -> tensor trained as a whole (biases, classifier heads). The weight of a module with
            factors is no trained tensor but a copy of the base's, as some files bring one: attaching checks it.
        magnitudes: module path -> one trained number for each output, of a variant such as DoRA that has them.
        base: the base's fingerprint, if it is known.
        provenance: plain values about the origin: the base's name, the task, the weft version.
    """

    config: LoRAConfig
    factors: Mapping[str, LowRank]
    layouts: Mapping[str, Layout]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    base: Fingerprint | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unequal = self.factors.keys() ^ self.layouts.keys()
        if unequal:
            raise ConfigError(f"factors and layouts name different modules, first {min(unequal)!r}; give each one both")
        strays = self.magnitudes.keys() - self.factors.keys()
        if strays:
            raise ConfigError(f"magnitudes: {min(strays)!r} has no factors; name modules that have them")

    @property
    def num_parameters(self) -> int:
        """The number of trained values."""
        pairs = sum(f.B.numel() + f.A.numel() for f in self.factors.values())
        return pairs + sum(t.numel() for t in self._beside())

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        pairs = sum(f.B.nbytes + f.A.nbytes for f in self.factors.values())
        return pairs + sum(t.nbytes for t in self._beside())

    def _beside(self) -> Iterator[Tensor]:
        """What was trained beside the factors."""
        yield from self.tensors.values()
        yield from self.magnitudes.values()

    def save(self, path: str | Path, format: str = "peft") -> Path:
        """Writes the adapter to `path`, complete or not at all, and returns the path.

        Args:
            path: the folder (or file, as the format has it) to write.
            format: a registered file format.

        Raises:
            FormatError: the format cannot hold this adapter, or the disk did not take it.
            ConfigError: there is no such format.
        """
        return file_formats[format].save(self, Path(path))

    def __repr__(self) -> str:
        ranks = sorted({f.rank for f in self.factors.values()})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no factors"
        return f"Adapter({len(self.factors)} modules, {rank}, {self.num_parameters:,} parameters)"


class FileFormat(Protocol):
    """A file format of adapters; register one in `file_formats`."""

    def recognises(self, path: Path) -> bool:
        """Whether what stands at `path` looks like this format."""

    def save(self, adapter: Adapter, path: Path) -> Path:
        """Writes an adapter, complete or not at all."""

    def load(self, path: Path) -> Adapter:
        """Reads an adapter, complete or not at all."""


file_formats: Registry[FileFormat] = Registry("file format", home="weft.formats")
