"""What every way of tuning shares: the steps and the batches, the loss, the optimiser, and how settings are chosen.

A batch has real and extra examples in fixed shares, as He et al. 2023 (arXiv 2210.07574, section 3.2) weigh them equally,
so that no arm drowns its real images in extra ones. With soft labels y_i the loss is

    −mean_i Σ_c y_ic log softmax_c(s_ic)                                                              (1)

Steps, batch and shares are the same for every arm. Learning rate and weight decay each training chooses for itself, from one
grid for all arms, by the accuracy on the validation split (equal ones: by (1)). Were they chosen for the arm `real` and
forced on the others, a gain would also measure how badly that choice suits them; this way every arm is at its best, had
as many tries as any other, and a cell depends on no other cell. What chooses never gets to see a test image: `choose` takes
the validation images and hands on a model, which is only then shown the images that scores are computed on.
"""

import dataclasses
import itertools
from typing import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rsdiff.base.errors import BadInput
from rsdiff.downstream.task import Images

Captions = Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How every arm is trained, whatever its images.

    Attributes:
      steps: optimiser steps.
      batch: examples a step.
      learning_rates: peaks of a cosine with 10 % warm-up, to choose from.
      weight_decays: of matrices, not of biases, scales or the temperature; to choose from.
      real_fraction: share of real images in a batch, for an arm that has both kinds.
    """

    steps: int
    batch: int
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...] = (0.1,)
    real_fraction: float = 0.5

    def __post_init__(self):
        if not self.candidates or min(self.learning_rates) <= 0 or min(self.weight_decays) < 0:
            raise BadInput(
                f'learning rates {self.learning_rates} must be above 0, and weight decays '
                f'{self.weight_decays} not below'
            )

    @property
    def candidates(self) -> tuple[tuple[float, float], ...]:
        """Every (learning rate, weight decay)."""
        return tuple(itertools.product(self.learning_rates, self.weight_decays))


@dataclasses.dataclass(frozen=True)
class Fitted:
    """One candidate, trained.

    Attributes:
      logits: uint8 (n, size, size, 3) → (n, classes).
      losses: of every step, or of every few.
      seconds: what its training took.
      hits: (uint8 (n, size, size, 3), captions of each) → `retrieval.hits_of_images`, of what was trained for retrieval.
    """

    learning_rate: float
    weight_decay: float
    logits: Callable[[np.ndarray], np.ndarray]
    losses: np.ndarray
    seconds: float
    hits: Callable[[np.ndarray, Captions], dict[str, np.ndarray]] | None = None


def choose(candidates: Iterable[Fitted], validation: Images | None) -> tuple[Fitted, float | None, float]:
    """The candidate that does best on the validation images, its accuracy there, and the seconds that all candidates took.
    Without validation images the first one wins."""
    best, best_score, seconds = None, (-np.inf, -np.inf), 0.0
    for candidate in candidates:
        seconds += candidate.seconds
        if validation is None:
            return candidate, None, seconds
        logits = candidate.logits(validation.pixels)
        own = np.eye(logits.shape[1], dtype=np.float32)[validation.labels]
        loss = float(cross_entropy(logits, own))
        # what is no number any more comes after all that is
        score = (float((logits.argmax(1) == validation.labels).mean()), -loss) if np.isfinite(loss) else (-1.0, -np.inf)
        if best is None or score > best_score:
            best, best_score = candidate, score
    if best is None:
        raise ValueError('no candidates')
    return best, best_score[0], seconds


def cross_entropy(logits: jax.Array | np.ndarray, labels: jax.Array | np.ndarray) -> jax.Array:
    """(1): logits and labels (n, classes) → a scalar."""
    return -(labels * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()


def batches(real: int, extra: int, recipe: Recipe, seed: int) -> np.ndarray:
    """Which examples each step takes, int32 (steps, batch): the real ones, numbers below `real`, before the extra ones.

    Each kind is passed through in shuffled epochs. The real ones are drawn alike whatever is extra.
    """
    share = recipe.real_fraction if real and extra else float(real > 0)
    n_real = round(recipe.batch * share)
    from_real = _epochs(real, recipe.steps * n_real, [0, seed]).reshape(recipe.steps, n_real)
    from_extra = _epochs(extra, recipe.steps * (recipe.batch - n_real), [1, seed]).reshape(recipe.steps, -1)
    return np.concatenate([from_real, real + from_extra], axis=1).astype(np.int32)


def optimizer(
    recipe: Recipe, learning_rate: jax.Array | float, weight_decay: jax.Array | float
) -> optax.GradientTransformation:
    """AdamW with a cosine; both numbers may be traced, so that one compiled step serves all candidates."""
    warm_up = max(1, recipe.steps // 10)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, max(recipe.steps, warm_up + 1))

    def decayed(params):
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda count: learning_rate * shape(count), b2=0.98, eps=1e-6, weight_decay=weight_decay, mask=decayed
        ),
    )


def _epochs(n: int, count: int, seed: list[int]) -> np.ndarray:
    """`count` indices below `n`: one shuffled pass after another."""
    generator = np.random.default_rng(seed)
    passes = [generator.permutation(n) for _ in range(-(-count // max(n, 1)))]
    return np.concatenate([np.arange(0), *passes])[:count]
