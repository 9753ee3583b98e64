"""Dropout by the gaps between dropped entries: the process is dropout's own, and little is kept."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from weft.ops import adapted_linear, add_linear
from weft.ops import linear as eager
from weft.ops.dropout import add_kept, dropped_mask, dropped_places, without_dropped
from weft.ops.linear import _AdaptedLinear


@pytest.mark.parametrize("p", [0.001, 0.05, 0.3, 0.9])
def test_each_entry_is_dropped_independently_with_the_probability(p: float) -> None:
    count, rounds = 400, 1500
    hits = torch.zeros(rounds, count)
    for row in hits:
        row[dropped_places(count, p).long()] = 1
    # Means over rows and over entries, and the chance that two neighbours go together, within five deviations.
    deviation = math.sqrt(p * (1 - p))
    assert abs(hits.mean() - p) < 5 * deviation / math.sqrt(count * rounds)
    assert (hits.mean(0) - p).abs().max() < 5 * deviation / math.sqrt(rounds)
    together = (hits[:, 1:] * hits[:, :-1]).mean()
    assert abs(together - p**2) < 5 * p / math.sqrt(count * rounds) + 1e-12


def test_places_ascend_without_repeats_and_follow_the_seed() -> None:
    torch.manual_seed(3)
    places = dropped_places(100_000, 0.05)
    assert places.dtype == torch.int32
    assert (places.diff() > 0).all()
    assert int(places[0]) >= 0
    assert int(places[-1]) < 100_000
    torch.manual_seed(3)
    assert torch.equal(places, dropped_places(100_000, 0.05))


def test_a_row_of_one_entry() -> None:
    dropped = sum(dropped_places(1, 0.25).numel() for _ in range(2000))
    assert abs(dropped / 2000 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2000)


def test_a_mask_says_the_same_as_places() -> None:
    x, left, right = torch.randn(31, 17), torch.randn(31, 3), torch.randn(3, 17)
    mask = dropped_mask(x.numel(), 0.3, x.device)
    assert 0.2 < mask.float().mean() < 0.4
    for dropped in (mask, mask.nonzero().view(-1).to(torch.int32)):
        kept = ~mask.view_as(x)
        assert torch.equal(without_dropped(x, dropped), x * kept)
        found = x.clone()
        add_kept(found, left, right, 0.5, dropped)
        torch.testing.assert_close(found, x + 0.5 * (left @ right) * kept, rtol=1e-5, atol=1e-5)
        assert torch.equal(found[~kept], x[~kept])


def inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """y (1031, 67), x (1031, 17), A and B of rank 5; and W (67, 17)."""
    shapes = ((1031, 67), (1031, 17), (5, 17), (67, 5))
    return [torch.randn(*s, dtype=dtype, requires_grad=True) for s in shapes], torch.randn(67, 17, dtype=dtype)


def test_values_and_gradients_are_those_of_the_same_mask() -> None:
    given, W = inputs()
    y, x, A, B = given
    keep = torch.ones(x.numel(), dtype=x.dtype)
    torch.manual_seed(7)
    keep[dropped_places(x.numel(), 0.1).long()] = 0
    branch = 0.7 * eager(x * keep.view_as(x) / 0.9, A, B)
    g = torch.randn_like(y)
    for run, expected, learned in (
        (lambda: add_linear(y, x, A, B, 0.7, dropout=0.1), y + branch, given),
        (lambda: adapted_linear(x, W, None, A, B, 0.7, dropout=0.1), x @ W.T + branch, given[1:]),
    ):
        torch.manual_seed(7)
        found = run()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)
        gradients = (torch.autograd.grad(f, learned, g, retain_graph=True) for f in (found, expected))
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_layers_that_read_one_input_keep_one_input_and_a_few_places() -> None:
    def saved_bytes(dropout: float) -> int:
        (_, x, A, B), W = inputs(torch.float32)
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outputs = [adapted_linear(x, W, None, A, B, 1.0, dropout=dropout) for _ in range(3)]
        assert len(outputs) == 3
        return sum(kept.values())

    assert saved_bytes(0.05) < 1.15 * saved_bytes(0.0)  # the places of three layers; F.dropout would keep four inputs


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_entries_again(reentrant: bool) -> None:
    (_, x, A, B), W = inputs()

    def run_layer(x: Tensor) -> Tensor:
        return adapted_linear(x, W, None, A, B, 1.0, dropout=0.3)

    found = []
    for run in (run_layer, lambda x: checkpoint(run_layer, x, use_reentrant=reentrant)):
        torch.manual_seed(11)
        y = run(x)
        found.append((y, _grad(y, x)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def _grad(y: Tensor, x: Tensor) -> Tensor:
    """The gradient by `backward`, the only way through reentrant checkpointing."""
    x.grad = None
    y.square().sum().backward()
    assert x.grad is not None
    return x.grad.clone()


def test_without_gradients_too() -> None:
    (y, x, A, B), W = [t.detach() for t in inputs()[0]], inputs()[1]
    for run in (
        lambda p: add_linear(y, x, A, B, 1.0, dropout=p),
        lambda p: adapted_linear(x, W, None, A, B, 1.0, dropout=p),
    ):
        assert not torch.equal(run(0.5), run(0.0))


def test_inference_mode_and_then_training() -> None:
    (_, x, A, B), W = inputs(torch.float16)  # a dtype that no other test has made memory for
    with torch.inference_mode():
        adapted_linear(x, W, None, A, B, 1.0, dropout=0.5)
    adapted_linear(x, W, None, A, B, 1.0, dropout=0.5).float().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("as_mask", [False, True])
def test_a_second_derivative_sees_the_same_entries_dropped(as_mask: bool) -> None:
    (_, x, A, B), W = inputs()
    x, g = x.detach()[:7].requires_grad_(), torch.randn(7, 67, dtype=x.dtype)
    mask = dropped_mask(x.numel(), 0.3, x.device)
    dropped = mask if as_mask else mask.nonzero().view(-1).to(torch.int32)
    fused = _AdaptedLinear.apply(x, W, None, A, B, 0.7, dropped)
    plain = x @ W.T + 0.7 * eager(x.masked_fill(mask.view_as(x), 0), A, B)
    found, expected = (
        torch.autograd.grad(torch.autograd.grad(y, x, g, create_graph=True)[0].square().sum(), [A, B])
        for y in (fused, plain)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
