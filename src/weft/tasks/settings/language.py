"""The settings that runs of language models share: how long rows are, how they are batched, and how answers come."""

from abc import ABC
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from weft.errors import ConfigError
from weft.training.config import RunConfig


def _has_a_place_for_the_input(template: str) -> str:
    if "{input}" not in template:
        raise ConfigError(f"prompt_template: expected {{input}} somewhere in it, found {template!r}")
    return template


PromptTemplate = Annotated[str, AfterValidator(_has_a_place_for_the_input)]
"""The wording of a prompt; what a row's column holds stands at ``{input}``."""


class LanguageRun(RunConfig, ABC):
    """A language model learns to answer."""

    max_length: int | None = Field(
        None,
        ge=2,
        description="Tokens in a row at most; of an encoder-decoder, in what it reads, and in what it is to write. "
        "Default: as many as the base's context holds.",
    )
    long_rows: Literal["truncate", "drop", "error"] = Field(
        "truncate",
        description="Longer rows: truncate (a prompt's left; the end of what is to be summarized; plain text's right), "
        "drop, or stop with an error.",
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
        0,
        ge=0,
        description="Held-out prompts to answer at each evaluation, for the text metrics; rows of one prompt are its "
        "references.",
    )
    max_new_tokens: int = Field(64, ge=1, description="Tokens in such an answer at most.")
    num_beams: int = Field(1, ge=1, description="Beams of a beam search for such answers; 1: greedy.")
    length_penalty: float = Field(
        1.0, description="Divide a beam's log-probability by its length to this power; above 1 favors long answers."
    )
    no_repeat_ngram_size: int = Field(
        0, ge=0, description="Let no run of so many tokens come twice within an answer; 0 to allow it."
    )

    @model_validator(mode="after")
    def _has_rows_to_answer(self) -> Self:
        asked_for = type(self).model_fields["generate_rows"].default == 0  # else it is no wish of the user's
        if asked_for and self.generate_rows and not self.has_eval:
            raise ConfigError("generate_rows needs held-out data: give eval or eval_share")
        return self
