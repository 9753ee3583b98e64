"""The fused branch of a linear layer against its specification, in values and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from weft.ops import add_linear, linear
from weft.ops import linear as reference  # the eager specification

# (T..., in, out, r): odd sizes, one row, rank 1 and a rank as large as the layer; all but the last are fused.
SHAPES = [((1031,), 17, 67, 5), ((3, 431), 64, 61, 1), ((5, 7, 31), 9, 65, 9), ((1,), 33, 70001, 4), ((2, 3), 5, 7, 2)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def tensors(shape: tuple[int, ...], width: int, out: int, rank: int, dtype: torch.dtype) -> list[Tensor]:
    y, x = torch.randn(*shape, out, dtype=dtype), torch.randn(*shape, width, dtype=dtype)
    A, B = torch.randn(rank, width, dtype=dtype) / width**0.5, torch.randn(out, rank, dtype=dtype)
    return [t.requires_grad_() for t in (y, x, A, B)]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("shape", "width", "out", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(
    dtype: torch.dtype, shape: tuple[int, ...], width: int, out: int, rank: int, own: bool
) -> None:
    y, x, A, B = given = tensors(shape, width, out, rank, dtype)
    g = torch.randn(*shape, out, dtype=dtype)
    expected = y + 0.7 * reference(x, A, B)
    found = add_linear(y * 1, x, A, B, 0.7, own)  # * 1: a leaf cannot be overwritten
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * float(expected.detach().abs().max())}
    torch.testing.assert_close(found, expected, **tolerance)
    for name, mine, theirs in zip("yxAB", *(torch.autograd.grad(f, given, g) for f in (found, expected)), strict=True):
        bound = TOLERANCE[dtype] * float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=bound, msg=lambda m, n=name: f"gradient of {n}: {m}")


@pytest.mark.parametrize("needed", [(1,), (2,), (3,), (0, 3), (1, 2)])
def test_only_the_gradients_that_are_asked_for(needed: tuple[int, ...]) -> None:
    given = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors((1031,), 17, 67, 5, torch.float64))]
    y, x, A, B = given
    add_linear(y * 1, x, A, B, 2.0, own=True).sum().backward()
    assert [i for i, t in enumerate(given) if t.grad is not None] == list(needed)


def test_what_is_its_own_is_overwritten_and_what_is_not_stays() -> None:
    y, x, A, B = (t.detach() for t in tensors((1031,), 17, 67, 5, torch.float32))
    before = y.clone()
    assert add_linear(y, x, A, B, 1.0, own=False) is not y
    assert torch.equal(y, before)
    assert add_linear(y, x, A, B, 1.0, own=True) is y
    assert not torch.equal(y, before)


def test_a_transposed_output_is_not_written_through_a_copy() -> None:
    y = torch.randn(67, 1031).T
    x, A, B = (t.detach() for t in tensors((1031,), 17, 67, 5, torch.float32)[1:])
    expected = y + linear(x, A, B)
    torch.testing.assert_close(add_linear(y, x, A, B, 1.0, own=True), expected, rtol=1e-5, atol=1e-5)


def test_zero_B_changes_no_bit() -> None:
    y, x, A, B = (t.detach() for t in tensors((1031,), 17, 67, 5, torch.bfloat16))
    assert torch.equal(add_linear(y.clone(), x, A, torch.zeros_like(B), 3.0, own=True), y)


def test_autocast_computes_and_returns_in_the_base_outputs_dtype() -> None:
    x = torch.randn(1031, 17, requires_grad=True)
    W, A, B = torch.randn(67, 17), torch.randn(5, 17, requires_grad=True), torch.randn(67, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = add_linear(F.linear(x, W), x, A, B, 0.5, own=True)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert A.grad is not None
    assert A.grad.dtype == torch.float32
    assert x.grad is not None
    exact = W.sum(0) + 0.5 * B.detach().sum(0) @ A.detach()
    torch.testing.assert_close(x.grad[0], exact, rtol=5e-2, atol=5e-1)


def test_a_second_derivative_is_refused() -> None:
    y, x, A, B = tensors((1031,), 17, 67, 5, torch.float32)
    (first,) = torch.autograd.grad(add_linear(y * 1, x, A, B, 1.0, own=False).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
