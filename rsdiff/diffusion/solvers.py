"""Samplers: from noise to image, in pure steps over `denoise(x, t) -> prediction`.

For every solver, the step from t to s < t is linear in its inputs,

    x_s = a x_t + b x̂_0 + c x̂_0' + τ z,  z ~ N(0, I)                                              (1)

where x̂_0 is predicted from x_t, and x̂_0' is the prediction of the previous step. A solver is therefore a table of a, b, c,
τ (`Steps`), computed in float64 from the schedule alone. Any slice of it can be run, and the rest later or elsewhere.

The generalised reverse step (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16) has

    τ = η σ_s / σ_t √(σ_t² - (α_t / α_s)² σ_s²)                                                    (2)
    a = √(σ_s² - τ²) / σ_t,  b = α_s - α_t a,  c = 0                                               (3)

η = 0 is DDIM, deterministic; η = 1 is ancestral sampling, from the posterior of x_s given x_t and x_0: over all T steps
DDPM, with the variance β̃. In a schedule that shifts (`Schedule.shifts`), noise is added to x_s without scaling it, and
1 takes the place of α_t / α_s in (2); then η = 1 is ResShift's posterior (arXiv 2307.12348, eq. 7), a = η_s / η_t by its η.
Nothing here needs α² + σ² = 1.

DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) solves the same equation in the half log-SNR
λ = ln(α / σ), along which x̂_0 is extrapolated from two predictions. With h = λ_s - λ_t, h' that of the previous step, and
r = h' / h,

    x_s = σ_s / σ_t x_t - α_s (e^-h - 1) D,  D = (1 + 1 / 2r) x̂_0 - 1 / 2r x̂_0'                    (4)

The first step has no previous prediction, and the last goes to λ = ∞: there D = x̂_0, and (4) is DDIM.

Samplers draw no random numbers: the initial noise, and that of each stochastic step, are passed as arguments.
"""

import dataclasses
from typing import Callable, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rsdiff.diffusion.schedule import Prediction, Schedule, to_x0

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
Solver = Literal['ddim', 'dpm++2m', 'ancestral']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """The coefficients of (1), each an array (steps,): `t` int32, the others float32. A slice is a run of steps."""

    t: jax.Array | np.ndarray
    a: jax.Array | np.ndarray
    b: jax.Array | np.ndarray
    c: jax.Array | np.ndarray
    tau: jax.Array | np.ndarray

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, part: slice) -> 'Steps':
        return jax.tree.map(lambda column: column[part], self)


