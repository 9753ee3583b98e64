"""The fused branch of a convolution against its specification, in values and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from weft.ops import add_conv, conv

CONVS = (F.conv1d, F.conv2d, F.conv3d)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [(3,), ()])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(
    dtype: torch.dtype, dims: int, groups: int, batch: tuple[int, ...], channels_last: bool
) -> None:
    def down(x: Tensor, weight: Tensor) -> Tensor:
        return CONVS[dims - 1](x, weight, stride=2, padding=1, groups=groups)

    x = torch.randn(*batch, 4, *[7, 5, 6][:dims], dtype=dtype, requires_grad=True)
    A = torch.randn(2, 4 // groups, *[3, 2, 3][:dims], requires_grad=True)
    B = torch.randn(6, 2, requires_grad=True)
    y = torch.randn_like(down(x, torch.randn(6, *A.shape[1:], dtype=dtype)))
    if channels_last:
        y = y.movedim(-1 - dims, -1).contiguous().movedim(-1, -1 - dims)
    y.requires_grad_()
    found = add_conv(y, x, A, B, 0.7, groups, down)
    expected = y + 0.7 * conv(x, A, B, groups, down)
    assert found.dtype == dtype
    assert found.stride() == y.stride()
    g = torch.randn_like(expected)
    pairs = zip(*((t, *torch.autograd.grad(t, [y, x, A, B], g)) for t in (found, expected)), strict=True)
    for mine, theirs in pairs:
        bound = TOLERANCE[dtype] * float(theirs.detach().abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=bound)
    assert torch.equal(add_conv(y, x, A, torch.zeros_like(B), 1.0, groups, down), y)
