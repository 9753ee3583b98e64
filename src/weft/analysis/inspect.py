"""The numbers of an adapter, from its factors alone: no base, and no matrix of a layer's size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from weft.adapter import Adapter
from weft.algebra.finite import is_finite
from weft.analysis.spectrum import Spectrum
from weft.errors import ConfigError
from weft.patterns import open_index


@dataclass(frozen=True)
class ModuleNumbers:
    """One module's change, D = s B A.

    Attributes:
        path: the module.
        kind: how D lies in its weight (see `weft.Layout`).
        shape: (out, in) of D.
        rank: the inner size of B A.
        scaling: s.
        spectrum: the singular values of D, its norms and ranks.
        magnitude: the mean of its trained magnitudes, of a variant that has them; D is then the change before the
            weight is scaled to them.
        nbytes: the size of its factors and magnitudes; 0 where another module's are shared.
    """

    path: str
    kind: str
    shape: tuple[int, int]
    rank: int
    scaling: float
    spectrum: Spectrum
    magnitude: float | None
    nbytes: int

    @property
    def name(self) -> str:
        """The module's path with its block's index left open."""
        return open_index(self.path)


@dataclass(frozen=True)
class AdapterNumbers:
    """An adapter's numbers.

    Attributes:
        modules: of each factor pair, in the order of their blocks.
        tensors: name -> bytes of the tensors trained whole.
        companions: path -> bytes of the small modules beside layers.
    """

    modules: tuple[ModuleNumbers, ...]
    tensors: Mapping[str, int]
    companions: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The size of everything that was trained."""
        return sum(m.nbytes for m in self.modules) + sum(self.tensors.values()) + sum(self.companions.values())

    @property
    def norm(self) -> float:
        """The Frobenius norm of all changes together."""
        return math.hypot(*(m.spectrum.norm for m in self.modules))

    def by_name(self) -> dict[str, list[ModuleNumbers]]:
        """The modules, those together that differ only in their block's index."""
        groups: dict[str, list[ModuleNumbers]] = {}
        for m in self.modules:
            groups.setdefault(m.name, []).append(m)
        return groups


@torch.no_grad()
def inspect(adapter: Adapter) -> AdapterNumbers:
    """The numbers of an adapter. Costs O((out + in) r^2) a module.

    Raises:
        ConfigError: factors or magnitudes hold NaN or infinity.
    """
    _check_finite(adapter)
    spectra: dict[int, Spectrum] = {}
    modules = []
    for path in sorted(adapter.factors, key=_in_order):
        factors = adapter.factors[path]
        shared = id(factors) in spectra
        if not shared:
            spectra[id(factors)] = Spectrum.of(factors)
        magnitude = adapter.magnitudes.get(path)
        nbytes = factors.B.nbytes + factors.A.nbytes + (0 if magnitude is None else magnitude.nbytes)
        modules.append(
            ModuleNumbers(
                path,
                adapter.layouts[path].kind,
                factors.shape,
                factors.rank,
                factors.scaling,
                spectra[id(factors)],
                None if magnitude is None else float(magnitude.float().mean()),
                0 if shared else nbytes,
            )
        )
    companions: dict[str, int] = {}
    for key, tensor in adapter.companions.items():
        path = key.rpartition(".")[0]
        companions[path] = companions.get(path, 0) + tensor.nbytes
    return AdapterNumbers(tuple(modules), {name: t.nbytes for name, t in adapter.tensors.items()}, companions)


def _in_order(path: str) -> list[tuple[int, str]]:
    """Sorts paths by their parts, indices by their size: block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _check_finite(adapter: Adapter) -> None:
    tensors = {f"{path} ({name})": getattr(f, name) for path, f in adapter.factors.items() for name in "BA"}
    tensors |= {f"{path} (magnitude)": m for path, m in adapter.magnitudes.items()}
    tensors |= adapter.companions
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise ConfigError(
            f"{len(bad)} of the adapter's {len(tensors)} tensors hold NaN or infinity, first {bad[0]}: the training "
            "diverged, or the file is damaged; take an earlier checkpoint, or train with a lower learning rate"
        )
