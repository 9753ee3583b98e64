"""Memory that a training process frees is there for its next step."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from weft.training.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
torch.ones(2**24)  # 64 MiB, more than glibc ever learns to keep by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> tuple[bool, int]:
    """Whether the memory is kept, and the page faults of using 64 MiB sixteen times."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | environment
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *arguments], env=env, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise() -> None:
    kept, few = faults("keep")
    if kept:  # not so with another C library
        _, many = faults("leave")
        assert few < many / 2
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
