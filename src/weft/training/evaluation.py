"""Evaluation on held-out text: loss and accuracy over the learned tokens, and greedy answers against references."""

import dataclasses
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from weft.data.packed import PackedCollator
from weft.data.text import IGNORED, Collator, Example, TextDataset, context_length, pad_id
from weft.training.frozen_cache import Collate, FrozenCache
from weft.training.logits import keeps_logits, learned_positions
from weft.training.mode import evaluating
from weft.training.packing import obstacle, packing
from weft.training.token_loss import TokenScores, batch_scores, head_of, scores_of_logits


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        rows: rows evaluated.
        tokens: label tokens: those on which the loss is taken.
        loss: the mean of -log p over all label tokens, in nats; a long row counts for more than a short one.
        perplexity: exp(loss).
        token_accuracy: the share of label tokens that are the most likely one.
        generated_rows: rows answered greedily for the metrics below; these are None if there were none.
        rouge_l: ROUGE-L F1 (Lin, 2004), the mean over rows, 0 to 100.
        chrf: chrF (Popovic, 2015) of all answers, 0 to 100.
        exact_match: answers equal to their reference but for outer white space, in percent.
    """

    rows: int
    tokens: int
    loss: float
    perplexity: float
    token_accuracy: float
    generated_rows: int = 0
    rouge_l: float | None = None
    chrf: float | None = None
    exact_match: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Answer:
    """A greedy answer beside what the data set has."""

    prompt: str
    reference: str
    answer: str


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TextDataset,
    *,
    batch_size: int = 8,
    generate_rows: int = 0,
    max_new_tokens: int = 64,
    cache: FrozenCache | None = None,
) -> EvalResult:
    """Evaluates a model, with the adapters that are active now, on a text data set.

    Args:
        model: a causal language model; its mode and the random state are left as they are.
        tokenizer: the model's.
        dataset: from `load_text`.
        batch_size: rows at a time.
        generate_rows: rows, spread evenly over the data set, to answer greedily. Plain text has no answers.
        max_new_tokens: tokens in an answer at most.
        cache: of the frozen blocks' output, open on this model, if the data set is one of its.
    """
    scores = RowScorer(model, tokenizer, dataset, batch_size=batch_size, cache=cache).scores()
    tokens = int(scores.tokens.sum())
    mean = scores.mean_loss
    answers = generate_answers(model, tokenizer, dataset, generate_rows, batch_size, max_new_tokens)
    return EvalResult(
        rows=len(dataset),
        tokens=tokens,
        loss=mean,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        token_accuracy=int(scores.correct.sum()) / tokens,
        generated_rows=len(answers),
        **_text_metrics(answers),
    )


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
    """Scores the same rows again and again, as a model's adapters change; arguments as of `evaluate`.

    What its model can take, and where its head is, is found out once.
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
        self._packed = obstacle(model, dataset.longest) is None
        collate: Collate = PackedCollator() if self._packed else Collator(pad_id(tokenizer))
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


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TextDataset,
    rows: int,
    batch_size: int = 8,
    max_new_tokens: int = 64,
) -> list[Answer]:
    """Greedy answers to `rows` prompts spread evenly over the data set, in its order.

    A prompt that leaves no room for an answer in the model's context loses its left.
    """
    prompted = [example for example in dataset.examples if example.prompt_length]
    count = min(rows, len(prompted))
    chosen = [prompted[i * len(prompted) // count] for i in range(count)]
    limit = context_length(model)
    prompts = [list(example.input_ids[: example.prompt_length]) for example in chosen]
    if limit is not None:
        prompts = [prompt[-max(1, limit - max_new_tokens) :] for prompt in prompts]
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens if limit is None else min(max_new_tokens, limit - 1),
        pad_token_id=pad_id(tokenizer),
        eos_token_id=end_ids(model, tokenizer),
        use_cache=True,
    )
    answers: dict[int, str] = {}
    order = sorted(range(count), key=lambda i: len(prompts[i]))
    with evaluating(model):
        for start in range(0, count, batch_size):
            places = order[start : start + batch_size]
            longest = max(len(prompts[i]) for i in places)
            padding = [longest - len(prompts[i]) for i in places]
            ids = [[pad_id(tokenizer)] * pad + prompts[i] for pad, i in zip(padding, places, strict=True)]
            mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
            output = model.generate(  # type: ignore[operator] # every causal language model has it
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
            )
            texts = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
            answers |= dict(zip(places, texts, strict=True))
    return [_answer(tokenizer, chosen[i], answers[i]) for i in range(count)]


def _answer(tokenizer: PreTrainedTokenizerBase, example: Example, answer: str) -> Answer:
    ids, start = list(example.input_ids), example.prompt_length
    prompt, reference = tokenizer.batch_decode([ids[:start], ids[start:]], skip_special_tokens=True)
    return Answer(prompt, reference.strip(), answer.strip())


def _text_metrics(answers: list[Answer]) -> dict[str, float]:
    if not answers:
        return {}
    import sacrebleu  # slow to import, and needed here only
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(each.reference, each.answer)["rougeL"].fmeasure for each in answers]
    chrf = sacrebleu.corpus_chrf([each.answer for each in answers], [[each.reference for each in answers]])
    return {
        "rouge_l": 100 * sum(rouge) / len(rouge),
        "chrf": chrf.score,
        "exact_match": 100 * sum(each.answer == each.reference for each in answers) / len(answers),
    }


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those that the model's generation settings name."""
    settings = model.generation_config
    ends = settings.eos_token_id if settings is not None else None
    own = ends if isinstance(ends, list) else [ends]
    return sorted({end for end in [*own, tokenizer.eos_token_id] if end is not None})
