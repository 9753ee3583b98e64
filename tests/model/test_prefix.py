"""A prefix of the factors is the adapter at a lower rank, in every layer kind, forward and backward."""

from dataclasses import replace

import pytest
import torch
from harness import DORA_LAYERS, LAYERS, Case, adapted, output, pretend_training
from torch import nn
from torch.utils.checkpoint import checkpoint

import weft
from weft.errors import StateError
from weft.linalg import LowRank
from weft.model.prefix import factors_of, prefix

DOUBLE = {"rtol": 1e-10, "atol": 1e-11}
RANK, LOW = 3, 2


def narrowed(adapter: weft.Adapter, rank: int) -> weft.Adapter:
    factors = {path: LowRank(f.B[:, :rank], f.A[:rank], f.scaling) for path, f in adapter.factors.items()}
    return replace(adapter, factors=factors)


@pytest.mark.parametrize("case", LAYERS + DORA_LAYERS, ids=lambda case: case.name)
def test_it_is_the_adapter_of_that_rank(case: Case) -> None:
    case = case.with_config(rank=RANK)
    model, x = adapted(case, torch.float64).eval(), case.input(torch.float64)
    low = weft.attach(case.model(torch.float64).eval(), narrowed(weft.collect(model), LOW), trainable=True)
    whole = output(model, x)
    with prefix(factors_of(model), LOW):
        y = model(x)
        y.square().sum().backward()
        with weft.merged(model):
            merged = output(model, x)
    expected = low(x)
    expected.square().sum().backward()
    assert torch.allclose(y, expected, **DOUBLE)
    assert torch.allclose(merged, expected, **DOUBLE)
    assert not torch.allclose(whole, expected, **DOUBLE)
    assert torch.equal(output(model, x), whole)
    (mine,), (theirs,) = factors_of(model), factors_of(low)
    assert torch.allclose(mine.lora_A.grad[:LOW], theirs.lora_A.grad, **DOUBLE)
    assert torch.allclose(mine.lora_B.grad[:, :LOW], theirs.lora_B.grad, **DOUBLE)
    assert not mine.lora_A.grad[LOW:].any()
    assert not mine.lora_B.grad[:, LOW:].any()


@pytest.mark.parametrize("case", LAYERS[:1] + DORA_LAYERS[:1], ids=lambda case: case.name)
def test_a_frozen_adapter_is_not_taken_for_another_of_its_ranks(case: Case) -> None:
    """DoRA remembers the norms of frozen factors."""
    adapter = weft.collect(adapted(case.with_config(rank=RANK), torch.float64))
    model, x = weft.attach(case.model(torch.float64), adapter), case.input(torch.float64)
    low = weft.attach(case.model(torch.float64), narrowed(adapter, LOW))
    for rank in (RANK, LOW, RANK):
        with prefix(factors_of(model), rank):
            alone = output(low if rank == LOW else model, x)
            assert torch.allclose(output(model, x), alone, **DOUBLE)
    with prefix(factors_of(model), LOW):
        assert torch.allclose(output(model, x), output(low, x), **DOUBLE)


def test_a_start_that_is_subtracted_is_cut_as_well() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).double()
    W, b, x = model[0].weight.detach().clone(), model[0].bias, torch.randn(3, 8, dtype=torch.float64)
    weft.attach(model, weft.LoRAConfig(rank=4, targets="0", init=weft.PiSSA()))
    (factors,) = factors_of(model)
    assert factors.offset_A is not None
    assert factors.offset_B is not None
    pretend_training(model)
    change = factors.lora_B[:, :2] @ factors.lora_A[:2] - factors.offset_B[:, :2] @ factors.offset_A[:2]
    with prefix([factors], 2):
        assert torch.allclose(output(model, x), nn.functional.linear(x, W + factors.scaling * change, b), **DOUBLE)


def test_what_is_computed_again_has_the_same_rank() -> None:
    model = weft.attach(nn.Sequential(nn.Linear(8, 8)), weft.LoRAConfig(rank=4, targets="0", dropout=0.3))
    nn.init.normal_(model[0].adapters["default"].lora_B)
    x, gradients = torch.randn(3, 8), []
    for again in (False, True):
        torch.manual_seed(1)
        with prefix(factors_of(model), 2):
            y = checkpoint(model, x, use_reentrant=False) if again else model(x)
            gradients.append(torch.autograd.grad(y.square().sum(), list(weft.trainable_parameters(model))))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_error_inside_leaves_the_whole() -> None:
    model = weft.attach(nn.Sequential(nn.Linear(8, 8)), weft.LoRAConfig(rank=4, targets="0"))
    with pytest.raises(KeyboardInterrupt), prefix(factors_of(model), 2):
        raise KeyboardInterrupt
    assert weft.collect(model).factors["0"].rank == 4
    with pytest.raises(StateError, match="no adapter named 'mine'"):
        factors_of(model, "mine")
