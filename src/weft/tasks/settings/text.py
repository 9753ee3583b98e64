"""The settings of runs on text: prompts with completions, chat messages, or plain text."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from weft.errors import ConfigError
from weft.training.config import RunConfig, run_settings

if TYPE_CHECKING:
    from weft.training.task import Task


@run_settings.register("text")
class TextRun(RunConfig):
    """A causal language model learns completions, what an assistant says, or plain text."""

    task: Literal["text"] = Field("text", description="What is learned.")

    messages_column: str = Field("messages", description="The column of chat messages.")
    prompt_column: str = Field("prompt", description="The column of prompts.")
    completion_column: str = Field("completion", description="The column of completions.")
    text_column: str = Field("text", description="The column of plain text, all of which is learned.")
    max_length: int | None = Field(
        None, ge=2, description="Tokens in a row at most. Default: as many as the base's context holds."
    )
    long_rows: Literal["truncate", "drop", "error"] = Field(
        "truncate",
        description="Longer rows: truncate (the prompt's left; plain text: its right), drop, or stop with an error.",
    )

    batching: Literal["auto", "packed", "sorted", "random"] = Field(
        "auto",
        description="The rows of a batch: packed end to end, in random order, with no padding; padded, sorted so that "
        "rows of like length meet; or padded, in random order. auto: packed where the base can take it, else sorted.",
    )
    cache_frozen: bool = Field(
        False,
        description="Run the blocks below the lowest adapted one (see layers) once for each row, and keep their output "
        "on disk until the run has ended.",
    )
    generate_rows: int = Field(
        0, ge=0, description="Held-out rows to answer greedily at each evaluation, for the text metrics."
    )
    max_new_tokens: int = Field(64, ge=1, description="Tokens in such an answer at most.")

    @model_validator(mode="after")
    def _has_rows_to_answer(self) -> Self:
        if self.generate_rows and not self.has_eval:
            raise ConfigError("generate_rows needs held-out data: give eval or eval_share")
        return self

    @classmethod
    def implementation(cls) -> "type[Task]":
        """The task of text."""
        from weft.tasks.text import TextTask

        return TextTask
