"""Matrices, and nothing about models: rank, factorizations, truncation, subspaces and factored matrices."""

from weft.linalg.exact import (
    Minor,
    determinant,
    exact_rank,
    exact_rank_factorization,
    first_minor,
    matrix_of_minors,
    minor,
    minors,
    rank_by_minors,
)
from weft.linalg.factored import LowRank, Truncation
from weft.linalg.factorize import LU, QR, SVD, RankFactorization, lu, qr, rank_factorization, svd
from weft.linalg.krylov import CosineBounds, largest_cosines, leading_svd
from weft.linalg.limit import Limit
from weft.linalg.rank import effective_rank, numerical_rank, stable_rank
from weft.linalg.row_blocks import RandomizedSVD, RowBlocks, randomized_svd, randomized_svd_of_blocks
from weft.linalg.subspace import principal_angles, subspace_similarity, subspace_similarity_grid
from weft.linalg.truncated import BestRank, best_rank

__all__ = [
    "LU",
    "QR",
    "SVD",
    "BestRank",
    "CosineBounds",
    "Limit",
    "LowRank",
    "Minor",
    "RandomizedSVD",
    "RankFactorization",
    "RowBlocks",
    "Truncation",
    "best_rank",
    "determinant",
    "effective_rank",
    "exact_rank",
    "exact_rank_factorization",
    "first_minor",
    "largest_cosines",
    "leading_svd",
    "lu",
    "matrix_of_minors",
    "minor",
    "minors",
    "numerical_rank",
    "principal_angles",
    "qr",
    "randomized_svd",
    "randomized_svd_of_blocks",
    "rank_by_minors",
    "rank_factorization",
    "stable_rank",
    "subspace_similarity",
    "subspace_similarity_grid",
    "svd",
]
