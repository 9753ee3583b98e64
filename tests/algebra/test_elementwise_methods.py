"""magnitude_prune, dare, ties and dare_ties against dense matrices in float64, and what they need in memory."""

import math
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import weft
from weft.algebra import Dare, DareTies, Linear, MagnitudePrune, Method, Ties, methods
from weft.algebra.drop import Dropped
from weft.algebra.rows import present_terms
from weft.errors import ConfigError
from weft.linalg import Limit, LowRank, Truncation

from .dense import dense, disjoint_mean, trimmed
from .values import adapter

WEIGHTS = (0.7, -0.2, 0.4)
Specification = Callable[[Sequence[LowRank | None], Sequence[float]], Tensor]


def factors(m: int, n: int, r: int, seed: int, scaling: float = 1.0, dtype: torch.dtype = torch.float64) -> LowRank:
    source = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(*shape, generator=source, dtype=torch.float64) for shape in ((m, r), (r, n)))
    return LowRank(B.to(dtype), A.to(dtype), scaling)


def some_terms(m: int = 23, n: int = 37, dtype: torch.dtype = torch.float64) -> list[LowRank]:
    return [
        factors(m, n, 3, 0, 2.0, dtype),
        factors(m, n, 1, 1, 0.5, dtype),
        factors(m, n, 4, 2, -1.0, dtype),
    ]


def masks(terms: Sequence[LowRank | None], weights: Sequence[float], density: float, seed: int) -> list[Tensor]:
    """Which entries stay, as 0 and 1: read off all-one matrices in the terms' places."""
    ones = [
        None if term is None else LowRank(torch.ones(term.shape[0], 1), torch.ones(1, term.shape[1])) for term in terms
    ]
    present = iter(present_terms(ones, [1.0] * len(weights)))
    whole = slice(0, next(term.shape[0] for term in terms if term is not None))
    return [
        torch.zeros(()) if one is None else (Dropped(next(present), density, seed, "x").read(whole) != 0).double()
        for one in ones
    ]


def pruned_sum(terms: Sequence[LowRank | None], weights: Sequence[float]) -> Tensor:
    return sum(trimmed(M, 0.3) for M in dense(terms, weights))


def dropped_sum(terms: Sequence[LowRank | None], weights: Sequence[float]) -> Tensor:
    kept = masks(terms, weights, 0.4, 7)
    return sum(M * mask / 0.4 for M, mask in zip(dense(terms, weights), kept, strict=True))


def trimmed_mean(terms: Sequence[LowRank | None], weights: Sequence[float]) -> Tensor:
    return disjoint_mean([trimmed(M, 0.3) for M in dense(terms, weights)], weights)


def dropped_mean(terms: Sequence[LowRank | None], weights: Sequence[float]) -> Tensor:
    kept = masks(terms, weights, 0.4, 7)
    dropped = [M * mask / 0.4 for M, mask in zip(dense(terms, weights), kept, strict=True)]
    return disjoint_mean(dropped, weights)


METHODS: list[tuple[Method, Specification]] = [
    (MagnitudePrune(density=0.3), pruned_sum),
    (Dare(density=0.4, seed=7), dropped_sum),
    (Ties(density=0.3), trimmed_mean),
    (DareTies(density=0.4, seed=7), dropped_mean),
]
every_method = pytest.mark.parametrize(("method", "specification"), METHODS, ids=[m.name for m, _ in METHODS])


def merge(method: Method, terms: Sequence[LowRank | None], weights: Sequence[float], **limit: Any) -> Truncation:
    return method.merge("x", terms, weights, Limit(**limit) if limit else None)


@every_method
@pytest.mark.parametrize("shape", [(23, 37), (40, 11), (1, 9), (300, 1100)])
def test_at_full_rank_it_is_the_dense_formula(
    method: Method, specification: Specification, shape: tuple[int, int]
) -> None:
    terms = some_terms(*shape)
    merged = merge(method, terms, WEIGHTS, rank=min(shape))
    expected = specification(terms, WEIGHTS)
    assert_close(merged.value.dense(), expected, rtol=0, atol=1e-10 * float(expected.norm()))
    assert merged.relative_error < 1e-10


@every_method
def test_a_lower_rank_is_near_the_best_and_says_how_far_it_is(method: Method, specification: Specification) -> None:
    terms = some_terms(90, 70)
    expected = specification(terms, WEIGHTS)
    S = torch.linalg.svdvals(expected)
    for limit, rank in (({"rank": 5}, 5), ({}, 8)):  # without a limit, the sum of the ranks
        merged = merge(method, terms, WEIGHTS, **limit)
        assert merged.value.rank == rank
        error = float((merged.value.dense() - expected).norm() / expected.norm())
        assert merged.relative_error == pytest.approx(error, rel=1e-9)
        assert error <= 1.01 * float(S[rank:].norm() / S.norm())


@every_method
def test_an_error_or_an_energy_is_kept(method: Method, specification: Specification) -> None:
    terms = some_terms()
    expected = specification(terms, WEIGHTS)
    for limit, allowed in (({"error": 0.3}, 0.3), ({"energy": 0.9}, math.sqrt(0.1))):
        merged = merge(method, terms, WEIGHTS, **limit)
        assert float((merged.value.dense() - expected).norm() / expected.norm()) <= allowed
        assert merged.value.rank < 23


@every_method
def test_float32_and_bfloat16_are_computed_in_float32(method: Method, specification: Specification) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        terms = some_terms(dtype=dtype)
        merged = merge(method, terms, WEIGHTS, rank=23)
        expected = specification([term.to(dtype=torch.float32) for term in terms], WEIGHTS)
        assert merged.value.dtype == torch.float32
        assert_close(merged.value.dense(torch.float64), expected, rtol=0, atol=1e-5 * float(expected.norm()))


