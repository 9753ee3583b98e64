"""The settings of self-training, for the tasks that can. Imports neither torch nor transformers."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from weft.errors import ConfigError
from weft.training.config import RunConfig

if TYPE_CHECKING:
    from weft.training.pseudo_labels import SelfTrainedTask


class SelfTrainingRun(RunConfig):
    """A run that may learn from unlabelled rows too."""

    paths: ClassVar[tuple[str, ...]] = (*RunConfig.paths, "unlabeled")

    unlabeled: str | None = Field(
        None,
        description="Unlabelled data, in the same forms: self-training adds the rows whose label the model is sure of. "
        "It needs eval.",
    )
    unlabeled_split: str = Field("train", description="The split of unlabeled, of data that has several.")
    rounds: int = Field(3, ge=1, description="Rounds of self-training, each with a fresh adapter.")
    selection: Literal["threshold", "consistency"] = Field(
        "threshold",
        description="What being sure is: threshold, the probability of the label; consistency, the share of several "
        "passes with dropout that answer with it.",
    )
    confidence: float = Field(0.95, gt=0, le=1, description="How sure is sure enough.")
    passes: int = Field(10, ge=2, description="Passes with dropout, for consistency.")
    pseudo_per_label: int | None = Field(
        None, ge=1, description="Pseudo-labelled rows of a label at most, the surest first. Default: no limit."
    )

    @model_validator(mode="after")
    def _can_measure_a_gain(self) -> Self:
        if self.unlabeled is not None and self.eval is None:
            raise ConfigError(
                "unlabeled: whether self-training gains anything is seen on held-out rows, the same in every round; "
                "give them by eval"
            )
        return self

    @classmethod
    @abstractmethod
    def implementation(cls) -> "type[SelfTrainedTask]":
        """What runs these settings."""
