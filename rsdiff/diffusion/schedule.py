"""The forward process and the changes of variable around it (Ho et al. 2020, arXiv 2006.11239).

Time runs t = 0 … T as in the paper: t = 0 is the clean image, t = T is nearly pure noise.

    x_t = α_t x_0 + σ_t ε,  ε ~ N(0, I)                                 (1)
    SNR_t = α_t² / σ_t²                                                 (2)

A schedule is any pair of α and σ. Those of Ho et al. preserve the variance of data with unit variance:

    α_t² = ᾱ_t = Π_{s≤t} (1 - β_s),  ᾱ_0 = 1,  σ_t² = 1 - ᾱ_t             (3)

Others add more and more noise, σ_t² ≫ 1. That of ResShift (Yue et al. 2023, arXiv 2307.12348, eq. 1 to 10) shifts an image x
to its enlarged condition y, x_t = x_0 + η_t (y - x_0) + κ √η_t ε. For the residual z = x - y, which is what is diffused
here, it is (1) with

    α_t = 1 - η_t,  σ_t = κ √η_t                                        (4)
    √η_t = √η_1 (√η_T / √η_1)^(((t - 1) / (T - 1))^p)                    (5)

A network may predict ε, x_0, or v = α_t ε - σ_t x_0 (Salimans & Ho 2022, arXiv
2202.00512). By (1), each of them determines the other two:

    x_0 = (x_t - σ_t ε) / α_t = (α_t x_t - σ_t v) / (α_t² + σ_t²)        (6)
    ε   = (x_t - α_t x_0) / σ_t                                         (7)

With the β of (3), α_T is not 0: in training, the network sees a little of x_0 at t = T, mainly its mean, whereas sampling
starts from noise of mean 0. Lin et al. (2023, arXiv 2305.08891, algorithm 1) shift and rescale α so that α_T = 0,

    α_t ← (α_t - α_T) α_1 / (α_1 - α_T),  t ≥ 1                          (8)

which leaves α_1 unchanged. Then SNR_T = 0, and at t = T ε carries no information about x_0: (6) cannot be used with ε, and
with v it is x_0 = -v.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range

Prediction = Literal['eps', 'x0', 'v']


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """(3): β rises from `beta_start` to `beta_end` over `timesteps` steps, linearly in β or in √β ('sqrt_linear').
    `zero_terminal_snr` rescales the result by (8); it cannot be combined with predicting ε."""

    kind: Literal['beta'] = 'beta'
    timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0155
    shape: Literal['linear', 'sqrt_linear'] = 'linear'
    zero_terminal_snr: bool = False

    def __post_init__(self):
        check_range(self, 1, 100_000, 'timesteps')
        check_range(self, 0, 1, 'beta_start', 'beta_end')
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise BadInput(
                f'beta_start is {self.beta_start} and beta_end {self.beta_end}; 0 < beta_start <= beta_end < 1 must hold'
            )
        if self.zero_terminal_snr and self.timesteps < 2:
            raise BadInput('timesteps is 1; zero_terminal_snr needs at least 2')


@dataclasses.dataclass(frozen=True)
class ResShiftConfig:
    """(4) and (5) with κ = `kappa`, p = `power`, and √η from `start` at t = 1 to `end` at t = T. The defaults are the paper's
    for 15 steps; for 4 steps its later version has `start` 0.1."""

    kind: Literal['resshift'] = 'resshift'
    timesteps: int = 15
    kappa: float = 2.0
    power: float = 0.3
    start: float = 0.02
    end: float = 0.99

    def __post_init__(self):
        check_range(self, 2, 100_000, 'timesteps')
        check_range(self, 1e-3, 1000, 'kappa', 'power')
        check_range(self, 1e-6, 0.9999, 'start', 'end')
        if not self.start < self.end:
            raise BadInput(f'start is {self.start} and end {self.end}; start must be below end')


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """α_t² and σ_t² for t = 0 … T, float64 of shape (T + 1,); σ_0 = 0. In the methods, `t` is an int array of any shape, in
    [0, T]; the result is float32 of that shape.

    `shifts`: from s to t > s, x_t = x_s - (α_s - α_t) x_0 + noise, as in ResShift, not (α_t / α_s) x_s + noise. Only
    ancestral sampling depends on it.
    """

    alpha_squared: np.ndarray
    sigma_squared: np.ndarray
    shifts: bool = False

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alpha_squared) - 1

    @property
    def preserves_variance(self) -> bool:
        """Whether α_t² + σ_t² is 1 for all t."""
        return bool(np.allclose(self.alpha_squared + self.sigma_squared, 1))

    @property
    def first_scale(self) -> float:
        """The standard deviation of x_T, for data of unit variance: the scale of the initial noise."""
        return float(np.sqrt(self.alpha_squared[-1] + self.sigma_squared[-1]))

    def at(self, timesteps: np.ndarray) -> 'Schedule':
        """The schedule of these of its timesteps, int, ascending from 0, alone."""
        return dataclasses.replace(
            self, alpha_squared=self.alpha_squared[timesteps], sigma_squared=self.sigma_squared[timesteps]
        )

    def alpha(self, t):
        """α_t."""
        return jnp.sqrt(_at(self.alpha_squared, t))

    def sigma(self, t):
        """σ_t."""
        return jnp.sqrt(_at(self.sigma_squared, t))

    def power(self, t):
        """α_t² + σ_t², which is 1 if the schedule preserves the variance."""
        return _at(self.alpha_squared + self.sigma_squared, t)

    def snr(self, t):
        """SNR_t of (2); infinite at t = 0, and 0 at t = T after (8)."""
        return _at(self.alpha_squared, t) / _at(self.sigma_squared, t)


def _at(table: np.ndarray, t):
    return jnp.asarray(table, jnp.float32)[t]


def one_step() -> Schedule:
    """The schedule of a single-step network: at t = T = 1 the input is pure noise, and the network predicts x_0."""
    return Schedule(np.array([1.0, 0.0]), np.array([0.0, 1.0]))


def make_schedule(config: ScheduleConfig | ResShiftConfig) -> Schedule:
    """The schedule of (3), rescaled by (8) if the config asks for it, or of (4); computed in float64.

    Raises:
      ValueError: the shape is unknown.
    """
    if isinstance(config, ResShiftConfig):
        part = np.linspace(0.0, 1.0, config.timesteps) ** config.power
        eta = np.append(0.0, config.start * (config.end / config.start) ** part) ** 2
        return Schedule((1.0 - eta) ** 2, config.kappa**2 * eta, shifts=True)
    start, end, steps = config.beta_start, config.beta_end, config.timesteps
    if config.shape == 'linear':
        beta = np.linspace(start, end, steps, dtype=np.float64)
    elif config.shape == 'sqrt_linear':
        beta = np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2
    else:
        raise ValueError(f"schedule shape {config.shape!r} is neither 'linear' nor 'sqrt_linear'")
    alpha_bar = np.cumprod(1.0 - beta)
    if config.zero_terminal_snr:
        alpha = np.sqrt(alpha_bar)
        alpha_bar = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    # ᾱ rounded to float32, so that training (float32) and solvers (float64) use the same noise levels
    alpha_squared = np.concatenate([[1.0], alpha_bar]).astype(np.float32).astype(np.float64)
    return Schedule(alpha_squared, 1.0 - alpha_squared)


def like(values, x):
    """Appends axes to `values` (batch,) so that it broadcasts against `x` (batch, …)."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def add_noise(schedule: Schedule, x0, eps, t):
    """x_t of (1). x0, eps: (batch, …); t: (batch,) or scalar."""
    return like(schedule.alpha(t), x0) * x0 + like(schedule.sigma(t), x0) * eps


