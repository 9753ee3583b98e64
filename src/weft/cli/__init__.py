"""The command line. Each command is one file; what is heavy is imported when a command runs, not for ``--help``."""

from typing import Annotated

import typer

from weft.cli.combine import combine
from weft.cli.compare import compare
from weft.cli.curve import curve
from weft.cli.demo import demo
from weft.cli.errors import Commands
from weft.cli.eval import evaluate
from weft.cli.extract import extract
from weft.cli.generate import generate
from weft.cli.inspect import inspect
from weft.cli.library import library
from weft.cli.merge import merge
from weft.cli.plan import plan
from weft.cli.resize import resize
from weft.cli.train import train

app = typer.Typer(
    name="weft",
    cls=Commands,
    help="The whole life of a LoRA adapter: plan it, train it, evaluate it, look at it, combine it, merge it.",
    epilog="`weft COMMAND --help` explains a command, with examples. A base is a folder, a hub id, or `bundled`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(demo)
app.command()(plan)
app.command()(train)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(generate)
app.command()(inspect)
app.command()(merge)
app.command()(combine)
app.command()(resize)
app.command()(curve)
app.command()(extract)
app.add_typer(library, name="library")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"weft {version('weft')}")
        raise typer.Exit


@app.callback()
def _weft(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; exits with 0, with 2 for an error that has a name or bad usage, 130 after Ctrl-C."""
    app()
