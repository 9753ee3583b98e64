"""Evaluation on held-out text: loss and accuracy over the learned tokens, and answers against references."""

import math
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft.data.text import TextDataset
from weft.tasks.language.generation import GREEDY, Decoding, generate_texts, spread
from weft.tasks.language.metrics import text_scores
from weft.training.frozen_cache import FrozenCache
from weft.training.row_scores import RowScorer
from weft.training.task import Evaluation, Sample


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TextDataset,
    *,
    batch_size: int = 8,
    generate_rows: int = 0,
    decoding: Decoding = GREEDY,
    cache: FrozenCache | None = None,
) -> Evaluation:
    """Evaluates a model, with the adapters that are active now, on a text data set.

    Args:
        model: a causal language model; its mode and the random state are left as they are.
        tokenizer: the model's.
        dataset: from `load_text`.
        batch_size: rows at a time.
        generate_rows: prompts, spread evenly over the data set, to answer. Plain text has none.
        decoding: how the tokens of an answer are chosen.
        cache: of the frozen blocks' output, open on this model, if the data set is one of its.
    """
    scores = RowScorer(model, tokenizer, dataset, batch_size=batch_size, cache=cache).scores()
    answers = generate_answers(model, tokenizer, dataset, generate_rows, batch_size, decoding)
    return text_evaluation(len(dataset), int(scores.tokens.sum()), scores.mean_loss, int(scores.correct.sum()), answers)


def text_evaluation(rows: int, tokens: int, loss: float, correct: int, answers: list[Sample]) -> Evaluation:
    """What was found, with the text metrics of the answers, if there are any.

    Args:
        rows: rows evaluated.
        tokens: learned tokens in them.
        loss: the mean over these, in nats.
        correct: those of them that are the most likely ones.
        answers: to some rows.
    """
    found = {
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "token_accuracy": correct / tokens,
    }
    if answers:
        found |= {"generated_rows": len(answers), **text_scores(answers)}
    return Evaluation(rows, found, answers)


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TextDataset,
    rows: int,
    batch_size: int = 8,
    decoding: Decoding = GREEDY,
) -> list[Sample]:
    """Answers to `rows` prompts spread evenly over the data set, in its order; arguments as of `evaluate`.

    The completions of all rows of one prompt are its references.
    """
    prompted = [each for each in dataset.examples if each.prompt_length]
    prompts = [tuple(each.input_ids[: each.prompt_length]) for each in prompted]
    groups = spread(prompts, rows)
    chosen = [prompts[group[0]] for group in groups]
    answers = generate_texts(model, tokenizer, chosen, decoding, batch_size)
    wanted = [[prompted[i].input_ids[prompted[i].prompt_length :] for i in group] for group in groups]
    return samples(tokenizer, chosen, wanted, answers)


def samples(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    references: Sequence[Sequence[Sequence[int]]],
    answers: Sequence[str],
) -> list[Sample]:
    """Prompts and references, as token ids, with their answers, as people would read them."""

    def texts(rows: Sequence[Sequence[int]]) -> list[str]:
        return [str(tokenizer.decode(list(row), skip_special_tokens=True)) for row in rows]

    found = []
    for prompt, wanted, answer in zip(texts(prompts), references, answers, strict=True):
        first, *others = (text.strip() for text in texts(wanted))
        found.append(Sample(prompt, first, answer, tuple(others)))
    return found