def target(schedule: Schedule, kind: Prediction, x0, eps, t):
    """The training target of a network that predicts `kind` from `add_noise(schedule, x0, eps, t)`."""
    if kind == 'eps':
        return eps
    if kind == 'x0':
        return x0
    if kind == 'v':
        return like(schedule.alpha(t), x0) * eps - like(schedule.sigma(t), x0) * x0
    raise ValueError(f"prediction is {kind!r}; it must be one of 'eps', 'x0', 'v'")


def to_x0(schedule: Schedule, kind: Prediction, prediction, xt, t):
    """The x_0 implied by a prediction of `kind` at (xt, t), by (6); not finite for ε where SNR_t = 0."""
    alpha, sigma = like(schedule.alpha(t), xt), like(schedule.sigma(t), xt)
    if kind == 'eps':
        return (xt - sigma * prediction) / alpha
    if kind == 'x0':
        return prediction
    if kind == 'v':
        return (alpha * xt - sigma * prediction) / like(schedule.power(t), xt)
    raise ValueError(f"prediction is {kind!r}; it must be one of 'eps', 'x0', 'v'")


def to_eps(schedule: Schedule, x0, xt, t):
    """The ε that leads from x0 to xt, by (7); t ≥ 1."""
    return (xt - like(schedule.alpha(t), xt) * x0) / like(schedule.sigma(t), xt)
