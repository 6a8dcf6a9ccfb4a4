"""Shared by all training methods: the recipe, the batches, the optimiser and the training loop.

A batch has real and extra examples in fixed shares, as He et al. 2023 (arXiv 2210.07574, section 3.2) weigh them
equally, so that in no arm the real images are outweighed by extra ones. Steps, batch size and shares are the same for
every arm. Each training run chooses its own learning rate and weight decay on the validation split, from one grid for
all arms (`problems.base.choose`). If they were chosen for the arm `real` and imposed on the others, a gain would also
measure how badly they suit the others. This way, every arm is at its best, has as many tries as any other, and no cell
depends on another.
"""

import dataclasses
import itertools
from typing import Any, Callable, Iterable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rsdiff.base.errors import BadInput
from rsdiff.base.seeds import seed_key

# of AdamW
B2, EPS = 0.98, 1e-6


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How every arm is trained, whatever its images. Its fields are part of a cell's digest.

    Attributes:
      steps: optimiser steps.
      batch: examples per step.
      learning_rates: peaks of a cosine schedule with 10 % warm-up, to choose from.
      weight_decays: to choose from; applied to matrices, not to biases, scales or the temperature.
      real_fraction: share of real images in a batch, for arms with both kinds.
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
                f'{self.weight_decays} must not be below 0'
            )

    @property
    def candidates(self) -> tuple[tuple[float, float], ...]:
        """Every (learning rate, weight decay)."""
        return tuple(itertools.product(self.learning_rates, self.weight_decays))


class State(NamedTuple):
    """Parameters, the optimiser's state, and the average of the parameters over steps, if requested."""

    params: Any
    moments: Any
    average: Any = None


class Training:
    """A loss and its optimiser, compiled once for all inputs of the same shapes.

    Args:
      loss: (params, key, *batch) → a scalar; every step has its own key.
      half_life: half-life, in steps, of the average of parameters; None: no average.
      eps: of AdamW.
    """

    def __init__(
        self, loss: Callable[..., jax.Array], recipe: Recipe, half_life: float | None = None, eps: float = EPS
    ):
        def start(candidate, params):
            moments = optimizer(recipe, candidate[0], candidate[1], eps).init(params)
            return State(params, moments, None if half_life is None else params)

        def step(candidate, state, key, number, batch):
            step_loss = lambda params: loss(params, jax.random.fold_in(key, number), *batch)
            value, gradient = jax.value_and_grad(step_loss)(state.params)
            rule = optimizer(recipe, candidate[0], candidate[1], eps)
            updates, moments = rule.update(gradient, state.moments, state.params)
            params, average = optax.apply_updates(state.params, updates), state.average
            if half_life is not None:
                average = optax.incremental_update(params, average, 1 - 0.5 ** (1 / half_life))
            return State(params, moments, average), value

        def all_steps(candidate, params, key, data, index):
            take = lambda state, numbered: step(candidate, state, key, numbered[0], (*data, numbered[1]))
            state, losses = jax.lax.scan(take, start(candidate, params), (jnp.arange(len(index)), index))
            return state.params, losses

        self._start, self._step = jax.jit(start), jax.jit(step)
        self._grid = jax.jit(jax.vmap(all_steps, (0, None, None, None, None)))

    def fit(
        self,
        params: Any,
        candidate: tuple[float, float],
        batches: Iterable[tuple[Any, ...]],
        seed: int,
        watch: Callable[[int, State, jax.Array], None] | None = None,
    ) -> tuple[Any, np.ndarray]:
        """Takes one step per batch.

        Args:
          candidate: learning rate and weight decay.
          seed: for the keys of the steps.
          watch: called after every step with its number, counted from 1, the state and the loss.
        Returns:
          (parameters after the last step, loss of every step).
        """
        state, key, losses = self._start(candidate, params), seed_key(seed), []
        for number, batch in enumerate(batches):
            state, value = self._step(candidate, state, key, number, batch)
            losses.append(value)
            if watch is not None:
                watch(number + 1, state, value)
        return state.params, np.asarray(jax.device_get(losses))

    def fit_grid(
        self,
        params: Any,
        candidates: Sequence[tuple[float, float]],
        data: tuple[Any, ...],
        index: np.ndarray,
        seed: int,
    ) -> tuple[Any, np.ndarray]:
        """`fit` for all candidates at once, with the batches (*data, row of `index`), in one compiled loop: for steps
        that take less time than their dispatch. Results have a leading axis of candidates."""
        grid = tuple(np.array(values, np.float32) for values in zip(*candidates))
        return jax.device_get(self._grid(grid, params, seed_key(seed), data, index))


def batches(real: int, extra: int, recipe: Recipe, seed: int) -> np.ndarray:
    """Example indices of each step, int32 (steps, batch): the real ones, below `real`, before the extra ones.

    Both kinds are drawn in shuffled epochs. The order of the real ones does not depend on the extra ones.
    """
    share = recipe.real_fraction if real and extra else float(real > 0)
    n_real = round(recipe.batch * share)
    from_real = epochs(real, recipe.steps, n_real, [0, seed])
    from_extra = epochs(extra, recipe.steps, recipe.batch - n_real, [1, seed])
    return np.concatenate([from_real, real + from_extra], axis=1).astype(np.int32)


def epochs(n: int, steps: int, batch: int, seed: int | list[int]) -> np.ndarray:
    """Indices below `n`, int (steps, batch): one shuffled pass after another."""
    generator, count = np.random.default_rng(seed), steps * batch
    passes = [generator.permutation(n) for _ in range(-(-count // max(n, 1)))]
    return np.concatenate([np.arange(0), *passes])[:count].reshape(steps, batch)


def optimizer(
    recipe: Recipe, learning_rate: jax.Array | float, weight_decay: jax.Array | float, eps: float = EPS
) -> optax.GradientTransformation:
    """AdamW with a cosine schedule; learning rate and weight decay may be traced, so that one compiled step serves all
    candidates."""
    warm_up = max(1, recipe.steps // 10)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, max(recipe.steps, warm_up + 1))

    def decayed(params):
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda count: learning_rate * shape(count), b2=B2, eps=eps, weight_decay=weight_decay, mask=decayed
        ),
    )
