"""DistributedDataParallel over two real processes: gradients are the means of what each half of the batch gives."""

from pathlib import Path

import pytest
import torch
from tiny_llama import adapted, gradients, llama, loss_of, token_ids
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

import weft
from weft.errors import StateError

CONFIGS = [
    weft.LoRAConfig(rank=2, variant=variant, dropout=dropout, targets=("all-linear", "embed_tokens"))
    for variant, dropout in ((weft.LoRA(), 0.0), (weft.DoRA(), 0.0))
] + [weft.LoRAConfig(rank=2, variant=variant, dropout=0.1) for variant in (weft.LoRA(), weft.DoRA())]


def expected_gradients(model: nn.Module, halves: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Of the sum of the losses of (ids, seed), divided by the number of processes."""
    model.zero_grad()
    for ids, seed in halves:
        (loss_of(model, ids, seed) / 2).backward()
    return gradients(model)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def _average(config: weft.LoRAConfig, static_graph: bool) -> None:
    rank = distributed.get_rank()
    model, alone = adapted(config), adapted(config)
    parallel = DistributedDataParallel(model, static_graph=static_graph)  # find_unused_parameters=False
    ids = token_ids(8)
    for step in range(2):  # the engine learns the order of gradients in the first
        model.zero_grad()
        batch = ids[4 * step : 4 * step + 4]
        loss_of(parallel, batch[rank::2], seed=rank).backward()
        expected = expected_gradients(alone, [(batch[r::2], r) for r in range(2)])
        assert len(expected) == len(list(weft.trainable_parameters(model)))
        assert_equal(gradients(model), expected)
    if not static_graph:
        model.zero_grad()
        with parallel.no_sync():
            loss_of(parallel, ids[rank : rank + 1], seed=rank).backward()
        assert any(not torch.equal(g, expected[n]) for n, g in gradients(model).items())
        loss_of(parallel, ids[4 + rank :: 2], seed=2 + rank).backward()
        parts = [(ids[r : r + 1], r) for r in range(2)] + [(ids[4 + r :: 2], 2 + r) for r in range(2)]
        assert_equal(gradients(model), expected_gradients(alone, parts))


def _all_average() -> None:
    for config in CONFIGS:
        _average(config, static_graph=False)
    _average(CONFIGS[-1], static_graph=True)


def test_gradients_are_the_means_over_the_processes(tmp_path: Path) -> None:
    """LoRA and DoRA, with dropout and without; every gradient is there, so none has to be searched for."""
    in_two_processes(tmp_path, _all_average)


def _attach_too_late() -> None:
    model = llama()
    before = set(model.state_dict())
    parallel = DistributedDataParallel(model)
    with pytest.raises(StateError, match=r"the DistributedDataParallel around a model.*attach to the model itself"):
        weft.attach(parallel, CONFIGS[0])
    assert set(model.state_dict()) == before
    weft.attach(model, CONFIGS[0])
    with pytest.raises(StateError, match="pass the same module"):
        weft.collect(DistributedDataParallel(model))


def test_the_wrapper_is_no_model_to_attach_to(tmp_path: Path) -> None:
    in_two_processes(tmp_path, _attach_too_late)
