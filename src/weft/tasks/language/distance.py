"""How far text is from what a language model was trained on: its loss, and how its vocabulary covers the words."""

import math
import re
from collections import Counter

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft.data.text import IGNORED, TextDataset
from weft.training.advice import advise
from weft.training.config import RunConfig
from weft.training.distance import Distance, Vocabulary
from weft.training.row_scores import RowScorer

_ROWS = 64
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte in the vocabularies of SentencePiece


def text_distance(
    config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TextDataset
) -> Distance:
    """Scores some training rows with the base, and looks at their words.

    Args:
        config: the run's settings, for its advice.
        model: the base, without adapters; its mode and the random state are left as they are.
        tokenizer: the base's.
        data: the training rows.
    """
    count = min(_ROWS, len(data))
    sample = TextDataset([data.examples[i * len(data) // count] for i in range(count)])
    scores = RowScorer(model, tokenizer, sample, batch_size=config.batch_size).scores()
    low, median, high = (scores.loss / scores.tokens).quantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    learned = [[token for token in each.labels if token != IGNORED] for each in sample.examples]
    characters = sum(map(len, tokenizer.batch_decode(learned, skip_special_tokens=True)))
    report = data.report
    truncated = (report.truncated + report.dropped) / (report.rows + report.dropped)
    return Distance(
        rows=count,
        low=low,
        median=median,
        high=high,
        guessing=math.log(model.config.get_text_config().vocab_size),
        per_character=float(scores.loss.sum()) / max(1, characters),
        vocabulary=_vocabulary(tokenizer, sample, truncated),
        advice=advise(config, model, rows=report.rows, label_tokens=report.label_tokens, loss=scores.mean_loss),
    )


def _vocabulary(tokenizer: PreTrainedTokenizerBase, sample: TextDataset, truncated: float) -> Vocabulary:
    texts = tokenizer.batch_decode([list(each.input_ids) for each in sample.examples], skip_special_tokens=True)
    words = Counter(word for text in texts for word in text.split())
    tokens: Counter[int] = Counter()
    whole = 0
    for word, times in words.items():
        ids: list[int] = tokenizer(f" {word}", add_special_tokens=False, verbose=False)["input_ids"]
        whole += times * (len(ids) == 1)
        for token in ids:
            tokens[token] += times
    total = max(1, words.total())
    broken = sum(times for token, times in tokens.items() if _is_fragment(tokenizer, token))
    return Vocabulary(whole / total, tokens.total() / total, broken / max(1, tokens.total()), truncated)


def _is_fragment(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token is unknown, or no whole character."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    return token == tokenizer.unk_token_id or bool(_BYTE.fullmatch(name)) or "\ufffd" in tokenizer.decode([token])
