"""The fused branch of an embedding against its specification, in values and gradients."""

import pytest
import torch

from weft.ops import add_embedding, embedding

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("shape", [(5, 3), (7,), (), (0, 4)])
@pytest.mark.parametrize(("padding_idx", "by_freq"), [(None, False), (2, False), (None, True)])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(
    dtype: torch.dtype, padding_idx: int | None, by_freq: bool, shape: tuple[int, ...]
) -> None:
    ids = torch.randint(0, 9, shape)
    y = torch.randn(*shape, 6, dtype=dtype, requires_grad=True)
    A, B = torch.randn(2, 6, requires_grad=True), torch.randn(9, 2, requires_grad=True)
    found = add_embedding(y, ids, A, B, 0.7, padding_idx, by_freq)
    expected = y + 0.7 * embedding(ids, A, B, padding_idx, by_freq, dtype)
    assert found.dtype == dtype
    g = torch.randn_like(expected)
    pairs = zip(*((t, *torch.autograd.grad(t, [y, A, B], g)) for t in (found, expected)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


def test_zero_B_changes_no_bit_and_autocast_rounds_nothing() -> None:
    y, ids, A = torch.randn(5, 6), torch.randint(0, 9, (5,)), torch.randn(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(add_embedding(y, ids, A, torch.zeros(9, 2), 1.0, None, False), y)
