"""``weft demo``: the main job on real data, in a few minutes."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.output import quiet_transformers


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for data, runs, pictures and adapters.")
    ] = Path("weft-demo"),
    rows: Annotated[
        int, typer.Option(min=2, help="Rows to train each adapter on, at most: fewer are faster, and teach less.")
    ] = 2000,
) -> None:
    """Train two adapters on the bundled base, compare, switch and merge them.

    Takes a few minutes on two CPU cores and needs no network: the data are the functions of Python's own standard
    library, split so that evaluation is on modules that were never trained on. One adapter learns to write the first
    line of a docstring, the other to name a function. Prints losses and text metrics before and after, switches
    between the two on one base, merges one, and takes it out again bit for bit.

    Example:

        weft demo --output runs/demo
    """
    from weft.demo.run import demo as run_demo

    quiet_transformers()
    run_demo(output, rows)
