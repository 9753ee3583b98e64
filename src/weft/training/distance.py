"""How far a run's data are from what its base expects, and what that advises. Nothing is changed by it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Vocabulary:
    """How well a tokenizer's vocabulary covers the words of a sample of rows.

    Attributes:
        whole_words: the share of words, as they stand between blanks, that are one token.
        tokens_per_word: tokens over words.
        fragments: the share of tokens that are unknown, or single bytes of a character.
        truncated: the share of all rows that lost tokens, or were left out, for their length.
    """

    whole_words: float
    tokens_per_word: float
    fragments: float
    truncated: float

    def __str__(self) -> str:
        return (
            f"{self.whole_words:.0%} of words are one token, {self.tokens_per_word:.2f} tokens a word, "
            f"{self.fragments:.1%} of tokens unknown or bytes; {self.truncated:.1%} of rows cut or left out for length"
        )


@dataclass(frozen=True)
class Advice:
    """What one setting might better be.

    Attributes:
        setting: its name.
        value: what is advised.
        given: what the run has.
        reason: why, with the source.
    """

    setting: str
    value: float
    given: float | None
    reason: str

    def __str__(self) -> str:
        given = "" if self.given is None else f" (the run has {self.given:g})"
        return f"{self.setting} {self.value:g}{given}: {self.reason}"


@dataclass(frozen=True)
class Distance:
    """How far data are from what a base expects; `str` is for people.

    Attributes:
        rows: training rows scored, spread evenly.
        low, median, high: the base's loss on them, in nats per learned token of a row: the 10th percentile, the
            median, the 90th.
        guessing: the loss of one who knows nothing, and gives every token the same probability; None where that is
            not known.
        per_character: the base's loss in nats per character of what is learned, over all rows scored. Unlike the loss
            per token it compares texts that a vocabulary cuts into longer and shorter pieces: bytes are easy to guess.
        vocabulary: of text.
        advice: what it advises.
    """

    rows: int
    low: float
    median: float
    high: float
    guessing: float | None = None
    per_character: float | None = None
    vocabulary: Vocabulary | None = None
    advice: Sequence[Advice] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """What was found, and each advice, as sentences."""
        loss = f"base loss over {self.rows} rows: {self.median:.2f} nats per learned token in the median row"
        loss += f", {self.low:.2f} to {self.high:.2f} for the middle eight tenths"
        if self.guessing is not None:
            loss += f"; guessing gives {self.guessing:.2f}"
        if self.per_character is not None:
            loss += f"; {self.per_character:.2f} nats a character"
        found = [loss] if self.vocabulary is None else [loss, str(self.vocabulary)]
        return [*found, *(f"advice: {each}" for each in self.advice)]

    def __str__(self) -> str:
        return "\n".join(["distance of the data from the base:", *(f"  {line}" for line in self.lines())])
