"""Numbers for answers in words: how near each comes to what the data set has, which may be several references."""

from collections.abc import Sequence
from itertools import zip_longest

from weft.training.task import Metric, Sample

TEXT_METRICS = (
    Metric("rouge_1", "ROUGE-1", "{:.1f}"),
    Metric("rouge_2", "ROUGE-2", "{:.1f}"),
    Metric("rouge_l", "ROUGE-L", "{:.1f}"),
    Metric("bleu", "BLEU", "{:.1f}"),
    Metric("chrf", "chrF", "{:.1f}"),
    Metric("exact_match", "exact match (%)", "{:.1f}"),
)


def text_scores(answers: Sequence[Sample]) -> dict[str, float]:
    """The metrics of `TEXT_METRICS` for at least one answer, each from 0 to 100.

    - ROUGE-1, -2 and -L: F1 (Lin, 2004), without stemming; of several references the best one counts, and rows are
      averaged.
    - BLEU (Papineni et al., 2002) and chrF (Popovic, 2015) over all answers, by sacrebleu with its defaults, whose
      tokenization is 13a; each takes all references of a row.
    - exact match: answers equal to one of their references.
    """
    import sacrebleu  # slow to import, and needed here only
    from rouge_score.rouge_scorer import RougeScorer

    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(kinds.values()))
    rouge = [scorer.score_multi(each.references, each.answer) for each in answers]
    said = [each.answer for each in answers]
    # one list for each place among the references; sacrebleu passes over None
    references = list(zip_longest(*(each.references for each in answers)))
    return {
        **{key: 100 * sum(each[kind].fmeasure for each in rouge) / len(rouge) for key, kind in kinds.items()},
        "bleu": sacrebleu.corpus_bleu(said, references, force=True).score,  # force: it warns of full stops
        "chrf": sacrebleu.corpus_chrf(said, references).score,
        "exact_match": 100 * sum(each.answer in each.references for each in answers) / len(answers),
    }
