"""How an error leaves the command line: one message on stderr, no traceback, and an exit code."""

from typing import Any

import typer
from typer.core import TyperGroup

from weft.cli.output import errors
from weft.errors import WeftError

# Which extra brings a package that a command needs.
_EXTRAS = {
    "transformers": "train",
    "tokenizers": "train",
    "huggingface_hub": "train",
    "accelerate": "train",
    "datasets": "train",
    "rouge_score": "train",
    "sacrebleu": "train",
    "matplotlib": "train",
    "nevergrad": "hub-search",
}


class Commands(TyperGroup):
    """weft's commands: what one raises on purpose becomes a message, and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except WeftError as error:
            _print(str(error))
            raise typer.Exit(2) from error
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            _print(f"this command needs {package}, which is not installed; run: pip install 'weft[{_EXTRAS[package]}]'")
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _print(message: str) -> None:
    errors().print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
