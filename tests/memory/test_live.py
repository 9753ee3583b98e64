"""Every storage counts once, from the operation that makes it until its last tensor is gone."""

import pytest
import torch

from weft.memory.live import LiveMemory


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storages_count_once_while_they_live(device: str) -> None:
    before = torch.ones(1000, device=device)
    with LiveMemory() as live:
        a = before + 1
        b = a.view(10, 100)[2:]  # another tensor of the same storage
        a.add_(before)  # in place
        assert live.now == 4000
        c = a.double()
        assert live.now == 12000
        del a, c
        assert live.now == 4000
        del b
        assert (live.now, live.peak) == (0, 12000)
        live.restart()
        assert live.peak == 0
        before.add_(1)
        assert live.peak == 0


def test_what_is_kept_for_a_backward_pass_counts() -> None:
    x = torch.ones(1000, requires_grad=True)
    with LiveMemory() as live:
        loss = x.exp().sum()  # exp keeps its output
        assert live.now == 4000 + 4
        del loss
        assert live.now == 0
