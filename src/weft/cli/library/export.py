"""``weft library export``: a plain PEFT folder outside the library."""

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.library.options import AsJson, Name, Place
from weft.cli.output import print_json, results


def export(
    name: Name,
    output: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter in a folder in use.")] = False,
    place: Place = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter as a PEFT folder outside the library."""
    from weft.library import Library

    written = Library(place).export(name, output, overwrite=overwrite)
    if as_json:
        print_json({"output": str(written)})
        return
    results().print(f"wrote {written}", markup=False, soft_wrap=True)
