"""``weft library``: a local library of adapters. Each command is one file, or stands with its sisters."""

import typer

from weft.cli.library.add import add
from weft.cli.library.change import prune, remove, restore, tag
from weft.cli.library.export import export
from weft.cli.library.find import list_adapters, search
from weft.cli.library.show import show
from weft.cli.library.verify import verify

library = typer.Typer(
    help="A local library of adapters: found by text, base, task, tag and similarity, checked, and recoverable.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
library.command()(add)
library.command("list")(list_adapters)
library.command()(search)
library.command()(show)
library.command()(tag)
library.command()(remove)
library.command()(restore)
library.command()(prune)
library.command()(verify)
library.command()(export)
