"""Extracting a low rank from a dense change of a weight, against its full SVD.

    python -m benchmarks.extract [quick]

The error beside the time is relative to the change; the full SVD's is the least that any matrix of the rank can have
(Eckart and Young, 1936).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, Options, compare, main
from benchmarks.records import Figures
from weft.linalg import SVD, randomized_svd

RANK = 16

SPECTRA: Mapping[str, Callable[[Tensor], Tensor]] = {
    "1/sqrt(i)": lambda i: i**-0.5,
    "rank 16 in noise": lambda i: torch.where(i <= RANK, 1.0, 0.02),
}
"""Singular value i of what is extracted, nearly: the factors around it are Gaussian, not orthonormal."""


def change(width: int, spectrum: str) -> Tensor:
    """A dense (width, width) matrix whose singular values fall as named."""
    source = torch.Generator().manual_seed(0)
    left, right = (torch.randn(width, width, generator=source) / width**0.5 for _ in range(2))
    return (left * SPECTRA[spectrum](torch.arange(1.0, width + 1))) @ right


def extracting(width: int, spectrum: str, seconds: float) -> Figures:
    """Seconds and relative error of both."""
    M = change(width, spectrum)
    found: dict[str, SVD] = {}

    def weft_svd() -> None:
        found["weft"] = randomized_svd(M, RANK).svd

    def full_svd() -> None:
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        found["full SVD"] = SVD(U, S, Vh).leading(RANK)

    figures = compare({"weft": weft_svd, "full SVD": full_svd}, seconds, rounds=(2, 20))
    for name, svd in found.items():
        error = float((M - (svd.U * svd.S) @ svd.Vh).norm() / M.norm())
        figures[name]["relative_error"] = [error] * len(figures[name]["seconds"])
    return figures


def cases(options: Options) -> Iterator[Case]:
    """One width, several spectra."""
    width = {"full": 4096, "quick": 512, "tiny": 48}[options.effort]
    for spectrum in SPECTRA:
        setting = {"width": width, "rank": RANK, "spectrum": spectrum}
        yield Case("extract", setting, partial(extracting, width, spectrum, options.seconds))


if __name__ == "__main__":
    main(cases)
