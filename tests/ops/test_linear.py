"""The fused linear layer and the fused branch against their specification, in values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from weft.ops import adapted_linear, add_linear
from weft.ops import linear as reference  # the eager specification

# (T..., in, out, r): odd sizes, one row, no row, no leading axis, rank 1 and a rank as large as the layer.
SHAPES = [
    ((1031,), 17, 67, 5),
    ((3, 431), 64, 61, 1),
    ((5, 7, 31), 9, 65, 9),
    ((1,), 33, 701, 4),
    ((2, 3), 5, 7, 2),
    ((), 5, 7, 2),
    ((0, 4), 5, 7, 2),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}
SCALING = 0.7


def tensors(shape: tuple[int, ...], width: int, out: int, rank: int, dtype: torch.dtype) -> list[Tensor]:
    """y or W (in the place of the first), x, A and B, all to be differentiated."""
    y, x = torch.randn(*shape, out, dtype=dtype), torch.randn(*shape, width, dtype=dtype)
    A, B = torch.randn(rank, width, dtype=dtype) / width**0.5, torch.randn(out, rank, dtype=dtype)
    return [t.requires_grad_() for t in (y, x, A, B)]


def layer(width: int, out: int, dtype: torch.dtype, *, bias: bool = True) -> tuple[Tensor, Tensor | None]:
    return torch.randn(out, width, dtype=dtype) / width**0.5, torch.randn(out, dtype=dtype) if bias else None


def check(found: Tensor, expected: Tensor, given: list[Tensor], dtype: torch.dtype) -> None:
    """Values and gradients agree, each relative to its largest entry."""
    assert found.shape == expected.shape
    g = torch.randn(expected.shape, dtype=dtype)
    pairs = zip(
        (found, *torch.autograd.grad(found, given, g)),
        (expected, *torch.autograd.grad(expected, given, g)),
        strict=True,
    )
    for place, (mine, theirs) in enumerate(pairs):
        bound = TOLERANCE[dtype] * (float(theirs.detach().abs().max()) if theirs.numel() else 0)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=bound, msg=lambda m, i=place: f"result {i}: {m}")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "width", "out", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_layer_is_its_specification(
    dtype: torch.dtype, shape: tuple[int, ...], width: int, out: int, rank: int, bias: bool
) -> None:
    _, x, A, B = tensors(shape, width, out, rank, dtype)
    W, b = layer(width, out, dtype, bias=bias)
    found = adapted_linear(x, W, b, A, B, SCALING)
    check(found, F.linear(x, W, b) + SCALING * reference(x, A, B), [x, A, B], dtype)
    with torch.no_grad():
        assert torch.equal(adapted_linear(x, W, b, A, B, SCALING), found)


@pytest.mark.parametrize(("shape", "width", "out", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_branch_is_its_specification(
    dtype: torch.dtype, shape: tuple[int, ...], width: int, out: int, rank: int
) -> None:
    y, x, A, B = given = tensors(shape, width, out, rank, dtype)
    check(add_linear(y, x, A, B, SCALING), y + SCALING * reference(x, A, B), given, dtype)


@pytest.mark.parametrize("view", [lambda t: t.transpose(0, 1), lambda t: t[:, ::2], lambda t: t.expand(4, 3, 6)])
def test_inputs_gradients_and_outputs_in_any_layout(view: Callable[[Tensor], Tensor]) -> None:
    base = torch.randn((1, 3, 6) if view(torch.empty(1, 3, 6)).shape[0] == 4 else (4, 3, 6), dtype=torch.float64)
    x = view(base).detach().requires_grad_()
    _, _, A, B = tensors((), x.shape[-1], 5, 2, torch.float64)
    W, b = layer(x.shape[-1], 5, torch.float64)
    y = torch.randn(*x.shape[:2], 5, dtype=torch.float64).transpose(0, 1).contiguous().transpose(0, 1)
    for found, expected in (
        (adapted_linear(x, W, b, A, B, 2.0), F.linear(x, W, b) + 2.0 * reference(x, A, B)),
        (add_linear(y, x, A, B, 2.0), y + 2.0 * reference(x, A, B)),
    ):
        for g in (torch.randn_like(expected).transpose(0, 1).contiguous().transpose(0, 1), torch.ones(()).double()):
            mine, theirs = (
                torch.autograd.grad(t, [x, A, B], g.expand_as(t), retain_graph=True) for t in (found, expected)
            )
            for one, other in zip(mine, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", [(1,), (2,), (3,), (1, 3), (1, 2), (2, 3)])
def test_only_the_gradients_that_are_asked_for(needed: tuple[int, ...]) -> None:
    given = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors((31,), 17, 67, 5, torch.float64))]
    y, x, A, B = given
    W, b = layer(17, 67, torch.float64)
    for result in (adapted_linear(x, W, b, A, B, 2.0), add_linear(y, x, A, B, 2.0)):
        for t in given:
            t.grad = None
        result.sum().backward()
        assert [i for i, t in enumerate(given) if t.grad is not None] == list(needed)


def test_an_output_that_something_else_computed_is_not_written() -> None:
    y, x, A, B = (t.detach() for t in tensors((1031,), 17, 67, 5, torch.float32))
    before = y.clone()
    assert not torch.equal(add_linear(y, x, A, B, 1.0), before)
    assert torch.equal(y, before)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_zero_B_changes_no_bit(dtype: torch.dtype) -> None:
    y, x, A, B = (t.detach() for t in tensors((7, 31), 17, 67, 5, dtype))
    W, b = layer(17, 67, dtype)
    assert torch.equal(add_linear(y, x, A, torch.zeros_like(B), 3.0), y)
    assert torch.equal(adapted_linear(x, W, b, A, torch.zeros_like(B), 3.0), F.linear(x, W, b))


def test_what_is_kept_is_the_input_and_h() -> None:
    y, x, A, B = tensors((64, 16), 32, 48, 4, torch.float32)
    W, b = layer(32, 48, torch.float32)
    for run in (lambda: adapted_linear(x, W, b, A, B, 1.0), lambda: add_linear(y, x, A, B, 1.0)):
        kept: dict[int, int] = {}

        def pack(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            run()
        parameters = {t.untyped_storage().data_ptr() for t in (W, A, B)}
        assert sum(size for place, size in kept.items() if place not in parameters) == 4 * (x.numel() + 4 * 64 * 16)


def test_autocast_computes_and_returns_in_its_dtype_and_keeps_the_gradients_dtype() -> None:
    W, A, B = torch.randn(67, 17), torch.randn(5, 17, requires_grad=True), torch.randn(67, 5, requires_grad=True)
    x = torch.randn(1031, 17, requires_grad=True)
    exact = W.sum(0) + 0.5 * B.detach().sum(0) @ A.detach()
    for run in (lambda: adapted_linear(x, W, None, A, B, 0.5), lambda: add_linear(F.linear(x, W), x, A, B, 0.5)):
        A.grad = x.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = run()
            assert found.dtype == torch.bfloat16
            found.float().sum().backward()  # inside, as many write it
        assert A.grad is not None
        assert A.grad.dtype == torch.float32
        assert x.grad is not None
        torch.testing.assert_close(x.grad[0], exact, rtol=5e-2, atol=5e-1)


def test_factors_are_cast_to_the_activations_dtype_and_get_gradients_in_their_own() -> None:
    A, B = torch.randn(5, 17, requires_grad=True), torch.randn(67, 5, requires_grad=True)
    x, W = torch.randn(31, 17, dtype=torch.bfloat16), torch.randn(67, 17, dtype=torch.bfloat16)
    found = adapted_linear(x, W, None, A, B, 0.5)
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert A.grad is not None
    assert A.grad.dtype == torch.float32


def test_a_second_derivative_is_right_or_refused() -> None:
    y, x, A, B = tensors((7,), 5, 6, 2, torch.float64)
    W, b = layer(5, 6, torch.float64)
    assert torch.autograd.gradgradcheck(lambda x, A, B: adapted_linear(x, W, b, A, B, 0.7), (x, A, B))
    assert torch.autograd.gradgradcheck(lambda y, x, A, B: add_linear(y, x, A, B, 0.7), (y, x, A, B))
    frozen = A.detach()  # so x is not kept
    for result in (adapted_linear(x, W, b, frozen, B, 1.0), add_linear(y, x, frozen, B, 1.0)):
        with pytest.raises(RuntimeError, match="second derivative needs the layer's input"):
            torch.autograd.grad(result.square().sum(), x, create_graph=True)