def timestep_grid(timesteps: int, steps: int) -> np.ndarray:
    """int32 (steps + 1,) from T down to 0, quadratically spaced: the sampler goes from each entry to the next.

    With even spacing, the last step would start at t = T / steps. There σ is many times the contrast of fine texture, so
    the x_0 predicted there, which is the result, has none. Quadratic spacing (Song et al. 2021, appendix D.2) ends in small
    steps.

    Raises:
      ValueError: `steps` is not in [1, T].
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f'{steps} sampling steps; the schedule allows 1 to {timesteps}')
    index = np.arange(steps, -1, -1)
    return np.maximum(np.rint(timesteps * (index / steps) ** 2), index).astype(np.int32)  # no two entries are equal


def ddim(schedule: Schedule, grid: np.ndarray, eta: float = 0.0) -> Steps:
    """(2) and (3) along `grid`, int (steps + 1,), descending."""
    alpha, sigma = _alpha_sigma(schedule, grid)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (alpha[:-1], alpha[1:]), (sigma[:-1], sigma[1:])
    ratio = np.ones_like(alpha_t) if schedule.shifts else alpha_t / alpha_s
    tau = eta * sigma_s / sigma_t * np.sqrt(np.maximum(sigma_t**2 - (ratio * sigma_s) ** 2, 0))
    a = np.sqrt(np.maximum(sigma_s**2 - tau**2, 0)) / sigma_t
    return _table(grid, a, alpha_s - alpha_t * a, np.zeros_like(a), tau)


def dpm_2m(schedule: Schedule, grid: np.ndarray) -> Steps:
    """(4) along `grid`, int (steps + 1,), descending."""
    alpha, sigma = _alpha_sigma(schedule, grid)
    with np.errstate(divide='ignore', invalid='ignore'):  # λ is infinite at t = 0, and at t = T with zero terminal SNR
        h = np.diff(np.log(alpha) - np.log(sigma))
        over_2r = np.append(0, np.where(np.isfinite(h[1:]), h[1:] / (2 * h[:-1]), 0))
    a = sigma[1:] / sigma[:-1]
    first_order = alpha[1:] - alpha[:-1] * a  # -α_s (e^-h - 1), where h may be infinite
    return _table(grid, a, first_order * (1 + over_2r), -first_order * over_2r, np.zeros_like(a))


def solver_steps(solver: Solver, schedule: Schedule, steps: int, start: int | None = None) -> Steps:
    """The table of a solver over `timestep_grid` from t = `start`, T by default."""
    grid = timestep_grid(start or schedule.timesteps, steps)
    if solver == 'dpm++2m':
        return dpm_2m(schedule, grid)
    return ddim(schedule, grid, eta=1.0 if solver == 'ancestral' else 0.0)


def is_stochastic(solver: Solver) -> bool:
    """Whether the solver adds noise at every step."""
    return solver == 'ancestral'


def integrate(predict: Denoise, steps: Steps, x, x0, step_noise: Callable[[jax.Array], jax.Array] | None = None):
    """Runs (1) over `steps`.

    Args:
      predict: (x, t) → x̂_0; t is int32 (batch,).
      x: (batch, height, width, channels), at the time of the first step.
      x0: the prediction of the previous step, the shape of x; not used where c = 0, as in the first step.
      step_noise: t (int32 scalar, the step's start) → standard normal of x's shape; needed if τ > 0.
    Returns:
      x after the last step, and the x_0 predicted in that step.
    Raises:
      ValueError: some τ > 0, but there is no `step_noise`. Not raised for traced `steps`, whose values are not known.
    """
    if step_noise is None and not isinstance(steps.tau, Tracer) and np.any(np.asarray(steps.tau) > 0):
        raise ValueError('a step with τ > 0 needs step_noise')

    def step(state, now):
        x, before = state
        x0 = predict(x, jnp.full(x.shape[:1], now.t))
        x = now.a * x + now.b * x0 + now.c * before
        return (x if step_noise is None else x + now.tau * step_noise(now.t), x0), None

    return jax.lax.scan(step, (x, x0), jax.tree.map(jnp.asarray, steps))[0]


def sample(
    denoise: Denoise,
    schedule: Schedule,
    kind: Prediction,
    x,
    steps: int,
    *,
    solver: Solver = 'ddim',
    step_noise: Callable[[jax.Array], jax.Array] | None = None,
    start: int | None = None,
):
    """Runs a solver from `x` at t = `start` (T by default) down to t = 0.

    Args:
      denoise: (x, t) → prediction of `kind`; t is int32 (batch,).
      x: (batch, height, width, channels); at T, normal with standard deviation `schedule.first_scale`.
      steps: number of network evaluations, 1 to `start`.
      step_noise: as in `integrate`; needed by 'ancestral', ignored by the others.
    Returns:
      The sample, the shape of `x`.
    """
    table = solver_steps(solver, schedule, steps, start)
    predict = lambda xt, t: to_x0(schedule, kind, denoise(xt, t), xt, t)
    return integrate(predict, table, x, jnp.zeros_like(x), step_noise if is_stochastic(solver) else None)[0]


def _alpha_sigma(schedule: Schedule, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.sqrt(schedule.alpha_squared[grid]), np.sqrt(schedule.sigma_squared[grid])


def _table(grid: np.ndarray, *columns: np.ndarray) -> Steps:
    return Steps(np.asarray(grid[:-1], np.int32), *(np.asarray(column, np.float32) for column in columns))
