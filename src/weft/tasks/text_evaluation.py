"""Evaluation on held-out text: loss and accuracy over the learned tokens, and greedy answers against references."""

import math

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from weft.data.text import Example, TextDataset, context_length, pad_id
from weft.tasks.text_metrics import text_scores
from weft.training.frozen_cache import FrozenCache
from weft.training.mode import evaluating
from weft.training.row_scores import RowScorer
from weft.training.task import Evaluation, Sample


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TextDataset,
    *,
    batch_size: int = 8,
    generate_rows: int = 0,
    max_new_tokens: int = 64,
    cache: FrozenCache | None = None,
) -> Evaluation:
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
    found = {
        "tokens": tokens,
        "loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
        "token_accuracy": int(scores.correct.sum()) / tokens,
    }
    if answers:
        found |= {"generated_rows": len(answers), **text_scores(answers)}
    return Evaluation(len(dataset), found, answers)


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TextDataset,
    rows: int,
    batch_size: int = 8,
    max_new_tokens: int = 64,
) -> list[Sample]:
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


def _answer(tokenizer: PreTrainedTokenizerBase, example: Example, answer: str) -> Sample:
    ids, start = list(example.input_ids), example.prompt_length
    prompt, reference = tokenizer.batch_decode([ids[:start], ids[start:]], skip_special_tokens=True)
    return Sample(prompt, reference.strip(), answer.strip())


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those that the model's generation settings name."""
    settings = model.generation_config
    ends = settings.eos_token_id if settings is not None else None
    own = ends if isinstance(ends, list) else [ends]
    return sorted({end for end in [*own, tokenizer.eos_token_id] if end is not None})
