"""Rank, minors and rank factorization in exact arithmetic, for matrices of integers and fractions.

A matrix here is a nested sequence of `int` and `Fraction`, or a two-dimensional integer tensor; indices
count from 0. No rounding happens anywhere, so a zero is a zero: the rank is a fact about the matrix, with
no tolerance. A float is refused, because a float that was rounded once has lost that fact.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from math import lcm, prod
from numbers import Rational
from typing import NamedTuple

import torch
from torch import Tensor

from weft.errors import ConfigError

ExactMatrix = Sequence[Sequence[int | Fraction]] | Tensor


class Minor(NamedTuple):
    """The determinant of the square submatrix on these rows and columns."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    value: Fraction


def determinant(matrix: ExactMatrix) -> Fraction:
    """The determinant of a square matrix, by fraction-free elimination (Bareiss, 1968): O(n^3) operations."""
    rows = _square(_fractions(matrix), "determinant")
    return _determinant(rows)


def minor(matrix: ExactMatrix, rows: Sequence[int], columns: Sequence[int]) -> Fraction:
    """The minor on the kept `rows` and `columns`: the determinant of what stands where they cross.

    Both are strictly increasing and equally long; that length is the order of the minor.
    """
    entries = _fractions(matrix)
    _check_selection(rows, len(entries), "rows")
    _check_selection(columns, len(entries[0]), "columns")
    if len(rows) != len(columns):
        raise ConfigError(f"a minor keeps as many rows as columns, found {len(rows)} rows and {len(columns)} columns")
    return _determinant(_submatrix(entries, rows, columns))


def first_minor(matrix: ExactMatrix, i: int, j: int) -> Fraction:
    """M_ij of a square matrix: the determinant of what is left when row i and column j are struck out."""
    entries = _square(_fractions(matrix), "first_minor")
    _check_selection([i], len(entries), "rows")
    _check_selection([j], len(entries), "columns")
    return _first_minor(entries, i, j)


def matrix_of_minors(matrix: ExactMatrix) -> list[list[Fraction]]:
    """The n x n matrix whose entry (i, j) is `first_minor(matrix, i, j)`.

    With the signs (-1)^(i + j) it is the cofactor matrix. For a 1 x 1 matrix it is [[1]], the empty determinant.
    """
    entries = _square(_fractions(matrix), "matrix_of_minors")
    n = len(entries)
    return [[_first_minor(entries, i, j) for j in range(n)] for i in range(n)]


def minors(matrix: ExactMatrix, order: int) -> Iterator[Minor]:
    """Every minor of this order, rows and columns in lexicographic order.

    An m x n matrix has C(m, order) * C(n, order) of them, so they are computed as they are asked for.
    """
    entries = _fractions(matrix)
    m, n = len(entries), len(entries[0])
    if not 1 <= order <= min(m, n):
        raise ConfigError(f"order is {order}, expected 1 to {min(m, n)} for a matrix of shape {(m, n)}")
    return (
        Minor(rows, columns, _determinant(_submatrix(entries, rows, columns)))
        for rows in combinations(range(m), order)
        for columns in combinations(range(n), order)
    )


def rank_by_minors(matrix: ExactMatrix) -> int:
    """The rank by its definition: the largest order at which some minor is not zero (0 for a zero matrix).

    Exponential in the size of the matrix, and there to be read; `exact_rank` gives the same number fast.
    """
    entries = _fractions(matrix)
    for order in range(min(len(entries), len(entries[0])), 0, -1):
        if any(found.value != 0 for found in minors(entries, order)):
            return order
    return 0


def exact_rank(matrix: ExactMatrix) -> int:
    """The rank, by fraction-free elimination (Bareiss, 1968): O(m n min(m, n)) integer operations."""
    return len(_eliminate(_integers(_fractions(matrix))[0]).pivots)


def exact_rank_factorization(matrix: ExactMatrix) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """C (m, r) and F (r, n), both of rank r, with M = C F exactly.

    C holds the pivot columns of M, F the nonzero rows of its reduced row echelon form. A zero matrix has
    rank 0, so its C has no columns and its F no rows.
    """
    entries = _fractions(matrix)
    echelon = _eliminate(_integers(entries)[0])
    C = [[row[j] for j in echelon.pivots] for row in entries]
    F = [[Fraction(x, echelon.pivot) for x in row] for row in echelon.rows[: len(echelon.pivots)]]
    return C, F


