"""How much work an operation does, in calls of functions: it grows with the modules, and not with what is loaded."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import weft

BLOCKS, FEW, MANY = 16, 2, 12


def model(blocks: int = BLOCKS) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(blocks)))


def calls(action: Callable[[], object]) -> int:
    """How many functions, in Python and in C, are called on the way."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.collect()  # so that no object of an earlier test is finalized on the way
    sys.setprofile(counted)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "adapter"
    return weft.collect(weft.attach(model(), weft.LoRAConfig(rank=1))).save(path)


ACTIONS: dict[str, Callable[[nn.Module, Path], object]] = {
    "load": lambda base, folder: weft.attach(base, weft.load(folder), "new"),
    "attach": lambda base, folder: weft.attach(base, weft.LoRAConfig(rank=1), "new"),
    "activate": lambda base, folder: weft.activate(base, "first"),
    "detach": lambda base, folder: weft.detach(base, "first"),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_it_does_not_grow_with_what_is_loaded(name: str, folder: Path) -> None:
    counts = []
    for loaded in (FEW, FEW, MANY):  # twice, as what is found out for the first time is remembered
        base = model()
        for i in range(loaded):
            weft.attach(base, weft.load(folder), "first" if i == 0 else f"a{i}")
        counts.append(calls(lambda base=base: ACTIONS[name](base, folder)))  # type: ignore[misc]
    # A few calls for each adapter are well, but none for each adapter on each of the modules.
    assert counts[2] - counts[1] <= 4 * (MANY - FEW) < (MANY - FEW) * BLOCKS
    assert counts[1] > BLOCKS


@pytest.mark.parametrize("name", ACTIONS)
def test_it_grows_with_the_modules_alone_and_evenly(name: str, tmp_path: Path) -> None:
    counts = []
    for blocks in (BLOCKS, BLOCKS, 2 * BLOCKS, 4 * BLOCKS):
        folder = weft.collect(weft.attach(model(blocks), weft.LoRAConfig(rank=1))).save(tmp_path / f"{len(counts)}")
        base = weft.attach(model(blocks), weft.load(folder), "first")
        counts.append(calls(lambda base=base, folder=folder: ACTIONS[name](base, folder)))  # type: ignore[misc]
    _, once, twice, four_times = counts
    assert four_times - twice <= 2.1 * (twice - once)


def test_a_second_adapter_costs_no_more_than_the_first() -> None:
    weft.attach(model(), weft.LoRAConfig(rank=1))
    base = model()
    first = calls(lambda: weft.attach(base, weft.LoRAConfig(rank=1)))
    assert calls(lambda: weft.attach(base, weft.LoRAConfig(rank=1), "second")) <= first


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        weft.attach(model(), weft.LoRAConfig(rank=1))
        with pytest.raises(weft.WeftError):
            weft.attach(model(), weft.LoRAConfig(rank=1, targets="nothing"))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
