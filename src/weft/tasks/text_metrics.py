"""Numbers for answers in words: how near each comes to what the data set has."""

from collections.abc import Sequence

from weft.training.task import Metric, Sample

TEXT_METRICS = (
    Metric("rouge_l", "ROUGE-L", "{:.1f}"),
    Metric("chrf", "chrF", "{:.1f}"),
    Metric("exact_match", "exact match (%)", "{:.1f}"),
)


def text_scores(answers: Sequence[Sample]) -> dict[str, float]:
    """ROUGE-L F1 (Lin, 2004), the mean over rows; chrF (Popovic, 2015) of all; and exact matches; each 0 to 100."""
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
