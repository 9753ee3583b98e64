from fractions import Fraction
from itertools import permutations
from math import comb, prod

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft import linalg
from weft.errors import ConfigError

ONE_TO_NINE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@st.composite
def exact_matrices(draw: st.DrawFn, square: bool = False) -> list[list[Fraction]]:
    """Small entries and repeated rows, so that deficient ranks are common."""
    m = draw(st.integers(1, 4))
    n = m if square else draw(st.integers(1, 4))
    entry = st.builds(Fraction, st.integers(-3, 3), st.sampled_from([1, 1, 2, 3]))
    rows = draw(st.lists(st.lists(entry, min_size=n, max_size=n), min_size=m, max_size=m))
    if m > 1 and draw(st.booleans()):
        rows[-1] = [2 * x for x in rows[0]]
    return rows


def leibniz(rows: list[list[Fraction]]) -> Fraction:
    """The determinant as the signed sum over all permutations."""
    n = len(rows)
    total = Fraction(0)
    for order in permutations(range(n)):
        inversions = sum(order[a] > order[b] for a in range(n) for b in range(a + 1, n))
        total += (-1) ** inversions * prod((rows[i][order[i]] for i in range(n)), start=Fraction(1))
    return total


def multiply(C: list[list[Fraction]], F: list[list[Fraction]]) -> list[list[Fraction]]:
    return [
        [sum((c * f for c, f in zip(row, column, strict=True)), Fraction(0)) for column in zip(*F, strict=True)]
        for row in C
    ]


@given(exact_matrices(square=True))
def test_determinant_is_leibniz_formula(rows: list[list[Fraction]]) -> None:
    assert linalg.determinant(rows) == leibniz(rows)


@given(exact_matrices())
def test_rank_by_elimination_is_rank_by_minors(rows: list[list[Fraction]]) -> None:
    assert linalg.exact_rank(rows) == linalg.rank_by_minors(rows)


@given(exact_matrices())
def test_rank_factorization_multiplies_back_and_both_factors_have_the_rank(rows: list[list[Fraction]]) -> None:
    rank = linalg.exact_rank(rows)
    C, F = linalg.exact_rank_factorization(rows)
    assert len(F) == rank
    if rank:
        assert multiply(C, F) == rows
        assert linalg.exact_rank(C) == linalg.exact_rank(F) == rank
    else:
        assert len(C) == len(rows)
        assert not any(C)


@given(exact_matrices(square=True))
def test_cofactors_expand_to_the_determinant_along_every_row(rows: list[list[Fraction]]) -> None:
    M = linalg.matrix_of_minors(rows)
    for i, row in enumerate(rows):
        assert sum((-1) ** (i + j) * x * M[i][j] for j, x in enumerate(row)) == linalg.determinant(rows)


def test_textbook_example_has_rank_two() -> None:
    assert linalg.determinant(ONE_TO_NINE) == 0
    assert linalg.minor(ONE_TO_NINE, [0, 1], [0, 1]) == -3
    assert linalg.first_minor(ONE_TO_NINE, 2, 0) == 2 * 6 - 3 * 5
    assert linalg.matrix_of_minors(ONE_TO_NINE) == [[-3, -6, -3], [-6, -12, -6], [-3, -6, -3]]
    assert linalg.exact_rank(ONE_TO_NINE) == linalg.rank_by_minors(ONE_TO_NINE) == 2
    C, F = linalg.exact_rank_factorization(ONE_TO_NINE)
    assert C == [[1, 2], [4, 5], [7, 8]]
    assert F == [[1, 0, -1], [0, 1, 2]]


def test_minors_come_in_lexicographic_order_and_all_of_them() -> None:
    found = list(linalg.minors([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 13]], 2))
    assert len(found) == comb(3, 2) * comb(4, 2)
    assert [(x.rows, x.columns) for x in found] == sorted((x.rows, x.columns) for x in found)
    assert found[0] == linalg.Minor((0, 1), (0, 1), Fraction(1 * 6 - 2 * 5))
    assert found[-1] == linalg.Minor((1, 2), (2, 3), Fraction(7 * 13 - 8 * 11))


def test_minors_of_order_one_are_the_entries() -> None:
    assert [x.value for x in linalg.minors([[1, 2], [3, 4]], 1)] == [1, 2, 3, 4]


def test_matrix_of_minors_of_a_single_entry_is_the_empty_determinant() -> None:
    assert linalg.matrix_of_minors([[7]]) == [[1]]


def test_zero_matrix_has_rank_zero() -> None:
    assert linalg.exact_rank([[0, 0], [0, 0]]) == linalg.rank_by_minors([[0, 0], [0, 0]]) == 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_integer_tensors_and_numpy_integers_are_exact_and_do_not_overflow(dtype: torch.dtype) -> None:
    entries = [[127, 1], [1, 127]]
    assert linalg.determinant(torch.tensor(entries, dtype=dtype)) == 127 * 127 - 1
    assert linalg.determinant(list(numpy.array(entries, dtype=numpy.int8))) == 127 * 127 - 1


def test_a_rank_that_floating_point_cannot_see() -> None:
    big = 10**20
    nearly_dependent = [[big, big + 1], [big + 1, big + 2]]
    assert linalg.exact_rank(nearly_dependent) == 2
    assert linalg.numerical_rank(torch.tensor(nearly_dependent, dtype=torch.float64)) == 1


def test_rank_of_a_matrix_of_real_size() -> None:
    generator = torch.Generator().manual_seed(0)
    tall = torch.randint(-9, 10, (48, 20), generator=generator)
    wide = torch.randint(-9, 10, (20, 40), generator=generator)
    assert linalg.exact_rank(tall @ wide) == 20


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 2]], r"entry \(0, 0\) is 1.0, a float.*numerical_rank"),
        (torch.eye(2), r"integer tensor, found torch.float32.*numerical_rank"),
        (torch.ones(2, 2, dtype=torch.bool), "integer tensor, found torch.bool"),
        (torch.ones(3, dtype=torch.int64), r"shape \(3,\), expected two dimensions"),
        ([[1, 2], [3]], "row 1 has 1 entries and row 0 has 2"),
        ([], "empty"),
        ([[]], "empty"),
    ],
)
def test_what_is_not_an_exact_matrix_is_refused(matrix: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        linalg.exact_rank(matrix)  # type: ignore[arg-type]


def test_impossible_minors_are_refused() -> None:
    with pytest.raises(ConfigError, match="order is 4, expected 1 to 3"):
        linalg.minors(ONE_TO_NINE, 4)
    with pytest.raises(ConfigError, match=r"rows are \[1, 0\], expected strictly increasing indices from 0 to 2"):
        linalg.minor(ONE_TO_NINE, [1, 0], [0, 1])
    with pytest.raises(ConfigError, match=r"columns are \[3\]"):
        linalg.minor(ONE_TO_NINE, [0], [3])
    with pytest.raises(ConfigError, match="2 rows and 1 columns"):
        linalg.minor(ONE_TO_NINE, [0, 1], [0])
    with pytest.raises(ConfigError, match=r"square matrix, found shape \(1, 2\)"):
        linalg.matrix_of_minors([[1, 2]])
