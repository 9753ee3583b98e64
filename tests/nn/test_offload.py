"""Weights that accelerate keeps on the host or a disk, under an adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from harness import identical, output, pretend_training
from torch import nn

import weft
from weft.errors import MergeError, StateError

Offload = Callable[[nn.Module, Path], object]

OFFLOADS: dict[str, Offload] = {
    "cpu": lambda model, path: cpu_offload(model, execution_device=torch.device("cpu")),
    "disk": lambda model, path: disk_offload(model, str(path), execution_device=torch.device("cpu")),
    "dispatched": lambda model, path: dispatch_model(
        model,
        {"0": "cpu", "1": "disk", "2": "cpu", "3": "disk"},
        main_device="cpu",
        offload_dir=str(path),
        force_hooks=True,
    ),
}


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(9, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.Sequential(nn.Linear(7, 7), nn.Tanh())
    )


IDS = torch.tensor([[1, 4, 0], [8, 2, 2]])
CONFIG = weft.LoRAConfig(rank=2, targets=("0", "1"), bias="all", train_modules=("3",))


@pytest.mark.parametrize("name", OFFLOADS)
@pytest.mark.parametrize("init", [weft.Kaiming(), weft.PiSSA()], ids=repr)
def test_a_dispatched_model_takes_an_adapter_and_trains(name: str, init: weft.Kaiming, tmp_path: Path) -> None:
    config = weft.LoRAConfig(rank=2, targets=("0", "1"), bias="all", train_modules=("3",), init=init)
    plain, offloaded = base(), base()
    OFFLOADS[name](offloaded, tmp_path)
    expected = output(offloaded, IDS)
    assert identical(expected, output(plain, IDS))
    weft.attach(offloaded, config)
    assert identical(output(offloaded, IDS), expected)

    pretend_training(offloaded)
    adapter = weft.collect(offloaded)
    weft.attach(plain, adapter)
    assert torch.allclose(output(offloaded, IDS), output(plain, IDS), atol=1e-6)
    offloaded(IDS).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in weft.trainable_parameters(offloaded))

    weft.detach(offloaded)
    assert identical(output(offloaded, IDS), expected)
    weft.attach(offloaded, adapter)
    assert torch.allclose(output(offloaded, IDS), output(plain, IDS), atol=1e-6)


@pytest.mark.parametrize("name", OFFLOADS)
def test_offloaded_weights_are_not_merged_into_and_named(name: str, tmp_path: Path) -> None:
    model = base()
    OFFLOADS[name](model, tmp_path)
    weft.attach(model, CONFIG)
    pretend_training(model)
    expected = output(model, IDS)
    with pytest.raises(MergeError, match=r"(?s)1: its weights are not in memory.*3: its weights are not in memory"):
        weft.merge(model)
    assert identical(output(model, IDS), expected)


@pytest.mark.parametrize("name", OFFLOADS)
def test_offloading_after_attaching_is_refused_at_the_first_forward(name: str, tmp_path: Path) -> None:
    model = base()
    weft.attach(model, weft.LoRAConfig(rank=2, targets="1"))
    OFFLOADS[name](model, tmp_path)
    with pytest.raises(StateError, match="dispatch or offload the model before attaching"):
        model(IDS)


def test_hooks_can_be_taken_off_under_an_adapter() -> None:
    model = base()
    expected = output(model, IDS)
    cpu_offload(model, execution_device=torch.device("cpu"))
    weft.attach(model, CONFIG)
    pretend_training(model)
    trained = output(model, IDS)
    remove_hook_from_submodules(model)
    assert identical(output(model, IDS), trained)
    with weft.merged(model):
        assert torch.allclose(output(model, IDS), trained, atol=1e-6)
    weft.detach(model)
    assert identical(output(model, IDS), expected)
    assert type(model[1]) is nn.Linear


def test_a_model_that_once_had_hooks_takes_an_adapter() -> None:
    model = base()
    expected = output(model, IDS)
    cpu_offload(model, execution_device=torch.device("cpu"))
    remove_hook_from_submodules(model)
    weft.attach(model, CONFIG)
    assert identical(output(model, IDS), expected)
    pretend_training(model)
    assert not torch.equal(output(model, IDS), expected)
    weft.detach(model)
    assert identical(output(model, IDS), expected)
