"""How alike adapters are, module by module, from their factors alone.

Subspaces are those of section 7.2 of the LoRA paper (arXiv 2106.09685): the span of the top i singular vectors of
one change against that of the top j of another. Here the vectors are those of D = s B A itself, on the side of its
inputs (right) and of its outputs (left); the paper takes the right ones of the factor A, which are the same at full
rank, but ordered by A alone, and so depend on how D happens to be factored.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.adapter import Adapter
from weft.analysis.inspect import AdapterNumbers
from weft.errors import BaseMismatchError, ConfigError
from weft.linalg import SVD, LowRank
from weft.linalg.factorize import count_nonzero
from weft.linalg.subspace import overlap_grid


@dataclass(frozen=True)
class ModuleSimilarity:
    """Two changes of one module, D1 and D2.

    Attributes:
        path: the module.
        ranks: the numerical ranks k1 and k2 of D1 and D2.
        cosine: <D1, D2> / (||D1|| ||D2||), from -1 to 1; None if either is zero.
        inputs: phi(D1, D2, k1, k2) of the right singular vectors, from 0 to 1: how much of the smaller of the two
            spaces of inputs lies in the larger; None if either change is zero.
        outputs: the same of the left singular vectors.
        chance_inputs, chance_outputs: what phi is for random subspaces on average, max(k1, k2) / n.
    """

    path: str
    ranks: tuple[int, int]
    cosine: float | None
    inputs: float | None
    outputs: float | None
    chance_inputs: float
    chance_outputs: float


@dataclass(frozen=True)
class PairSimilarity:
    """Two adapters.

    Attributes:
        first, second: their names.
        cosine: <D1, D2> / (||D1|| ||D2||) over all modules at once; a module that only one has counts as a change
            of zero in the other. None if an adapter is zero.
        inputs, outputs: the means of the modules' `inputs` and `outputs`; None where no module has any.
        modules: those that both adapters have.
        only_first, only_second: the paths that only one has.
    """

    first: str
    second: str
    cosine: float | None
    inputs: float | None
    outputs: float | None
    modules: tuple[ModuleSimilarity, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


@dataclass(frozen=True)
class SimilarityGrid:
    """phi(D1, D2, i, j) for every i and j: figure 3 of the paper for one module, and the reference of figure 4.

    Attributes:
        path: the module.
        first, second: the adapters' names.
        inputs: row i - 1, column j - 1: phi of the right singular vectors.
        outputs: of the left ones.
        chance: of the right singular vectors of two random Gaussian matrices of these shapes.
    """

    path: str
    first: str
    second: str
    inputs: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    chance: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Overlap:
    """Many adapters, each with each; rows and columns in the order of `names`.

    Attributes:
        names: the adapters.
        cosine: the matrix of `PairSimilarity.cosine`.
        inputs, outputs: those of the mean subspace similarities.
        pairs: each two, the earlier one first.
        grids: of chosen modules, the first adapter against each other one.
    """

    names: tuple[str, ...]
    cosine: tuple[tuple[float | None, ...], ...]
    inputs: tuple[tuple[float | None, ...], ...]
    outputs: tuple[tuple[float | None, ...], ...]
    pairs: tuple[PairSimilarity, ...]
    grids: tuple[SimilarityGrid, ...]


@torch.no_grad()
def compare(adapters: Mapping[str, Adapter], grids: Sequence[str] = (), *, any_base: bool = False) -> Overlap:
    """Compares each two of several adapters. Costs O((out + in) r^2) a module and pair; no matrix is formed.

    Args:
        adapters: name -> adapter, two or more.
        grids: modules to give whole grids of, where both adapters have them.
        any_base: compare adapters that were made for different bases, too.

    Raises:
        ConfigError: fewer than two adapters, a pair with no module in common, or a module that they change in
            different shapes.
        BaseMismatchError: two adapters were made for different bases.
    """
    if len(adapters) < 2:
        raise ConfigError(f"comparing takes two adapters or more, found {len(adapters)}")
    names = tuple(adapters)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    for a, b in pairs:
        _check_comparable(a, adapters[a], b, adapters[b], any_base)

    found: dict[tuple[str, str], list[ModuleSimilarity]] = {pair: [] for pair in pairs}
    inner = dict.fromkeys(pairs, 0.0)
    energy = dict.fromkeys(names, 0.0)
    drawn = []
    for path in dict.fromkeys(path for adapter in adapters.values() for path in adapter.factors):
        vectors = {name: _vectors(a.factors[path]) for name, a in adapters.items() if path in a.factors}
        for name, svd in vectors.items():
            energy[name] += float(svd.S.double().square().sum())
        for a, b in pairs:
            if a in vectors and b in vectors:
                similarity, product = _similarity(path, vectors[a], vectors[b])
                found[a, b].append(similarity)
                inner[a, b] += product
        if path in grids:
            drawn += list(_grids(path, names[0], vectors))

    similarities = tuple(
        PairSimilarity(
            a,
            b,
            _cosine(inner[a, b], energy[a], energy[b]),
            _mean(m.inputs for m in modules),
            _mean(m.outputs for m in modules),
            tuple(modules),
            tuple(path for path in adapters[a].factors if path not in adapters[b].factors),
            tuple(path for path in adapters[b].factors if path not in adapters[a].factors),
        )
        for (a, b), modules in found.items()
    )
    return Overlap(
        names,
        _matrix(names, {(p.first, p.second): p.cosine for p in similarities}, energy),
        _matrix(names, {(p.first, p.second): p.inputs for p in similarities}, energy),
        _matrix(names, {(p.first, p.second): p.outputs for p in similarities}, energy),
        similarities,
        tuple(drawn),
    )


def default_grids(numbers: AdapterNumbers) -> tuple[str, ...]:
    """The modules to show whole similarity grids of: of the two strongest kinds the first, middle and last block."""
    groups = numbers.by_name()
    strongest = sorted(groups, key=lambda name: -sum(m.spectrum.norm**2 for m in groups[name]))[:2]
    chosen = []
    for name in strongest:
        modules = groups[name]
        chosen += [modules[i].path for i in sorted({0, len(modules) // 2, len(modules) - 1})]
    return tuple(chosen)


def _check_comparable(a: str, first: Adapter, b: str, second: Adapter, any_base: bool) -> None:
    common = [path for path in first.factors if path in second.factors]
    if not common:
        examples = [next(iter(adapter.factors), "nothing") for adapter in (first, second)]
        raise ConfigError(
            f"{a} and {b} have no module in common: {a} changes {examples[0]!r} and others, {b} {examples[1]!r}; "
            "compare adapters of one base"
        )
    for path in common:
        if first.factors[path].shape != second.factors[path].shape:
            raise ConfigError(
                f"{path}: the change has shape {first.factors[path].shape} in {a} and {second.factors[path].shape} in "
                f"{b}; compare adapters of one base"
            )
    difference = first.base.difference(second.base) if first.base and second.base else None
    if difference is not None and not any_base:
        raise BaseMismatchError(
            f"{a} and {b} were made for different bases: in that of {b}, {difference}. Directions in one say nothing "
            "of the other; pass any_base (--any-base) to compare the numbers all the same"
        )


def _vectors(D: LowRank) -> SVD:
    """The singular triplets of D that are more than rounding; none of a zero D."""
    svd = D.svd()
    return svd.leading(int(count_nonzero(svd.S, D.shape, None)))


def _similarity(path: str, first: SVD, second: SVD) -> tuple[ModuleSimilarity, float]:
    """The similarity, and <D1, D2> = sum over i, j of s1_i s2_j (u1_i . u2_j) (v1_i . v2_j)."""
    k1, k2 = len(first.S), len(second.S)
    outputs = (first.U.T @ second.U.to(first.U.dtype)).double()
    inputs = (first.Vh @ second.Vh.to(first.Vh.dtype).T).double()
    product = float(first.S.double() @ (outputs * inputs) @ second.S.double())
    there = k1 > 0 and k2 > 0
    smaller = min(k1, k2)
    return ModuleSimilarity(
        path,
        (k1, k2),
        _cosine(product, float(first.S.double().square().sum()), float(second.S.double().square().sum())),
        min(1.0, float(inputs.square().sum()) / smaller) if there else None,
        min(1.0, float(outputs.square().sum()) / smaller) if there else None,
        max(k1, k2) / first.Vh.shape[1],
        max(k1, k2) / first.U.shape[0],
    ), product


def _grids(path: str, first: str, vectors: Mapping[str, SVD]) -> Iterator[SimilarityGrid]:
    one = vectors.get(first)
    for name, other in vectors.items():
        if one is None or name == first or not len(one.S) or not len(other.S):
            continue
        generator = torch.Generator().manual_seed(0)
        n = one.Vh.shape[1]
        # The singular vectors of a Gaussian matrix are uniform among orthonormal ones; so are those of its QR.
        random = [torch.linalg.qr(torch.randn(n, len(svd.S), generator=generator)).Q for svd in (one, other)]
        yield SimilarityGrid(
            path,
            first,
            name,
            _rows(overlap_grid(one.Vh @ other.Vh.to(one.Vh.dtype).T)),
            _rows(overlap_grid(one.U.T @ other.U.to(one.U.dtype))),
            _rows(overlap_grid(random[0].T @ random[1])),
        )


def _cosine(inner: float, energy1: float, energy2: float) -> float | None:
    if energy1 == 0 or energy2 == 0:
        return None
    return max(-1.0, min(1.0, inner / math.sqrt(energy1) / math.sqrt(energy2)))


def _mean(values: Iterator[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def _rows(grid: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in grid.clamp(max=1).tolist())


def _matrix(
    names: Sequence[str], values: Mapping[tuple[str, str], float | None], energy: Mapping[str, float]
) -> tuple[tuple[float | None, ...], ...]:
    """A symmetric matrix from the values of its pairs, with 1 on the diagonal (nothing for an adapter of zero)."""

    def entry(a: str, b: str) -> float | None:
        if a == b:
            return 1.0 if energy[a] > 0 else None
        return values[a, b] if (a, b) in values else values[b, a]

    return tuple(tuple(entry(a, b) for b in names) for a in names)