@every_method
def test_a_module_that_an_adapter_leaves_alone_is_a_zero_matrix(method: Method, specification: Specification) -> None:
    first, _, last = some_terms()
    zero = LowRank(torch.zeros(23, 1, dtype=torch.float64), torch.zeros(1, 37, dtype=torch.float64))
    missing = merge(method, [first, None, last], WEIGHTS, rank=23)
    assert_close(missing.value.dense(), merge(method, [first, zero, last], WEIGHTS, rank=23).value.dense())
    assert_close(missing.value.dense(), specification([first, None, last], WEIGHTS))


@every_method
def test_weights_of_zero_and_matrices_of_zero_merge_to_zero(method: Method, specification: Specification) -> None:
    merged = merge(method, some_terms(), [0.0, 0.0, 0.0])
    assert merged.value.norm() == 0
    assert merged.relative_error == 0


@pytest.mark.parametrize("method", [MagnitudePrune(density=1.0), Dare(density=1)])
@pytest.mark.parametrize("limit", [{}, {"rank": 2}])
def test_density_one_is_linear(method: Method, limit: dict[str, Any]) -> None:
    found, expected = (merge(m, some_terms(), WEIGHTS, **limit) for m in (method, Linear()))
    assert_close(found.value.dense(), expected.value.dense())
    assert found.relative_error == pytest.approx(expected.relative_error)


@pytest.mark.parametrize("method", [Ties(density=1.0), DareTies(density=1.0)])
@pytest.mark.parametrize("weight", [1.0, 0.3, 5.0])
def test_one_adapter_and_density_one_is_that_adapter(method: Method, weight: float) -> None:
    term = some_terms()[0]
    merged = merge(method, [term], [weight])
    assert merged.value.rank == term.rank
    assert_close(merged.value.dense(), term.dense())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([3.0, 0.1]))
def test_ties_is_symmetric_and_homogeneous(seed: int, density: float, factor: float) -> None:
    a, b = factors(9, 7, 2, seed), factors(9, 7, 3, seed + 1)

    def ties(terms: list[LowRank], weights: list[float]) -> Tensor:
        return merge(Ties(density), terms, weights, rank=7).value.dense()

    merged = ties([a, b], [0.6, 0.4])
    assert_close(ties([b, a], [0.4, 0.6]), merged)
    assert_close(ties([a, b], [0.6 * factor, 0.4 * factor]), merged)
    assert_close(ties([factor * a, factor * b], [0.6, 0.4]), factor * merged)
    assert_close(ties([-a, -b], [0.6, 0.4]), -merged)
    assert_close(ties([-a, b], [-0.6, 0.4]), merged)


def test_a_low_rank_of_what_dare_leaves_is_nearer_to_the_change_than_that_is() -> None:
    term = factors(300, 300, 4, 0, dtype=torch.float32)
    merged = merge(Dare(density=0.25), [term], [1.0])
    distance = float((merged.value - term).norm() / term.norm())
    assert distance < 0.5 * math.sqrt((1 - 0.25) / 0.25)  # the dropped matrix itself lies that far
    assert merged.relative_error == pytest.approx(math.sqrt(1 - 0.25), rel=0.05)


class Largest(TorchDispatchMode):
    """Records the most entries of any tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return made


@every_method
def test_the_dense_change_is_never_formed(method: Method, specification: Specification) -> None:
    m = n = 1400
    terms = [factors(m, n, 2, seed, dtype=torch.float32) for seed in range(3)]
    with Largest() as largest:
        tracemalloc.start()  # numpy reports what it holds
        merge(method, terms, WEIGHTS)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert 0 < largest.entries <= 2**18
    assert peak < m * n  # a quarter of the bytes of one change


@pytest.mark.parametrize("name", ["magnitude_prune", "dare", "ties", "dare_ties"])
def test_adapters_are_combined_by_name_and_say_so(name: str) -> None:
    a = adapter(0, {"layers.0.q": 3, "layers.0.k": 2})
    b = adapter(1, {"layers.0.q": 2, "layers.1.mlp": 1}, scaling=-2.0)
    merged = weft.combine([a, b], name, [0.5, 0.5])
    assert merged.factors.keys() == a.factors.keys() | b.factors.keys()
    method = methods[name]()
    for path, value in merged.factors.items():
        terms = [each.factors.get(path) for each in (a, b)]
        assert_close(value.dense(), method.merge(path, terms, [0.5, 0.5], None).value.dense())
    assert merged.provenance["lineage"]["method"] == method.to_plain()
    again = weft.combine([a, b], name, [0.5, 0.5])
    for path, value in merged.factors.items():
        assert torch.equal(again.factors[path].B, value.B)


def test_a_rank_above_the_sum_of_the_ranks_is_possible() -> None:
    a, b = adapter(0, {"layers.0.q": 1}), adapter(1, {"layers.0.q": 1})
    assert weft.combine([a, b], "ties", rank=4).factors["layers.0.q"].rank == 4
    with pytest.raises(ConfigError, match=r"rank: 6 is more than any module can have \(5\)"):
        weft.combine([a, b], "ties", rank=6)


@pytest.mark.parametrize("kind", [MagnitudePrune, Dare, Ties, DareTies])
@pytest.mark.parametrize("density", [0, -0.1, 1.1, math.nan, "0.5", True])
def test_a_density_that_cannot_be(kind: Any, density: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^density: expected the share of entries to keep, above 0 and up to 1, found"
    ):
        kind(density=density)


@pytest.mark.parametrize("kind", [Dare, DareTies])
@pytest.mark.parametrize("seed", [-1, 0.5, True, "0"])
def test_a_seed_that_cannot_be(kind: Any, seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"^seed: expected a whole number of at least 0, found"):
        kind(seed=seed)
