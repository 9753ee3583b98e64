"""The loss and the accuracy of each row of a text data set, over its learned tokens."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft.data.packed import PackedCollator
from weft.data.text import IGNORED, Collator, TextDataset, beginnings, pad_id
from weft.model import LayPrompt, prompt_ids
from weft.training.frozen_cache import Collate, FrozenCache
from weft.training.logits import keeps_logits, learned_positions
from weft.training.mode import evaluating
from weft.training.packing import obstacle, packing
from weft.training.token_loss import TokenScores, batch_scores, head_of, scores_of_logits


@dataclass(frozen=True)
class RowScores:
    """What each row of a data set scored, in its order.

    Attributes:
        tokens: its learned tokens, (rows), int64.
        loss: the sum of -log p over them, in nats, (rows), float64.
        correct: those that are the most likely ones, (rows), int64.
    """

    tokens: Tensor
    loss: Tensor
    correct: Tensor

    @property
    def mean_loss(self) -> float:
        """The mean over all learned tokens, in nats."""
        return float(self.loss.sum()) / int(self.tokens.sum())


class RowScorer:
    """Scores the same rows again and again, as a model's adapters change.

    What its model can take, and where its head is, is found out once.

    Args:
        model: a causal language model; its mode and the random state are left as they are.
        tokenizer: the model's.
        dataset: from `load_text`.
        batch_size: rows at a time.
        cache: of the frozen blocks' output, open on this model, if the data set is one of its.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: TextDataset,
        *,
        batch_size: int = 8,
        cache: FrozenCache | None = None,
    ) -> None:
        self._model, self._dataset = model, dataset
        self._lengths = [sum(label != IGNORED for label in each.labels[1:]) for each in dataset.examples]
        self._packed = obstacle(model, dataset.longest + len(prompt_ids(model))) is None
        lay = LayPrompt(model, beginnings(tokenizer), IGNORED)
        collate: Collate = PackedCollator(lay) if self._packed else Collator(pad_id(tokenizer), lay)
        self._collate = collate if cache is None else cache.collator(collate)
        self._head = head_of(model)
        order = sorted(range(len(dataset)), key=lambda i: len(dataset.examples[i].input_ids))
        self._batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def scores(self) -> RowScores:
        """Of each row, with the adapters that are active now."""
        model, head, lengths = self._model, self._head, self._lengths
        loss, correct = torch.zeros(len(lengths), dtype=torch.float64), torch.zeros(len(lengths), dtype=torch.int64)
        with evaluating(model), packing(model) if self._packed else nullcontext():
            for rows in self._batches:
                batch = self._collate([self._dataset[i] for i in rows])
                inputs = {key: value.to(model.device) for key, value in batch.items()}
                scores = batch_scores(model, head, inputs) if head is not None else _scores_of_logits(model, inputs)
                tokens = [lengths[row] for row in rows]  # a batch's learned tokens come row after row
                by_row = (each.cpu().split(tokens) for each in scores)
                for row, row_loss, row_correct in zip(rows, *by_row, strict=True):
                    loss[row], correct[row] = row_loss.double().sum(), row_correct.sum()
        return RowScores(torch.tensor(lengths), loss, correct)


def _scores_of_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> TokenScores:
    """As `batch_scores`, from the model's own logits, for a model whose head cannot be used apart."""
    labels = inputs.pop("labels")
    positions = learned_positions(labels)  # (k)
    kept: dict[str, Any] = {"logits_to_keep": positions} if keeps_logits(model) else {}
    logits = model(**inputs, **kept, use_cache=False).logits
    logits = logits if kept else logits[:, positions]  # (rows, k, vocabulary)
    labels = labels[:, positions + 1]  # (rows, k)
    chosen = labels != IGNORED
    return scores_of_logits(logits[chosen], labels[chosen])
