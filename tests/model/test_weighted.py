"""Adapters attached as one whose weights are set: the same outputs as the adapters side by side."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn

import weft
from weft.adapter import Adapter
from weft.errors import BaseMismatchError, ConfigError, StateError
from weft.model.weighted import weighted


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()


def made(net: nn.Module, **settings: object) -> Adapter:
    """An adapter with random factors."""
    weft.attach(net, weft.LoRAConfig(**settings), name="new")  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in weft.trainable_parameters(net):
            parameter.normal_()
    adapter = weft.collect(net, "new")
    weft.detach(net)
    return adapter


@pytest.fixture
def adapters(net: nn.Module) -> list[Adapter]:
    """Of unlike ranks, scalings and targets."""
    return [made(net, rank=2, alpha=3), made(net, rank=1, alpha=8, targets=("0",)), made(net, rank=3, targets=("2",))]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.4, 0.0), (0.0, 0.0, 0.0), (0.25, 1.5, -2.0)])
def test_outputs_are_those_of_the_adapters_side_by_side(
    net: nn.Module, adapters: list[Adapter], weights: tuple[float, ...]
) -> None:
    x = torch.randn(7, 6).double()
    with weighted(net, adapters) as together:
        together.set((9.0, 9.0, 9.0))  # what was set before leaves no trace
        together.set(weights)
        found = net(x)
    for number, adapter in enumerate(adapters):
        weft.attach(net, adapter, name=f"a{number}")
    weft.activate(net, {f"a{number}": weight for number, weight in enumerate(weights)})
    assert torch.allclose(found, net(x), rtol=1e-12, atol=1e-12)


def test_the_model_and_the_adapters_are_left_as_they_were(net: nn.Module, adapters: list[Adapter]) -> None:
    x = torch.randn(7, 6).double()
    before = net(x)
    factors = [{path: value.dense() for path, value in adapter.factors.items()} for adapter in adapters]
    with contextlib.suppress(KeyboardInterrupt), weighted(net, adapters) as together:
        together.set((0.5, 0.0, 2.0))
        raise KeyboardInterrupt
    assert torch.equal(net(x), before)
    assert weft.adapter_names(net) == ()
    for adapter, values in zip(adapters, factors, strict=True):
        assert all(torch.equal(adapter.factors[path].dense(), value) for path, value in values.items())


def test_what_cannot_be_summed_is_refused_with_nothing_attached(net: nn.Module, adapters: list[Adapter]) -> None:
    with pytest.raises(StateError, match="found 2 for 3 adapters"), weighted(net, adapters) as together:
        together.set((1.0, 2.0))
    dora = made(net, rank=2, variant=weft.DoRA())
    with pytest.raises(ConfigError, match="adapter 2 has trained magnitudes"), weighted(net, [adapters[0], dora]):
        pass
    assert adapters[0].base is not None
    other = replace(adapters[0], base=replace(adapters[0].base, structure="other"))
    with pytest.raises(BaseMismatchError), weighted(net, [adapters[0], other]):
        pass
    assert weft.adapter_names(net) == ()
    with weighted(net, [adapters[0], other], any_base=True) as together:
        together.set((1.0, 0.0))
    weft.attach(net, adapters[0], name="mine")
    with pytest.raises(StateError, match="'mine' is attached to this model already"), weighted(net, adapters):
        pass
    assert weft.adapter_names(net) == ("mine",)
