"""Samplers against what is known in closed form: a perfect denoiser, and data that is Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule, target, to_eps
from rsdiff.diffusion.solvers import reverse_step, sample, timestep_grid

SCHEDULE = make_schedule(ScheduleConfig())
ZERO = make_schedule(ScheduleConfig(zero_terminal_snr=True))
X0 = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1, maxval=1)
NOISE = jax.random.normal(jax.random.key(1), X0.shape)


def step_noise(t):
    return jax.random.normal(jax.random.fold_in(jax.random.key(2), t), X0.shape)


@pytest.mark.parametrize('kind', ['eps', 'x0', 'v'])
@pytest.mark.parametrize('eta, steps', [(0.0, 10), (0.0, 1), (1.0, 1000)], ids=['ddim', 'one step', 'ddpm'])
def test_a_perfect_denoiser_recovers_x0(kind, eta, steps):
    perfect = lambda xt, t: target(SCHEDULE, kind, X0, to_eps(SCHEDULE, X0, xt, t), t)
    out = sample(perfect, SCHEDULE, kind, NOISE, steps, eta=eta, step_noise=step_noise)
    np.testing.assert_allclose(out, X0, atol=5e-3 if kind == 'eps' else 1e-4)


@pytest.mark.parametrize('kind', ['x0', 'v'])
@pytest.mark.parametrize('eta, steps', [(0.0, 10), (0.0, 1), (1.0, 1000)], ids=['ddim', 'one step', 'ddpm'])
def test_a_perfect_denoiser_recovers_x0_from_zero_terminal_snr(kind, eta, steps):
    perfect = lambda xt, t: target(ZERO, kind, X0, to_eps(ZERO, X0, xt, t), t)
    out = sample(perfect, ZERO, kind, NOISE, steps, eta=eta, step_noise=step_noise)
    np.testing.assert_allclose(out, X0, atol=1e-4)


@pytest.mark.parametrize('schedule', [SCHEDULE, ZERO], ids=['plain', 'zero terminal SNR'])
def test_only_zero_terminal_snr_samples_the_whole_range_of_brightness(schedule):
    """Of constant images c ~ N(0, s²) with n pixels, x_T has the mean α_T c + σ_T ε̄, ε̄ ~ N(0, 1 / n). The probability
    flow takes one standard deviation of that to c = s; pure noise falls short by the factor below, unless α_T = 0.
    (If there is but one image, its denoiser knows it without looking, and any schedule recovers it.)"""
    s, side = 0.5, 128
    one_sigma = 1 / side  # of the mean of pure noise
    x = jnp.full((1, side, side, 1), one_sigma)

    def denoise(xt, t):
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (schedule.alpha(t), schedule.sigma(t)))
        mean = xt.mean((1, 2, 3), keepdims=True)
        return jnp.broadcast_to(alpha * s**2 * mean / (alpha**2 * s**2 + sigma**2 / side**2), xt.shape)

    alpha, sigma = float(schedule.alpha(1000)), float(schedule.sigma(1000))
    shortfall = one_sigma / (alpha**2 * s**2 + sigma**2 / side**2) ** 0.5
    assert shortfall == 1 if schedule is ZERO else shortfall < 0.8
    out = sample(denoise, schedule, 'x0', x, 1000)
    assert float(out.mean()) == pytest.approx(shortfall * s, rel=0.04)


def gaussian_denoiser(mean, variance):
    """E[x_0 | x_t] for x_0 ~ N(mean, variance)."""

    def denoise(xt, t):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (alpha, sigma))
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (xt - alpha * mean)

    return denoise


def test_ddim_on_a_gaussian_approaches_the_closed_form():
    """The probability flow maps x_T to mean + √variance · (x_T - α_T mean) / √(α_T² variance + σ_T²)."""
    mean, variance = 0.3, 0.04
    alpha, sigma = float(SCHEDULE.alpha(1000)), float(SCHEDULE.sigma(1000))
    exact = mean + variance**0.5 * (NOISE - alpha * mean) / (alpha**2 * variance + sigma**2) ** 0.5
    errors = [float(jnp.sqrt(jnp.mean((sample(gaussian_denoiser(mean, variance), SCHEDULE, 'x0', NOISE, n) - exact) ** 2)))
              for n in (20, 100, 1000)]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    assert errors[2] < 0.04 * variance**0.5


@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_the_moments_on_a_gaussian_follow_their_recursion(eta):
    """With a linear denoiser each step is linear, so mean and variance of the samples are known without sampling."""
    mean, variance, shape = 0.3, 0.04, (1, 128, 128, 3)
    noise = lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(3), t), shape)
    out = sample(gaussian_denoiser(mean, variance), SCHEDULE, 'x0', noise(0), 50, eta=eta, step_noise=noise)

    bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.0015, 0.0155, 1000))])
    grid, m, v = timestep_grid(1000, 50), 0.0, 1.0
    for t, s in zip(grid, grid[1:]):
        gain = np.sqrt(bar[t]) * variance / (bar[t] * variance + 1 - bar[t])
        tau2 = eta**2 * (1 - bar[s]) / (1 - bar[t]) * (1 - bar[t] / bar[s])
        keep = np.sqrt((1 - bar[s] - tau2) / (1 - bar[t]))
        slope = gain * (np.sqrt(bar[s]) - keep * np.sqrt(bar[t])) + keep
        offset = mean * (1 - gain * np.sqrt(bar[t])) * (np.sqrt(bar[s]) - keep * np.sqrt(bar[t]))
        m, v = slope * m + offset, slope**2 * v + tau2
    assert float(out.mean()) == pytest.approx(m, abs=4 * np.sqrt(v / out.size))
    assert float(out.var()) == pytest.approx(v, rel=4 * np.sqrt(2 / out.size))


@pytest.mark.parametrize('t', [1, 2, 500, 1000])
def test_one_ddpm_step_is_the_posterior_of_ho_et_al(t):
    """Equations 6 and 7 of arXiv 2006.11239, written out here from β."""
    beta = np.linspace(0.0015, 0.0155, 1000)
    bar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    xt, z = np.asarray(NOISE), np.asarray(step_noise(t))
    mean = (np.sqrt(bar[t - 1]) * beta[t - 1] * X0 + np.sqrt(1 - beta[t - 1]) * (1 - bar[t - 1]) * xt) / (1 - bar[t])
    variance = (1 - bar[t - 1]) / (1 - bar[t]) * beta[t - 1]
    step = reverse_step(SCHEDULE, X0, NOISE, jnp.int32(t), jnp.int32(t - 1), 1.0, z)
    np.testing.assert_allclose(step, mean + np.sqrt(variance) * z, atol=2e-4)


def test_refine_is_applied_to_every_predicted_x0():
    out = sample(lambda x, t: x, SCHEDULE, 'eps', NOISE, 5, refine=lambda x0: X0)
    np.testing.assert_allclose(out, X0, atol=1e-6)


def test_the_grid_goes_from_T_to_zero_without_repeats():
    for steps in (1, 7, 50, 999, 1000):
        grid = timestep_grid(1000, steps)
        assert len(grid) == steps + 1 and grid[0] == 1000 and grid[-1] == 0 and np.all(np.diff(grid) < 0)
    with pytest.raises(ValueError):
        timestep_grid(1000, 1001)


def test_randomness_has_to_be_given():
    with pytest.raises(ValueError, match='step_noise'):
        sample(lambda x, t: x, SCHEDULE, 'eps', NOISE, 5, eta=0.5)
