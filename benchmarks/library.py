"""Opening and searching a library of 10,000 adapters, and what the commands take that do so.

    python -m benchmarks.library [quick]

Each adapter is added as a user adds it. A search opens the library first, and reads what it needs; nothing is kept
between two. The commands are whole interpreters' lives, beside one that does nothing but show its version.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

import weft
from benchmarks.harness import Case, Options, compare, main
from benchmarks.records import Figures
from weft import Adapter, Layout, LoRAConfig, LowRank
from weft.fingerprint import fingerprint
from weft.library import Library

BLOCKS, WIDTH, RANK = 4, 32, 2
TASKS, CRAFTS = ("summarize", "chat", "code", "sql"), ("weaving", "spinning", "dyeing")
PATHS = [f"layers.{block}.{name}" for block in range(BLOCKS) for name in ("q_proj", "v_proj")]


def adapter(number: int) -> Adapter:
    """A small adapter of one of five bases."""
    base = torch.Generator().manual_seed(number % 5)
    own = torch.Generator().manual_seed(number)
    weights = {f"{path}.weight": torch.randn(WIDTH, WIDTH, generator=base) for path in PATHS}
    factors = {
        path: LowRank(torch.randn(WIDTH, RANK, generator=own), torch.randn(RANK, WIDTH, generator=own))
        for path in PATHS
    }
    origin = {"base": f"org/base-{number % 5}", "task": TASKS[number % 4]}
    config = LoRAConfig(rank=RANK, alpha=RANK, targets=("q_proj", "v_proj"))
    return Adapter(config, factors, dict.fromkeys(factors, Layout()), base=fingerprint(weights), provenance=origin)


def filled(place: Path, count: int) -> list[float]:
    """Makes a library with so many adapters; returns the seconds of the last additions, 51 at most."""
    library, seconds = Library(place), []
    for number in range(count):
        added = adapter(number)
        start = time.perf_counter()
        library.add(
            added,
            f"adapter-{number}",
            tags=[f"tag-{number % 50}", "all"],
            description=f"number {number} of many, about {CRAFTS[number % 3]}",
        )
        seconds.append(time.perf_counter() - start)
    return seconds[-51:]


def searching(count: int, seconds: float, commands: bool) -> Figures:
    """Seconds to open the library and to find adapters in it, by each condition and by several; and of the commands."""
    # Not on a disk, if there is another place: every adapter waits for it several times.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary:
        place = Path(temporary) / "library"
        adding = filled(place, count)
        query = weft.load(Library(place).folder("adapter-7"))
        assert query.base is not None

        def search(*words: str, **conditions: object) -> None:
            assert Library(place).search(*words, **conditions)  # type: ignore[arg-type]

        figures = compare(
            {
                "by name": lambda: Library(place)["adapter-7"],
                "text": partial(search, "weaving"),
                "base": partial(search, base=query.base),
                "tag": partial(search, tags=["tag-7"]),
                "all of these": partial(search, "spinning", base=query.base, tags=["tag-7"], task="sql"),
                "similar": partial(search, similar=query),
                "similar, estimated": partial(search, similar="adapter-7", exact=0),
            },
            seconds,
        )
        if commands:
            figures |= compare(_commands(place), seconds, rounds=(5, 10))
    return {"add": {"seconds": adding}, **figures}


def _commands(place: Path) -> dict[str, Callable[[], object]]:
    words, where = (sys.executable, "-m", "weft"), ("--library", str(place))
    lines = {
        "weft --version": (*words, "--version"),
        "weft library list": (*words, "library", "list", *where),
        "weft library search": (*words, "library", "search", "weaving", "--tag", "tag-7", *where),
        "weft library search --similar": (*words, "library", "search", "--similar", "adapter-7", *where),
        "import torch": (sys.executable, "-c", "import torch"),
    }
    return {name: partial(subprocess.run, line, check=True, capture_output=True) for name, line in lines.items()}


def cases(options: Options) -> Iterator[Case]:
    """One size of library."""
    count = {"full": 10_000, "quick": 100, "tiny": 60}[options.effort]
    commands = options.effort == "full"
    yield Case("library", {"adapters": count}, partial(searching, count, options.seconds, commands))


if __name__ == "__main__":
    main(cases)
