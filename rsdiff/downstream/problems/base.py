"""The interface of a downstream problem: how a model is fitted, and how it is scored.

Model selection never sees a test image: `fit` takes the validation images and returns a model, which only then is
applied to the images that scores are computed on.
"""

import dataclasses
from typing import Any, Callable, Generic, Iterable, Protocol, TypeVar

import numpy as np

from rsdiff.downstream.arms import Examples
from rsdiff.downstream.task import Images, Task

Model = TypeVar('Model')


@dataclasses.dataclass(frozen=True)
class Fitted(Generic[Model]):
    """One trained candidate.

    Attributes:
      model: the model in the form that its problem needs, such as a function from pixels to logits.
      losses: of every step, or of every few steps; empty if nothing was trained.
      seconds: training time.
    """

    learning_rate: float
    weight_decay: float
    model: Model
    losses: np.ndarray
    seconds: float


class Problem(Protocol):
    """Fits a model by one method, and scores it."""

    def check(self, task: Task) -> None:
        """Raises BadInput if the task's images lack something that the problem needs, such as captions."""
        ...

    def fit(self, examples: Examples, validation: Images | None, seed: int) -> tuple[Fitted[Any], float | None, float]:
        """The best candidate, its score on the validation images, and the training time in seconds."""
        ...

    def statistics(self, fitted: Fitted[Any], images: Images) -> dict[str, Any]:
        """The model's output for each image, in a form that JSON can store; reads the pixels once."""
        ...

    def scores(self, statistics: dict[str, Any], images: Images) -> dict[str, Any]:
        """The scores, computed from the statistics alone.

        Raises:
          BadInput: the statistics do not match the images.
        """
        ...


def choose(
    candidates: Iterable[Fitted[Model]], score: Callable[[Fitted[Model]], tuple[float, ...]] | None
) -> tuple[Fitted[Model], float | None, float]:
    """The candidate with the highest score (the first one if tied), the first number of its score, and the training
    time of all candidates in seconds. Without `score`, the first candidate."""
    best, best_score, seconds = None, (-np.inf,), 0.0
    for candidate in candidates:
        seconds += candidate.seconds
        if score is None:
            return candidate, None, seconds
        own = score(candidate)
        if best is None or own > best_score:
            best, best_score = candidate, own
    if best is None:
        raise ValueError('no candidates')
    return best, best_score[0], seconds
