"""The settings of runs on summaries."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.tasks.settings.language import LanguageRun, PromptTemplate
from weft.training.config import run_settings

if TYPE_CHECKING:
    from weft.training.task import Task


@run_settings.register("summarize")
class SummarizeRun(LanguageRun):
    """A decoder or an encoder-decoder learns to write a short text for a long one."""

    task: Literal["summarize"] = Field("summarize", description="What is learned.")

    input_column: str = Field("dialogue", description="The column of what is worked on.")
    summary_column: str | tuple[str, ...] = Field(
        "summary",
        description="The column of summaries. Several columns, or a list in one, are several references of a row.",
    )
    prompt_template: PromptTemplate | None = Field(
        None,
        description="The wording of a prompt around what its column holds, which stands at {input}. Default: nothing "
        "around it; for summaries, what suits the base (it is printed).",
    )
    generate_rows: int = Field(
        50,
        ge=0,
        description="Held-out prompts to answer at each evaluation, for the text metrics; rows of one prompt are its "
        "references.",
    )

    @classmethod
    def implementation(cls) -> "type[Task]":
        """The task of summaries."""
        from weft.tasks.summarize import SummarizeTask

        return SummarizeTask
