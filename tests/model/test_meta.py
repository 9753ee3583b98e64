"""A base on the meta device: attaching makes nothing, and the adapter is right once the base has its values."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import load_checkpoint_and_dispatch
from harness import identical, output, pretend_training
from safetensors.torch import save_file
from torch import Tensor, nn

import weft
from weft.errors import StateError, TargetError

CONFIG = weft.LoRAConfig(rank=2)


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Sequential(nn.Linear(7, 7), nn.Tanh()), nn.LayerNorm(7))


def without_values() -> nn.Sequential:
    with torch.device("meta"):
        return base()


def factors_of(model: nn.Module) -> list[Tensor]:
    return [t for value in weft.collect(model).factors.values() for t in (value.A, value.B)]


def test_attaching_makes_no_memory_and_draws_no_random_numbers() -> None:
    model = without_values()
    state = torch.get_rng_state()
    weft.attach(model, CONFIG)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("init", [weft.Kaiming(), weft.Gaussian()], ids=repr)
def test_factors_start_with_the_memory_as_they_would_have_on_the_base(init: weft.Kaiming) -> None:
    config = weft.LoRAConfig(rank=2, init=init)
    usual, late = base(), weft.attach(without_values(), config)
    expected = output(usual, torch.ones(3, 5))
    torch.manual_seed(3)
    weft.attach(usual, config)
    torch.manual_seed(3)
    late.to_empty(device="cpu")
    late.load_state_dict(base().state_dict(), strict=False)
    assert all(identical(a, b) for a, b in zip(factors_of(late), factors_of(usual), strict=True))
    assert identical(output(late, torch.ones(3, 5)), expected)
    late(torch.ones(3, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in weft.trainable_parameters(late))


def test_factors_start_too_where_the_base_was_given_its_values_before_it_is_moved() -> None:
    model = weft.attach(without_values(), CONFIG)
    model.load_state_dict(base().state_dict(), strict=False, assign=True)
    with pytest.raises(StateError, match="hold no values"):
        model(torch.ones(3, 5))
    model.to("cpu")
    assert identical(output(model, torch.ones(3, 5)), output(base(), torch.ones(3, 5)))
    pretend_training(model)
    trained = factors_of(model)
    model.to("cpu")
    assert all(identical(a, b) for a, b in zip(factors_of(model), trained, strict=True))


def test_accelerate_can_load_a_checkpoint_under_a_new_adapter(tmp_path: Path) -> None:
    save_file(base().state_dict(), tmp_path / "model.safetensors")
    model = weft.attach(without_values(), CONFIG)
    model = load_checkpoint_and_dispatch(model, str(tmp_path / "model.safetensors"), device_map={"": "cpu"})
    assert identical(output(model, torch.ones(3, 5)), output(base(), torch.ones(3, 5)))
    model(torch.ones(3, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in weft.trainable_parameters(model))


def test_a_copy_starts_by_itself() -> None:
    model = weft.attach(without_values(), CONFIG)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.to_empty(device="cpu")
        each.load_state_dict(base().state_dict(), strict=False)
        assert identical(output(each, torch.ones(3, 5)), output(base(), torch.ones(3, 5)))
    assert not identical(factors_of(model)[0], factors_of(twin)[0])


def test_factors_that_were_given_another_dtype_start_in_it() -> None:
    model = weft.attach(without_values(), CONFIG).double().to_empty(device="cpu")
    model.load_state_dict(base().double().state_dict(), strict=False)
    x = torch.ones(3, 5, dtype=torch.float64)
    assert identical(output(model, x), output(base().double(), x))
    assert all(tensor.dtype == torch.float64 for tensor in factors_of(model))


def test_modules_that_share_a_weight_share_the_factors_that_started() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    weft.attach(model, weft.LoRAConfig(rank=2, targets="0"))
    model.to_empty(device="cpu")
    assert model[0].adapters["default"].lora_A is model[1].adapters["default"].lora_A
    assert model[0].adapters["default"].lora_B is model[1].adapters["default"].lora_B


def test_an_adapter_with_values_keeps_them_when_the_base_gets_memory() -> None:
    config = weft.LoRAConfig(rank=2, targets="0", bias="all", train_modules=("1",))
    trained = weft.attach(base(), config)
    pretend_training(trained)
    model = weft.attach(without_values(), weft.collect(trained))
    model.to_empty(device="cpu")
    model.load_state_dict(base().state_dict(), strict=False)
    assert identical(output(model, torch.ones(3, 5)), output(trained, torch.ones(3, 5)))


def test_moving_a_model_moves_and_casts_adapters_as_before() -> None:
    model = weft.attach(base(), CONFIG)
    pretend_training(model)
    before = factors_of(model)
    model.double()
    assert all(identical(a, b.double()) for a, b in zip(factors_of(model), before, strict=True))
    model.to("meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(StateError, match="detach it, give the model its weights, and attach it again"):
        model.to_empty(device="cpu")


NEEDS_THE_BASE: dict[str, weft.LoRAConfig] = {
    "bias": weft.LoRAConfig(rank=2, targets="0", bias="adapted"),
    "further biases": weft.LoRAConfig(rank=2, targets="0", bias="all"),
    "whole module": weft.LoRAConfig(rank=2, targets="0", train_modules=("1",)),
    "magnitudes": weft.LoRAConfig(rank=2, targets="0", variant=weft.DoRA()),
}


@pytest.mark.parametrize("name", NEEDS_THE_BASE)
def test_what_copies_the_base_is_refused_when_memory_comes_without_values(name: str) -> None:
    model = weft.attach(without_values(), NEEDS_THE_BASE[name])
    with pytest.raises(StateError, match=r"'default' has tensors without values .* attach it again"):
        model.to_empty(device="cpu")


def test_an_initializer_that_reads_the_weight_refuses_at_once() -> None:
    with pytest.raises(TargetError, match="holds no values to read"):
        weft.attach(without_values(), weft.LoRAConfig(rank=2, targets="0", init=weft.PiSSA()))


def test_detaching_forgets_what_was_to_start() -> None:
    model = weft.attach(without_values(), CONFIG)
    weft.attach(model, CONFIG, "other")
    weft.detach(model, "default")
    weft.attach(model, weft.LoRAConfig(rank=3, targets="0"))
    model.to_empty(device="cpu")
    assert weft.collect(model).factors["0"].rank == 3
    assert torch.count_nonzero(weft.collect(model, "other").factors["1.0"].B) == 0
