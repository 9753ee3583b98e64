"""The settings of runs on instructions, in the layouts in which people publish them."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.tasks.settings.language import LanguageRun
from weft.training.config import run_settings

if TYPE_CHECKING:
    from weft.training.task import Task


@run_settings.register("instruct")
class InstructRun(LanguageRun):
    """A causal language model learns to follow instructions, in one turn or many; answers alone are learned."""

    task: Literal["instruct"] = Field("instruct", description="What is learned.")

    template: Literal["auto", "chat", "plain", "alpaca"] = Field(
        "auto",
        description="How a conversation becomes text: chat, the base's own chat template; plain, weft's own; alpaca, "
        "the prompt of Stanford Alpaca. auto: chat where the base has one, else plain; which is printed.",
    )
    messages_column: str = Field("messages", description="The column of chat messages.")
    conversations_column: str = Field("conversations", description="The column of ShareGPT's conversations.")
    instruction_column: str = Field("instruction", description="The column of instructions.")
    input_column: str = Field("input", description="The column of what is worked on.")
    output_column: str = Field("output", description="The column of answers to instructions.")
    prompt_column: str = Field("prompt", description="The column of prompts.")
    completion_column: str = Field("completion", description="The column of completions.")
    system_column: str = Field("system", description="The column of system messages, beside any of the others.")

    @classmethod
    def implementation(cls) -> "type[Task]":
        """The task of instructions."""
        from weft.tasks.instruct import InstructTask

        return InstructTask
