"""Word and character error rates (jiwer), after Whisper's own normalization of text."""

from collections.abc import Callable, Mapping, Sequence

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from weft.training.task import Metric

Normalize = Callable[[str], str]

SPEECH_METRICS = (
    Metric("wer", "word error rate", "{:.1f}", greater_is_better=False),
    Metric("cer", "character error rate", "{:.1f}", greater_is_better=False),
)


def normalizer(english: bool, spellings: Mapping[str, str]) -> Normalize:
    """What Whisper's authors compare texts by (Radford et al., 2022, appendix C).

    Args:
        english: make numbers, contractions and spellings one too; else only case, punctuation and what is in brackets
            are taken away. That takes the vowel signs of some scripts (such as Devanagari) along.
        spellings: British to American, of Whisper's tokenizer.
    """
    normalize = EnglishTextNormalizer(spellings) if english else BasicTextNormalizer()
    return lambda text: str(normalize(text)).strip()


def error_rates(references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Substitutions, deletions and insertions over all words, or characters, of the references, in percent.

    More than 100 where answers are much longer than their references.
    """
    return {
        "wer": 100 * float(jiwer.wer(list(references), list(answers))),
        "cer": 100 * float(jiwer.cer(list(references), list(answers))),
    }
