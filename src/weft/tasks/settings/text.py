"""The settings of runs on text: prompts with completions, chat messages, or plain text."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.tasks.settings.language import LanguageRun, PromptTemplate
from weft.training.config import run_settings

if TYPE_CHECKING:
    from weft.training.task import Task


@run_settings.register("text")
class TextRun(LanguageRun):
    """A causal language model learns completions, what an assistant says, or plain text."""

    task: Literal["text"] = Field("text", description="What is learned.")

    messages_column: str = Field("messages", description="The column of chat messages.")
    prompt_column: str = Field("prompt", description="The column of prompts.")
    completion_column: str = Field("completion", description="The column of completions.")
    prompt_template: PromptTemplate | None = Field(
        None,
        description="The wording of a prompt around what its column holds, which stands at {input}. Default: nothing "
        "around it; for summaries, what suits the base (it is printed).",
    )
    text_column: str = Field("text", description="The column of plain text, all of which is learned.")

    @classmethod
    def implementation(cls) -> "type[Task]":
        """The task of text."""
        from weft.tasks.text import TextTask

        return TextTask
