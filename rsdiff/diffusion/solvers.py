"""Samplers: from noise to image, in pure steps over `denoise(x, t) -> prediction`.

The generalised reverse step from t to s < t (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16) is

    x_s = α_s x̂_0 + √(1 - ᾱ_s - τ²) ε̂ + τ z,  z ~ N(0, I)                                          (1)
    τ = η √((1 - ᾱ_s) / (1 - ᾱ_t)) √(1 - ᾱ_t / ᾱ_s)                                               (2)

η = 0 is DDIM, deterministic; η = 1 over all T steps is DDPM's ancestral sampling with the posterior variance β̃.

Samplers own no randomness: the first noise, and that of each stochastic step, come in as arguments.
"""

from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.diffusion.schedule import Prediction, Schedule, like, to_eps, to_x0

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def timestep_grid(timesteps: int, steps: int) -> np.ndarray:
    """int32 (steps + 1,) from T down to 0, quadratically spaced: the sampler goes from each entry to the next.

    Even spacing would make the last jump from t = T / steps. There σ is many times the contrast of fine texture, so the
    x_0 predicted there, which is the result, has none. Squares (Song et al. 2021, appendix D.2) end in small steps.

    Raises:
      ValueError: steps is not in [1, T].
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f'{steps} sampling steps; the schedule allows 1 to {timesteps}')
    index = np.arange(steps, -1, -1)
    return np.maximum(np.rint(timesteps * (index / steps) ** 2), index).astype(np.int32)  # no step is empty


def reverse_step(schedule: Schedule, x0, xt, t, s, eta: float = 0.0, z=None):
    """x_s of (1) from the predicted x0. t, s: (batch,) or scalar, 0 ≤ s < t; z: standard normal, needed if η > 0."""
    ab_t, ab_s = like(schedule.alpha_bar[t], xt), like(schedule.alpha_bar[s], xt)
    tau = eta * jnp.sqrt((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s))
    eps = to_eps(schedule, x0, xt, t)
    xs = jnp.sqrt(ab_s) * x0 + jnp.sqrt(jnp.maximum(1 - ab_s - tau**2, 0.0)) * eps
    return xs if z is None else xs + tau * z


def sample(denoise: Denoise, schedule: Schedule, kind: Prediction, x, steps: int, *, eta: float = 0.0,
           step_noise: Callable[[jax.Array], jax.Array] | None = None,
           refine: Callable[[jax.Array], jax.Array] = lambda x0: x0):
    """Runs (1) from `x` at t = T down to t = 0.

    Args:
      denoise: (x, t) → prediction of `kind`; t is int32 (batch,).
      x: (batch, height, width, channels), standard normal.
      steps: how many network evaluations, 1 to T.
      eta: η of (2); above 0 it needs `step_noise`.
      step_noise: t (int32 scalar, the step's start) → standard normal of x's shape.
      refine: applied to every predicted x_0, for instance a projection onto what is known of it.
    Returns:
      The sample, the shape of `x`.
    """
    if eta > 0 and step_noise is None:
        raise ValueError('eta > 0 needs step_noise')
    grid = jnp.asarray(timestep_grid(schedule.timesteps, steps))

    def step(xt, pair):
        t, s = pair
        ts = jnp.full(xt.shape[:1], t)
        x0 = refine(to_x0(schedule, kind, denoise(xt, ts), xt, ts))
        return reverse_step(schedule, x0, xt, t, s, eta, step_noise(t) if eta > 0 else None), None

    return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]
