"""The numbers of an adapter, from its factors alone: no base, and no matrix of a layer's size."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.adapter import Adapter
from weft.linalg import LowRank, effective_rank, stable_rank


@dataclass(frozen=True)
class ModuleNumbers:
    """One module's change, D = s B A.

    Attributes:
        path: the module.
        kind: how D lies in its weight (see `weft.Layout`).
        shape: (out, in) of D.
        rank: the inner size of B A.
        scaling: s.
        norm: ||D||_F.
        spectral_norm: ||D||_2, the largest factor by which D stretches an input.
        stable_rank: ||D||_F^2 / ||D||_2^2.
        effective_rank: exp of the entropy of D's singular values.
        magnitude: the mean of its trained magnitudes, of a variant that has them; D is then the change before the
            weight is scaled to them.
        nbytes: the size of its factors and magnitudes; 0 where another module's are shared.
    """

    path: str
    kind: str
    shape: tuple[int, int]
    rank: int
    scaling: float
    norm: float
    spectral_norm: float
    stable_rank: float
    effective_rank: float
    magnitude: float | None
    nbytes: int

    @property
    def name(self) -> str:
        """The module's path with its block's index left open."""
        return ".".join("*" if part.isdigit() else part for part in self.path.split("."))


@dataclass(frozen=True)
class AdapterNumbers:
    """An adapter's numbers.

    Attributes:
        modules: of each factor pair.
        tensors: name -> bytes of the tensors trained whole.
    """

    modules: tuple[ModuleNumbers, ...]
    tensors: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """The size of everything that was trained."""
        return sum(m.nbytes for m in self.modules) + sum(self.tensors.values())

    def by_name(self) -> dict[str, list[ModuleNumbers]]:
        """The modules, those together that differ only in their block's index."""
        groups: dict[str, list[ModuleNumbers]] = {}
        for m in self.modules:
            groups.setdefault(m.name, []).append(m)
        return groups


@torch.no_grad()
def inspect(adapter: Adapter) -> AdapterNumbers:
    """The numbers of an adapter. Costs O((out + in) r^2) a module."""
    measured: dict[int, tuple[float, float, float, float]] = {}
    modules = []
    for path, factors in adapter.factors.items():
        shared = id(factors) in measured
        if not shared:
            measured[id(factors)] = _measure(factors)
        norm, spectral, stable, effective = measured[id(factors)]
        magnitude = adapter.magnitudes.get(path)
        nbytes = factors.B.nbytes + factors.A.nbytes + (0 if magnitude is None else magnitude.nbytes)
        modules.append(
            ModuleNumbers(
                path,
                adapter.layouts[path].kind,
                factors.shape,
                factors.rank,
                factors.scaling,
                norm,
                spectral,
                stable,
                effective,
                None if magnitude is None else float(magnitude.float().mean()),
                0 if shared else nbytes,
            )
        )
    return AdapterNumbers(tuple(modules), {name: tensor.nbytes for name, tensor in adapter.tensors.items()})


def _measure(factors: LowRank) -> tuple[float, float, float, float]:
    """Frobenius and spectral norm, stable and effective rank, from one set of singular values."""
    S: Tensor = factors.singular_values()
    core = torch.diag(S)  # a small matrix with the same singular values
    return float(S.norm()), float(S.amax()), float(stable_rank(core)), float(effective_rank(core))
