"""The training objective: add noise, predict, weight the error.

    L = E_{x0, ε, t} [ λ_t · mean (ε̂ - ε)² ]                            (1)
    λ_t = (k + SNR_t)^-γ                                                (2)

(2) is P2 weighting (Choi et al. 2022, arXiv 2204.00227). k = 1 gives λ_t = (1 - ᾱ_t)^γ for a variance-preserving
schedule; γ = 0 gives the unweighted loss. What the network predicts and where its error is measured are separate choices:
by (4) and (5) of `schedule`, the errors of one prediction in ε, v and x_0 differ by a factor that depends on t alone,

    |ε̂ - ε|² = SNR_t |x̂_0 - x_0|²,   |v̂ - v|² = (α_t² + σ_t²) (1 + SNR_t) |x̂_0 - x_0|²    (3)

Where SNR_t = 0, at the end of a schedule with zero terminal SNR, the network cannot predict ε. Errors of x_0 and v have
their usual weight there, which is zero if the error is measured in ε, and k must be positive.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rsdiff.base.ranges import check_range
from rsdiff.diffusion.schedule import Prediction, Schedule, target


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the network predicts, where its error is measured, and k and γ of (2)."""

    prediction: Prediction = 'eps'
    error_in: Prediction = 'eps'
    p2_k: float = 1.0
    p2_gamma: float = 1.0

    def __post_init__(self):
        check_range(self, 0, 1e6, 'p2_k')
        check_range(self, 0, 100, 'p2_gamma')


def p2_weight(schedule: Schedule, t, k: float, gamma: float):
    """λ_t of (2), the shape of `t`."""
    return (k + schedule.snr(t)) ** -gamma


def error_factor(schedule: Schedule, t, space: Prediction):
    """|error in `space`|² / |error in x_0|², by (3), the shape of `t`."""
    snr = schedule.snr(t)
    return {'x0': jnp.ones_like(snr), 'v': schedule.power(t) * (1 + snr), 'eps': snr}[space]


def stratified_timesteps(key, batch: int, timesteps: int):
    """int32 (batch,) in [1, T]: each is uniform, and together they are evenly spaced, which lowers the variance of the loss
    (Kingma et al. 2021, arXiv 2107.00630, appendix I.1)."""
    u = (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0
    return 1 + jnp.minimum((u * timesteps).astype(jnp.int32), timesteps - 1)


def loss_terms(prediction, schedule: Schedule, config: ObjectiveConfig, x0, eps, t):
    """The weighted error in (1) for each example.

    Args:
      prediction: of `config.prediction`, from `add_noise(schedule, x0, eps, t)`; the shape of x0.
      x0: (batch, height, width, channels).
      eps: standard normal, the shape of x0.
      t: int (batch,) in [1, T].
    Returns:
      float32 (batch,).
    """
    error = (prediction - target(schedule, config.prediction, x0, eps, t)).astype(jnp.float32)
    weight = p2_weight(schedule, t, config.p2_k, config.p2_gamma)
    weight *= error_factor(schedule, t, config.error_in) / error_factor(schedule, t, config.prediction)
    return weight * jnp.mean(error**2, axis=range(1, x0.ndim))
