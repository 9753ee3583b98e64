"""The options that describe held-out data, from the words of a shell to a data set."""

from typing import TYPE_CHECKING, Annotated

import typer

from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.data.text import Columns, TextDataset
    from weft.training import Base

_PANEL = "Data"

Data = Annotated[
    str,
    typer.Option(
        help="Held-out data: .jsonl, .json, .csv, .tsv, .parquet, a saved folder, or a hub id.", rich_help_panel=_PANEL
    ),
]
Split = Annotated[str, typer.Option(help="The split, of data that has several.", rich_help_panel=_PANEL)]
MessagesColumn = Annotated[str, typer.Option(help="The column of chat messages.", rich_help_panel=_PANEL)]
PromptColumn = Annotated[str, typer.Option(help="The column of prompts.", rich_help_panel=_PANEL)]
CompletionColumn = Annotated[str, typer.Option(help="The column of completions.", rich_help_panel=_PANEL)]
TextColumn = Annotated[str, typer.Option(help="The column of plain text.", rich_help_panel=_PANEL)]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Tokens in a row at most. Default: the base's context.", min=2, rich_help_panel=_PANEL),
]


def held_out(
    base: "Base", data: str, split: str, columns: "Columns", max_length: int | None, prompt: str = "{input}"
) -> "TextDataset":
    """The rows that the options describe, as the base's tokens; `prompt` is the wording of `load_text`.

    Raises:
        ConfigError: rows longer than the base's context are asked for.
        DataError: data that cannot be used.
    """
    from weft.data.text import context_length
    from weft.training import load_text

    context = context_length(base.model)
    if max_length is not None and context is not None and max_length > context:
        raise ConfigError(f"--max-length: {max_length} tokens are more than the base's context holds ({context})")
    return load_text(
        data, base.tokenizer, split=split, columns=columns, prompt=prompt, max_length=max_length or context
    )
