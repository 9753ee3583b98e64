"""The scaled output against its eager form, in value and gradient."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weft import ops
from weft.ops import reference

SHAPES = {  # of the output, and of a number for each output
    "linear": ((3, 4, 7), (7,)),
    "vector": ((7,), (7,)),
    "one row": ((1, 7), (7,)),
    "heads": ((2, 3, 2, 4), (2, 4)),
    "conv": ((2, 6, 5, 3), (6, 1, 1)),
    "conv without a batch": ((6, 5), (6, 1)),
    "conv of one place": ((2, 6, 1), (6, 1)),
    "one output": ((5, 1), (1,)),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_value_and_gradients_are_those_of_the_reference(name: str, biased: bool) -> None:
    shape, values = SHAPES[name]
    u = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    d, b = (torch.randn(values, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bias = b if biased else None
    y, expected = ops.rescale(u, d, bias), reference.rescale(u, d, bias)
    assert torch.allclose(y, expected, rtol=1e-14, atol=1e-14)
    leaves, g = [u, d] + ([b] if biased else []), torch.randn_like(y)
    for mine, theirs in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(ops.rescale, (u, d, bias))
    assert torch.autograd.gradgradcheck(ops.rescale, (u, d, bias))


# The reference's own error: each entry, and each term of a sum, is rounded to the dtype at most four times.
@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
def test_a_narrow_output_with_wide_numbers(dtype: torch.dtype, unit: float) -> None:
    u, g = (torch.randn(64, 9).to(dtype) for _ in range(2))
    d, b = 0.1 * torch.randn(9), torch.randn(9).to(dtype)
    u.requires_grad_()
    d.requires_grad_()
    y = ops.rescale(u, d, b)
    assert y.dtype == dtype
    du, dd = torch.autograd.grad(y, [u, d], g)
    assert (du.dtype, dd.dtype) == (dtype, torch.float32)
    exact = (g.double() * (u.double() - b.double())).sum(0)
    size = (g.double() * (u.double().abs() + b.double().abs())).abs().sum(0)
    assert ((dd.double() - exact).abs() <= 4 * unit * size).all()
    expected = u.double() + d.double() * (u.double() - b.double())
    assert ((y.double() - expected).abs() <= 4 * unit * (u.double().abs() + b.double().abs())).all()


def test_nothing_changes_at_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        u, b = torch.randn(5, 7).to(dtype), torch.randn(7).to(dtype)
        assert torch.equal(ops.rescale(u, torch.zeros(7), b), u)


class Made(TorchDispatchMode):
    """How many new tensors of one size the operations make."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))  # type: ignore[operator]
        given = {t.data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)}
        new = isinstance(result, Tensor) and result.numel() == self.size and result.data_ptr() not in given
        self.count += new
        return result


def test_one_tensor_of_the_outputs_size_is_made_in_each_direction() -> None:
    u, d, b = torch.randn(11, 7, requires_grad=True), torch.randn(7, requires_grad=True), torch.randn(7)
    with Made(77) as made:
        y = ops.rescale(u, d, b)
        assert made.count == 1
        torch.autograd.grad(y, [u, d], torch.ones(11, 7))
    assert made.count == 3  # and the ones
