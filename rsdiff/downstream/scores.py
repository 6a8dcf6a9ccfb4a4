"""Scores of predicted classes, and their confidence intervals."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (classes, classes): row = true class, column = predicted class."""
    return np.bincount(np.asarray(labels) * classes + predictions, minlength=classes**2).reshape(classes, classes)


def accuracy(confusion: np.ndarray) -> float:
    """Share of images on the diagonal, in [0, 1]."""
    return float(np.trace(confusion) / confusion.sum())


def macro_f1(confusion: np.ndarray) -> float:
    """Mean over classes of 2·TP / (2·TP + FP + FN), in [0, 1]; a class never seen and never predicted counts 0."""
    support_and_predicted = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * np.diag(confusion) / np.maximum(support_and_predicted, 1)
    return float(f1.mean())


def mean_interval(values: ArrayLike) -> tuple[float, float | None]:
    """Mean and half the width of its two-sided 95 % interval by Student's t with n − 1 degrees of freedom.

    One value has no interval: None.
    """
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return float(numbers.mean()), None
    quantile = stats.t.ppf(0.975, len(numbers) - 1)
    return float(numbers.mean()), float(quantile * numbers.std(ddof=1) / np.sqrt(len(numbers)))
