"""How well labels are told apart: accuracy, F1 and Matthews correlation, by scikit-learn."""

from collections.abc import Sequence

from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from weft.training.task import Metric

ACCURACY = Metric("accuracy", "accuracy", "{:.2%}")
F1 = Metric("f1", "F1 of the second label", "{:.2%}")
MACRO_F1 = Metric("f1_macro", "macro F1", "{:.2%}")
MATTHEWS = Metric("matthews", "Matthews correlation", "{:.3f}")

CLASS_METRICS = (ACCURACY, F1, MACRO_F1, MATTHEWS)


def class_scores(references: Sequence[int], answers: Sequence[int], labels: int) -> dict[str, float]:
    """The scores of answers, from 0 to 1 (Matthews correlation: -1 to 1).

    The macro F1 is the mean of the labels' F1, over those that stand in the references or the answers; the F1 of the
    second label, as published for two labels (its name is often 1, or "positive"), is there for two alone. Matthews
    correlation (Gorodkin, 2004, for several labels) is 0 for answers that do not depend on the row, whatever the
    labels' shares.

    Args:
        references, answers: indices of labels, as many of each.
        labels: how many labels there are.
    """
    scores = {
        ACCURACY.key: accuracy_score(references, answers),
        F1.key: f1_score(references, answers, pos_label=1, zero_division=0.0) if labels == 2 else None,
        MACRO_F1.key: f1_score(references, answers, average="macro", zero_division=0.0),
        MATTHEWS.key: matthews_corrcoef(references, answers),
    }
    return {key: float(value) for key, value in scores.items() if value is not None}
