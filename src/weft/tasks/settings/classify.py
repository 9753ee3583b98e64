"""The settings of runs on classification: texts, or pairs of texts, with a label each."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from weft.training.config import run_settings
from weft.training.self_training_config import SelfTrainingRun

if TYPE_CHECKING:
    from weft.training.pseudo_labels import SelfTrainedTask


@run_settings.register("classify")
class ClassifyRun(SelfTrainingRun):
    """An encoder or a decoder with a head learns which of several labels a text has."""

    task: Literal["classify"] = Field("classify", description="What is learned.")

    text_column: str = Field(
        "text", description="The column of texts; sentence is found too. Task text: plain text, all of it is learned."
    )
    text_pair_column: str | None = Field(
        None, description="The column of second texts, where a label belongs to two, such as a question and an answer."
    )
    label_column: str = Field("label", description="The column of labels: text, or whole numbers.")
    label_names: tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...] | None = Field(
        None, description="The labels, in the order of the head's outputs. Default: those of the training data, sorted."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: in the training loss, a row counts for rows / (labels x rows with its label), so that a "
        "rare label counts for as much as a frequent one.",
    )
    max_length: int | None = Field(
        None, ge=2, description="Tokens in a row at most. Default: as many as the base's context holds."
    )
    long_rows: Literal["truncate", "drop", "error"] = Field(
        "truncate", description="Longer rows: truncate (their right), drop, or stop with an error."
    )

    @classmethod
    def implementation(cls) -> "type[SelfTrainedTask]":
        """The task of classification."""
        from weft.tasks.classify import ClassifyTask

        return ClassifyTask
