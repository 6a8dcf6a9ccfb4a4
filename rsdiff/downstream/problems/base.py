"""What a comparison knows of a downstream problem: how it is fitted, and what is measured of it.

What chooses never gets to see a test image: `fit` takes the validation images and hands on a model, which is only then shown the
images that scores are computed on.
"""

import dataclasses
from typing import Any, Callable, Generic, Iterable, Protocol, TypeVar

import numpy as np

from rsdiff.downstream.arms import Examples
from rsdiff.downstream.task import Images, Task

Model = TypeVar('Model')


@dataclasses.dataclass(frozen=True)
class Fitted(Generic[Model]):
    """One candidate, trained.

    Attributes:
      model: what its problem needs of it, such as a function from pixels to logits.
      losses: of every step, or of every few; of none where nothing was trained.
      seconds: what its training took.
    """

    learning_rate: float
    weight_decay: float
    model: Model
    losses: np.ndarray
    seconds: float


class Problem(Protocol):
    """One method's way to a model, and the model's scores."""

    def check(self, task: Task) -> None:
        """Raises BadInput where the task's images lack what the problem needs, such as captions."""
        ...

    def fit(self, examples: Examples, validation: Images | None, seed: int) -> tuple[Fitted[Any], float | None, float]:
        """The best candidate, its score on the validation images, and the seconds that training took."""
        ...

    def statistics(self, fitted: Fitted[Any], images: Images) -> dict[str, Any]:
        """What the model makes of each image, as JSON keeps it; it reads the pixels once."""
        ...

    def scores(self, statistics: dict[str, Any], images: Images) -> dict[str, Any]:
        """What follows from the statistics alone.

        Raises:
          BadInput: they are not of these images.
        """
        ...


def choose(
    candidates: Iterable[Fitted[Model]], score: Callable[[Fitted[Model]], tuple[float, ...]] | None
) -> tuple[Fitted[Model], float | None, float]:
    """The candidate of the highest score, the first of equals; the first number of its score; and the seconds that all took.
    Without a score the first one wins."""
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
