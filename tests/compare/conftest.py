"""The comparison that the tests look at, made once."""

from pathlib import Path

import pytest

from compare.runs import Made, make


@pytest.fixture(scope="session")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(base, tmp_path_factory.mktemp("compare"))
