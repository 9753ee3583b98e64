"""Two processes of one job on this machine, over gloo, with a file to meet at instead of a port."""

import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch import multiprocessing as torch_multiprocessing

LIMIT = 240  # seconds: for a machine that is slow and busy; a test takes a few
# A server imports these once, and each process is a copy of it, without any state of the tests' own process.
multiprocessing.set_forkserver_preload(
    ["torch.distributed.fsdp", "transformers.models.llama.modeling_llama", "weft.training", "pytest"]
)


def in_two_processes(folder: Path, work: Callable[..., None], *arguments: object) -> None:
    """Calls ``work(*arguments)`` in each of two processes of one group; raises what either raises."""
    context = torch_multiprocessing.start_processes(
        _work, (folder / "meeting", work, arguments), nprocs=2, join=False, start_method="forkserver"
    )
    end = time.monotonic() + LIMIT
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__} took more than {LIMIT} seconds")


def _work(rank: int, meeting: Path, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    mine, size = str(rank), "2"  # as torchrun sets them; nobody listens at the address
    os.environ.update(RANK=mine, LOCAL_RANK=mine, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, MASTER_ADDR="localhost")
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=LIMIT)
    )
    try:
        work(*arguments)
    finally:
        distributed.destroy_process_group()
