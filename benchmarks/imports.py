"""What importing costs, in fresh interpreters.

    python -m benchmarks.imports [quick]

weft fetches its names when they are first asked for; here all of them are.
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.harness import Case, Options, compare, main

CODE = {
    "torch": "import torch",
    "weft": "import weft; [getattr(weft, name) for name in weft.__all__]",
    "peft": "import peft",
}


def run(code: str) -> None:
    """A whole interpreter's life."""
    subprocess.run([sys.executable, "-c", code], check=True)


def cases(options: Options) -> Iterator[Case]:
    """One."""
    rounds = (10, 10) if options.effort == "full" else (1, 1)
    names = CODE if options.effort == "full" else ("torch", "weft")
    variants = {name: partial(run, CODE[name]) for name in names}
    yield Case("imports", {}, partial(compare, variants, options.seconds, rounds=rounds))


if __name__ == "__main__":
    main(cases)
