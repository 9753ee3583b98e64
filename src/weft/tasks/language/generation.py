"""Answers to prompts, by decoders and encoder-decoders alike."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import FloatTensor, LongTensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weft.data.prompts import lay_prompt
from weft.data.text import beginnings, context_length, pad_id
from weft.model import prompt_ids
from weft.training.mode import evaluating


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer are chosen; the defaults are greedy.

    Attributes:
        max_new_tokens: tokens in an answer at most.
        num_beams: beams of a beam search; 1 for none.
        length_penalty: a beam's log-probability is divided by its length to this power; above 1 favors long answers.
        no_repeat_ngram_size: no run of so many tokens twice within an answer; 0 to allow it. What the prompt holds may
            be said again.
    """

    max_new_tokens: int = 64
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


GREEDY = Decoding()


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = GREEDY,
    batch_size: int = 8,
) -> list[str]:
    """One answer to each prompt, without the prompt; what the model's own generation settings say of it is not heard.

    Args:
        model: a causal language model, or an encoder-decoder; its mode and the random state are left as they are.
        tokenizer: the model's.
        prompts: token ids. A decoder's prompt that leaves no room for an answer in its context loses its left. What
            the active adapter has learned as a prompt is laid before each.
        decoding: how tokens are chosen.
        batch_size: prompts at a time; those of like length meet.
    """
    encodes, limit, most = model.config.is_encoder_decoder, context_length(model), decoding.max_new_tokens
    kept = [list(prompt) for prompt in prompts]
    learned = prompt_ids(model)
    if limit is not None:
        room = max(2, limit - len(learned))
        most = min(most, room - 1)
        kept = kept if encodes else [prompt[-max(1, room - most) :] for prompt in kept]
    kept = [lay_prompt(learned, prompt, beginnings(tokenizer)) for prompt in kept]
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=most,
        min_length=0,
        num_beams=decoding.num_beams,
        length_penalty=decoding.length_penalty,
        early_stopping=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,  # transformers' own would forbid what the prompt holds
        pad_token_id=pad_id(tokenizer),
        eos_token_id=end_ids(model, tokenizer),
        use_cache=True,
    )
    answers: dict[int, str] = {}
    order = sorted(range(len(kept)), key=lambda i: len(kept[i]))
    with evaluating(model):
        for first in range(0, len(kept), batch_size):
            places = order[first : first + batch_size]
            longest = max(len(kept[i]) for i in places)
            padding = [longest - len(kept[i]) for i in places]
            padded = [([pad_id(tokenizer)] * pad, kept[i]) for pad, i in zip(padding, places, strict=True)]
            masks = [([0] * pad, [1] * (longest - pad)) for pad in padding]
            # A decoder goes on from the last token, an encoder has the first in the first place.
            ids, mask = ([b + a if encodes else a + b for a, b in each] for each in (padded, masks))
            start = 0 if encodes else longest
            output = model.generate(  # type: ignore[operator] # every model that generates has it
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
                logits_processor=_processors(decoding, start),
            )
            texts = tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
            answers |= dict(zip(places, map(str.strip, texts), strict=True))
    return [answers[i] for i in range(len(kept))]


def spread(keys: Sequence[Hashable], count: int) -> list[list[int]]:
    """The rows of each of `count` keys spread evenly over all, in order: several rows may have one prompt."""
    rows: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        rows.setdefault(key, []).append(index)
    groups = list(rows.values())
    count = min(count, len(groups))
    return [groups[i * len(groups) // count] for i in range(count)]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those that the model's generation settings name."""
    settings = model.generation_config
    ends = settings.eos_token_id if settings is not None else None
    own = ends if isinstance(ends, list) else [ends]
    return sorted({end for end in [*own, tokenizer.eos_token_id] if end is not None})


class _AnswersNgrams(NoRepeatNGramLogitsProcessor):
    """Forbids an n-gram to come twice, looking at what comes from a position on."""

    def __init__(self, size: int, start: int) -> None:
        super().__init__(size)
        self._start = start

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        return super().__call__(input_ids[:, self._start :], scores)


def _processors(decoding: Decoding, start: int) -> LogitsProcessorList:
    size = decoding.no_repeat_ngram_size
    return LogitsProcessorList([_AnswersNgrams(size, start)] if size else [])