class _Echelon(NamedTuple):
    pivots: list[int]  # pivot columns
    pivot: int  # the value that stands at every pivot
    swap_sign: int
    rows: list[list[int]]  # rows / pivot is the reduced row echelon form


def _eliminate(rows: list[list[int]]) -> _Echelon:
    """Gauss-Jordan elimination over the integers.

    Every entry that appears is a minor of the input, which is why each division is exact and no entry grows
    beyond Hadamard's bound; plain cross-multiplication would double the digits at every step.
    """
    rows = [list(row) for row in rows]
    pivots: list[int] = []
    pivot, swap_sign = 1, 1
    for column in range(len(rows[0])):
        k = len(pivots)
        found = next((i for i in range(k, len(rows)) if rows[i][column] != 0), None)
        if found is None:
            continue
        if found != k:
            rows[k], rows[found] = rows[found], rows[k]
            swap_sign = -swap_sign
        previous, pivot = pivot, rows[k][column]
        for i, row in enumerate(rows):
            if i != k:
                factor = row[column]
                rows[i] = [(pivot * x - factor * y) // previous for x, y in zip(row, rows[k], strict=True)]
        pivots.append(column)
    return _Echelon(pivots, pivot, swap_sign, rows)


def _determinant(rows: list[list[Fraction]]) -> Fraction:
    if not rows:
        return Fraction(1)
    integers, denominator = _integers(rows)
    echelon = _eliminate(integers)
    if len(echelon.pivots) < len(rows):
        return Fraction(0)
    return Fraction(echelon.swap_sign * echelon.pivot, denominator)


def _first_minor(rows: list[list[Fraction]], i: int, j: int) -> Fraction:
    kept = range(len(rows))
    return _determinant(_submatrix(rows, [k for k in kept if k != i], [k for k in kept if k != j]))


def _submatrix(
    rows: list[list[Fraction]], kept_rows: Sequence[int], kept_columns: Sequence[int]
) -> list[list[Fraction]]:
    return [[rows[i][j] for j in kept_columns] for i in kept_rows]


def _integers(rows: list[list[Fraction]]) -> tuple[list[list[int]], int]:
    """Each row times the least common multiple of its denominators, and the product of these multiples."""
    scales = [lcm(*(x.denominator for x in row)) for row in rows]
    return [[int(x * scale) for x in row] for row, scale in zip(rows, scales, strict=True)], prod(scales)


def _fractions(matrix: ExactMatrix) -> list[list[Fraction]]:
    if isinstance(matrix, Tensor):
        if matrix.ndim != 2:
            raise ConfigError(f"the matrix has shape {tuple(matrix.shape)}, expected two dimensions")
        if matrix.is_floating_point() or matrix.is_complex() or matrix.dtype == torch.bool:
            raise ConfigError(
                f"exact arithmetic needs an integer tensor, found {matrix.dtype}; "
                "for floating point use weft.linalg.numerical_rank, which has a tolerance"
            )
        matrix = matrix.tolist()
    rows = [[_fraction(x, i, j) for j, x in enumerate(row)] for i, row in enumerate(matrix)]
    if not rows or not rows[0]:
        raise ConfigError("the matrix is empty, expected at least one row and one column")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ConfigError(f"row {i} has {len(row)} entries and row 0 has {len(rows[0])}; all must be as long")
    return rows


def _fraction(x: object, i: int, j: int) -> Fraction:
    if not isinstance(x, Rational):
        raise ConfigError(
            f"entry ({i}, {j}) is {x!r}, a {type(x).__name__}: exact arithmetic needs int or Fraction; "
            "for floating point use weft.linalg.numerical_rank, which has a tolerance"
        )
    # Through int: a NumPy integer would stay fixed-width inside the Fraction, and overflow.
    return Fraction(int(x.numerator), int(x.denominator))


def _square(rows: list[list[Fraction]], name: str) -> list[list[Fraction]]:
    if len(rows) != len(rows[0]):
        raise ConfigError(f"{name} needs a square matrix, found shape {(len(rows), len(rows[0]))}")
    return rows


def _check_selection(chosen: Sequence[int], size: int, name: str) -> None:
    increasing = all(a < b for a, b in pairwise(chosen))
    if not chosen or not increasing or chosen[0] < 0 or chosen[-1] >= size:
        raise ConfigError(f"{name} are {list(chosen)}, expected strictly increasing indices from 0 to {size - 1}")
