"""Dropout by the gaps between dropped entries: the process is dropout's own, and little is kept."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from weft.ops import add_linear
from weft.ops import linear as eager
from weft.ops.dropout import dropped_places

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.001, 0.05, 0.3, 0.9])
def test_each_entry_is_dropped_independently_with_the_probability(p: float) -> None:
    count, rounds = 400, 1500
    hits = torch.zeros(rounds, count)
    for row in hits:
        row[dropped_places(count, p, CPU).long()] = 1
    # Means over rows and over entries, and the chance that two neighbours go together, within five deviations.
    deviation = math.sqrt(p * (1 - p))
    assert abs(hits.mean() - p) < 5 * deviation / math.sqrt(count * rounds)
    assert (hits.mean(0) - p).abs().max() < 5 * deviation / math.sqrt(rounds)
    together = (hits[:, 1:] * hits[:, :-1]).mean()
    assert abs(together - p**2) < 5 * p / math.sqrt(count * rounds) + 1e-12


def test_places_ascend_without_repeats_and_follow_the_seed() -> None:
    torch.manual_seed(3)
    places = dropped_places(100_000, 0.05, CPU)
    assert places.dtype == torch.int32
    assert (places.diff() > 0).all()
    assert int(places[0]) >= 0
    assert int(places[-1]) < 100_000
    torch.manual_seed(3)
    assert torch.equal(places, dropped_places(100_000, 0.05, CPU))


def test_a_row_of_one_entry() -> None:
    dropped = sum(dropped_places(1, 0.25, CPU).numel() for _ in range(2000))
    assert abs(dropped / 2000 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2000)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((1031, 67), (1031, 17), (5, 17), (67, 5))
    ]


def test_values_and_gradients_are_those_of_the_same_mask() -> None:
    y, x, A, B = given = inputs()
    g = torch.randn_like(y)
    torch.manual_seed(7)
    found = add_linear(y * 1, x, A, B, 0.7, dropout=0.1)
    torch.manual_seed(7)
    keep = torch.ones(x.numel(), dtype=x.dtype)
    keep[dropped_places(x.numel(), 0.1, CPU).long()] = 0
    expected = y + 0.7 * eager(x * keep.view_as(x) / 0.9, A, B)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(f, given, g) for f in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_layers_that_read_one_input_keep_one_input_and_a_few_places() -> None:
    def saved_bytes(dropout: float) -> int:
        y, x, A, B = inputs(torch.float32)
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outputs = [add_linear(y * 1, x, A * 1, B * 1, 1.0, dropout=dropout) for _ in range(3)]
        assert len(outputs) == 3
        return sum(kept.values())

    assert saved_bytes(0.05) < 1.15 * saved_bytes(0.0)  # the places of three layers; F.dropout would keep four inputs


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rows", [5, 1031])  # the eager way and the fused one
def test_checkpointing_drops_the_same_entries_again(rows: int, reentrant: bool) -> None:
    _, x, A, B = inputs()
    x = x.detach()[:rows].requires_grad_()

    def branch(x: Tensor) -> Tensor:
        return add_linear(x.new_zeros(rows, 67), x, A, B, 1.0, dropout=0.3)

    found = []
    for run in (branch, lambda x: checkpoint(branch, x, use_reentrant=reentrant)):
        torch.manual_seed(11)
        y = run(x)
        found.append((y, _grad(y, x)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def _grad(y: Tensor, x: Tensor) -> Tensor:
    """The gradient by `backward`, the only way through reentrant checkpointing."""
    x.grad = None
    y.square().sum().backward()
    assert x.grad is not None
    return x.grad.clone()


def test_without_gradients_too() -> None:
    y, x, A, B = (t.detach() for t in inputs())
    assert not torch.equal(add_linear(y, x, A, B, 1.0, dropout=0.5), add_linear(y, x, A, B, 1.0))
