"""What every test shares: one thread, one seed, and property tests that are the same on every run."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

pytest_plugins = ("tiny_base", "tasks.speech_bases")

# Slow machines are not failures.
settings.register_profile("weft", deadline=None, derandomize=True)
settings.load_profile("weft")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
