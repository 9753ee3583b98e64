"""How much of a matrix to keep: a rank, a share of the energy, or a largest error; one of the three."""

from collections.abc import Sequence

from weft.errors import ConfigError


def check_limit(function: str, rank: int | None, energy: float | None, error: float | None) -> None:
    """Raise ConfigError unless exactly one is given, with rank >= 1, 0 < energy <= 1 or 0 <= error < 1."""
    given = {"rank": rank, "energy": energy, "error": error}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ConfigError(f"{function} takes exactly one of rank, energy and error, found {chosen or 'none'}")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}, expected 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy is {energy}, expected 0 < energy <= 1")
    if error is not None and not 0 <= error < 1:
        raise ConfigError(f"error is {error}, expected 0 <= error < 1")


def kept_rank(errors: Sequence[float], rank: int | None, allowed: float) -> int:
    """`rank`, or without it the smallest rank from 1 on whose error is allowed; never more than there are.

    Args:
        errors: entry k is the relative Frobenius error of keeping k singular values, k = 0 ... len(S).
        rank: the rank to keep, >= 1.
        allowed: the largest relative error, for no rank.
    """
    most = len(errors) - 1
    if rank is not None:
        return min(rank, most)
    return next((k for k in range(1, most) if errors[k] <= allowed), most)


def allowed_error(energy: float | None, error: float | None) -> float:
    """The largest relative Frobenius error: (1 - energy)^1/2, as energies are squares, or `error` itself."""
    return (1 - energy) ** 0.5 if energy is not None else error or 0.0


def truncation_errors(S: Sequence[float], missed: float = 0.0) -> list[float]:
    """Entry k is the relative Frobenius error of keeping the first k of these singular values, k = 0 ... len(S).

    Args:
        S: singular values, descending; not empty.
        missed: the norm of a part of the matrix that is orthogonal to what S belongs to, and always lost.
    """
    largest = max(S[0], missed) or 1.0
    tail = [(missed / largest) ** 2]
    # From the smallest up, and relative to the largest: nothing is lost or overflows, and no two sums subtract.
    for value in reversed(S):
        tail.append(tail[-1] + (value / largest) ** 2)
    total = tail[-1] or 1.0
    return [(x / total) ** 0.5 for x in reversed(tail)]
