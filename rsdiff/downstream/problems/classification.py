"""Classification of images into the task's classes.

With soft labels y_i the loss is

    −mean_i Σ_c y_ic log softmax_c(s_ic)                                                              (1)

Candidates are chosen by the accuracy on the validation images; (1) breaks ties.
"""

from typing import Any, Callable, Iterable

import jax
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.downstream import scores
from rsdiff.downstream.arms import Examples
from rsdiff.downstream.problems.base import Fitted, choose
from rsdiff.downstream.task import Images, Task

# uint8 (n, size, size, 3) → (n, classes)
Logits = Callable[[np.ndarray], np.ndarray]


class Classification:
    """A `Problem`.

    Args:
      candidates: (examples, seed) → the trained candidates of a grid; an iterator may train them one by one.
    """

    def __init__(self, classes: tuple[str, ...], candidates: Callable[[Examples, int], Iterable[Fitted[Logits]]]):
        self.classes, self.candidates = classes, candidates

    def check(self, task: Task) -> None:
        """Needs only labels, which every task has."""

    def fit(
        self, examples: Examples, validation: Images | None, seed: int
    ) -> tuple[Fitted[Logits], float | None, float]:
        judge = None if validation is None else lambda fitted: _accuracy(fitted.model(validation.pixels), validation)
        return choose(self.candidates(examples, seed), judge)

    def statistics(self, fitted: Fitted[Logits], images: Images) -> dict[str, Any]:
        return {'predictions': fitted.model(images.pixels).argmax(1).tolist()}

    def scores(self, statistics: dict[str, Any], images: Images) -> dict[str, Any]:
        return class_scores(statistics, images.labels, len(self.classes))


def class_scores(statistics: dict[str, Any], labels: np.ndarray, classes: int) -> dict[str, Any]:
    """`accuracy`, `macro_f1` and `confusion` (true × predicted) of `predictions`.

    Raises:
      BadInput: `predictions` is not a list of one valid class per label.
    """
    predictions = statistics.get('predictions')
    if not isinstance(predictions, list) or len(predictions) != len(labels):
        raise BadInput(f'predictions are not a list of {len(labels)} class indices')
    if not all(type(one) is int and 0 <= one < classes for one in predictions):
        raise BadInput(f'predictions are not all indices of {classes} classes')
    confusion = scores.confusion_matrix(labels, np.array(predictions), classes)
    return {
        'accuracy': scores.accuracy(confusion),
        'macro_f1': scores.macro_f1(confusion),
        'confusion': confusion.tolist(),
    }


def cross_entropy(logits: jax.Array | np.ndarray, labels: jax.Array | np.ndarray) -> jax.Array:
    """(1): logits and labels (n, classes) → a scalar."""
    return -(labels * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()


def _accuracy(logits: np.ndarray, images: Images) -> tuple[float, float]:
    """(accuracy, −loss); non-finite candidates rank last."""
    loss = float(cross_entropy(logits, np.eye(logits.shape[1], dtype=np.float32)[images.labels]))
    return (float((logits.argmax(1) == images.labels).mean()), -loss) if np.isfinite(loss) else (-1.0, -np.inf)
