"""The text metrics, against numbers worked out by hand and the libraries' own examples."""

import pytest

from weft.tasks.language.metrics import TEXT_METRICS, text_scores
from weft.training.task import Sample


def test_every_metric_of_known_answers() -> None:
    samples = [
        Sample("", "the cat sat on the mat", "the cat sat on the mat"),
        Sample("", "a b c d", "a x c"),
    ]
    scores = text_scores(samples)
    assert scores.keys() == {metric.key for metric in TEXT_METRICS}
    # Of the second: unigrams 2 of 3 and of 4, no bigram, the longest common subsequence 2.
    f1 = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert scores["rouge_1"] == pytest.approx(100 * (1 + f1) / 2)
    assert scores["rouge_2"] == pytest.approx(100 * (1 + 0) / 2)
    assert scores["rouge_l"] == pytest.approx(100 * (1 + f1) / 2)
    assert scores["exact_match"] == 50


def test_bleu_by_hand() -> None:
    scores = text_scores([Sample("", "a b c d e f", "a b c d e g")])
    precisions = (5 / 6) * (4 / 5) * (3 / 4) * (2 / 3)
    assert scores["bleu"] == pytest.approx(100 * precisions ** (1 / 4))


def test_the_best_of_several_references_counts() -> None:
    answer = "there is a cheap pub by the river"
    near, far = "there is a cheap pub by the river", "the mill is a place to eat fish"
    alone = text_scores([Sample("", far, answer)])
    both = text_scores([Sample("", far, answer, (near,))])
    for key in ("rouge_1", "rouge_2", "rouge_l", "bleu", "exact_match"):
        assert both[key] == pytest.approx(100)
        assert alone[key] < 100
    assert both["chrf"] == pytest.approx(100)
    assert text_scores([Sample("", near, answer, (far,))])["rouge_1"] == pytest.approx(100)  # in any order


def test_rows_may_have_unlike_numbers_of_references() -> None:
    exact = "there is a cheap pub by the river"
    samples = [Sample("", "no", exact, ("none", exact)), Sample("", exact, exact)]
    scores = text_scores(samples)
    assert scores["rouge_l"] == scores["exact_match"] == 100
    assert scores["bleu"] == pytest.approx(100)


def test_bleu_takes_full_stops_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    text_scores([Sample("", "it is so .", "it is so .")] * 200)
    assert not caplog.records
