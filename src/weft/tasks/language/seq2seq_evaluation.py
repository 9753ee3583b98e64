"""Evaluation of encoder-decoder models on held-out pairs; what it finds is what `text_evaluation` finds of decoders."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft.data.seq2seq import Seq2SeqDataset
from weft.data.text import IGNORED, Collator, beginnings, pad_id
from weft.model import LayPrompt
from weft.tasks.language.evaluation import samples, text_evaluation
from weft.tasks.language.generation import GREEDY, Decoding, generate_texts, spread
from weft.training.mode import evaluating
from weft.training.task import Evaluation, Sample
from weft.training.token_loss import scores_of_logits


def evaluate_seq2seq(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Seq2SeqDataset,
    *,
    batch_size: int = 8,
    generate_rows: int = 0,
    decoding: Decoding = GREEDY,
) -> Evaluation:
    """Evaluates an encoder-decoder, with the adapters that are active now: the loss over all tokens of the targets.

    Args:
        model: an encoder-decoder; its mode and the random state are left as they are.
        tokenizer: the model's.
        dataset: from `load_seq2seq`.
        batch_size: rows at a time.
        generate_rows: sources, spread evenly over the data set, to answer.
        decoding: how the tokens of an answer are chosen.
    """
    collate = Collator(pad_id(tokenizer), LayPrompt(model, beginnings(tokenizer)))
    order = sorted(range(len(dataset)), key=lambda i: len(dataset.examples[i].input_ids))
    loss, correct, tokens = 0.0, 0, 0
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = collate([dataset[i] for i in order[start : start + batch_size]])
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            chosen = inputs["labels"] != IGNORED
            logits = model(**inputs, use_cache=False).logits  # (rows, T, vocabulary), of the labels at their places
            scores = scores_of_logits(logits[chosen], inputs["labels"][chosen])
            loss += float(scores.loss.double().sum())
            correct, tokens = correct + int(scores.correct.sum()), tokens + len(scores.loss)
    answers = _answers(model, tokenizer, dataset, generate_rows, batch_size, decoding)
    return text_evaluation(len(dataset), tokens, loss / tokens, correct, answers)


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Seq2SeqDataset,
    rows: int,
    batch_size: int,
    decoding: Decoding,
) -> list[Sample]:
    """Answers to `rows` sources; the targets of all rows of one source are its references."""
    sources = [tuple(each.input_ids) for each in dataset.examples]
    groups = spread(sources, rows)
    chosen = [sources[group[0]] for group in groups]
    answers = generate_texts(model, tokenizer, chosen, decoding, batch_size)
    return samples(tokenizer, chosen, [[dataset.examples[i].labels for i in group] for group in groups], answers)
