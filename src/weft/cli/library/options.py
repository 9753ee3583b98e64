"""What all commands of a library take."""

from pathlib import Path
from typing import Annotated

import typer

Place = Annotated[
    Path | None,
    typer.Option(
        "--library", help="The library's folder. Default: $WEFT_LIBRARY, or the user's data folder.", show_default=False
    ),
]
Name = Annotated[str, typer.Argument(help="Its name, or the beginning of its digest.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
