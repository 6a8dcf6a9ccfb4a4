"""Samplers against closed forms: a perfect denoiser, and Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.diffusion.schedule import (
    ResShiftConfig,
    Schedule,
    ScheduleConfig,
    add_noise,
    make_schedule,
    one_step,
    target,
    to_eps,
)
from rsdiff.diffusion.solvers import ddim, dpm_2m, integrate, sample, solver_steps, timestep_grid

SCHEDULE = make_schedule(ScheduleConfig())
ZERO = make_schedule(ScheduleConfig(zero_terminal_snr=True))
X0 = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1, maxval=1)
NOISE = jax.random.normal(jax.random.key(1), X0.shape)


def step_noise(t):
    return jax.random.normal(jax.random.fold_in(jax.random.key(2), t), X0.shape)


@pytest.mark.parametrize('kind', ['eps', 'x0', 'v'])
@pytest.mark.parametrize(
    'solver, steps', [('ddim', 10), ('ddim', 1), ('ancestral', 1000)], ids=['ddim', 'one step', 'ddpm']
)
def test_a_perfect_denoiser_recovers_x0(kind, solver, steps):
    perfect = lambda xt, t: target(SCHEDULE, kind, X0, to_eps(SCHEDULE, X0, xt, t), t)
    out = sample(perfect, SCHEDULE, kind, NOISE, steps, solver=solver, step_noise=step_noise)
    np.testing.assert_allclose(out, X0, atol=5e-3 if kind == 'eps' else 1e-4)


@pytest.mark.parametrize('kind', ['x0', 'v'])
@pytest.mark.parametrize(
    'solver, steps', [('ddim', 10), ('ddim', 1), ('ancestral', 1000)], ids=['ddim', 'one step', 'ddpm']
)
def test_a_perfect_denoiser_recovers_x0_from_zero_terminal_snr(kind, solver, steps):
    perfect = lambda xt, t: target(ZERO, kind, X0, to_eps(ZERO, X0, xt, t), t)
    out = sample(perfect, ZERO, kind, NOISE, steps, solver=solver, step_noise=step_noise)
    np.testing.assert_allclose(out, X0, atol=1e-4)


@pytest.mark.parametrize('schedule', [SCHEDULE, ZERO], ids=['plain', 'zero terminal SNR'])
def test_only_zero_terminal_snr_samples_the_whole_range_of_brightness(schedule):
    """For constant images c ~ N(0, s²) of n pixels, the mean of x_T is α_T c + σ_T ε̄ with ε̄ ~ N(0, 1 / n). The
    probability flow maps one standard deviation of it to c = s; pure noise falls short by the factor below, unless
    α_T = 0. (With a single image, the denoiser returns it whatever x_T is, so any schedule recovers it.)"""
    s, side = 0.5, 128
    one_sigma = 1 / side  # standard deviation of the mean of pure noise
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
    errors = [
        float(jnp.sqrt(jnp.mean((sample(gaussian_denoiser(mean, variance), SCHEDULE, 'x0', NOISE, n) - exact) ** 2)))
        for n in (20, 100, 1000)
    ]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    assert errors[2] < 0.04 * variance**0.5


@pytest.mark.parametrize('solver, eta', [('ddim', 0.0), ('ancestral', 1.0)])
def test_the_moments_on_a_gaussian_follow_their_recursion(solver, eta):
    """With a linear denoiser each step is linear, so mean and variance of the samples are known without sampling."""
    mean, variance, shape = 0.3, 0.04, (1, 128, 128, 3)
    noise = lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(3), t), shape)
    out = sample(gaussian_denoiser(mean, variance), SCHEDULE, 'x0', noise(0), 50, solver=solver, step_noise=noise)

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
    one = ddim(SCHEDULE, np.array([t, t - 1]), eta=1.0)
    step, _ = integrate(lambda x, t: X0, one, NOISE, jnp.zeros_like(X0), lambda t: z)
    np.testing.assert_allclose(step, mean + np.sqrt(variance) * z, atol=2e-4)


@pytest.mark.parametrize('array', [np.asarray, jnp.asarray])
def test_a_stochastic_step_without_noise_is_refused(array):
    grid, predict = timestep_grid(1000, 4), gaussian_denoiser(0.3, 0.04)
    tables = [jax.tree.map(array, ddim(SCHEDULE, grid, eta)) for eta in (0.0, 1.0)]
    run = lambda steps: integrate(predict, steps, NOISE, jnp.zeros_like(NOISE))
    with pytest.raises(ValueError, match='step_noise'):
        run(tables[1])
    np.testing.assert_allclose(jax.jit(run)(tables[0])[0], run(tables[0])[0], atol=1e-5)


def test_where_noise_explodes_a_step_is_the_posterior_too():
    """The posterior of x_t = (α_t / α_s) x_s + noise as a product of two Gaussians; α_t = 1 - η_t, σ_t = κ √η_t."""
    kappa, eta = 2.0, np.concatenate([[0.0], np.linspace(0.04, 0.999, 15) ** 2])
    schedule = Schedule((1 - eta) ** 2, kappa**2 * eta)
    for t in (1, 2, 8, 15):
        one = ddim(schedule, np.array([t, t - 1]), eta=1.0)
        # Gaussian posterior: precision and information of x_s given x_0, and given x_t
        keep = (1 - eta[t]) / (1 - eta[t - 1])
        between = kappa**2 * (eta[t] - keep**2 * eta[t - 1])
        before = kappa**2 * eta[t - 1]
        variance = before * between / (before * keep**2 + between)
        np.testing.assert_allclose(one.tau, np.sqrt(variance), rtol=1e-5)
        np.testing.assert_allclose(one.a, keep * before / (before * keep**2 + between), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.b, (1 - eta[t - 1]) * between / (before * keep**2 + between), rtol=1e-5)


@pytest.mark.parametrize('steps', [15, 4])
def test_resshift_follows_its_paper(steps):
    """η, the forward process and the posterior of arXiv 2307.12348 (eq. 2, 7, 8, 10), written out for images x, y."""
    kappa, power, first, last = 2.0, 0.3, 0.02, 0.99
    ratio = np.exp(np.log(last / first) / (steps - 1))
    t = np.arange(1, steps + 1)
    eta = np.append(0, (first * ratio ** (((t - 1) / (steps - 1)) ** power * (steps - 1))) ** 2)
    schedule = make_schedule(ResShiftConfig(timesteps=steps))
    x0, y, eps = np.asarray(X0), np.asarray(X0)[::-1], np.asarray(NOISE)
    for t in (1, 2, steps):
        xt = x0 + eta[t] * (y - x0) + kappa * np.sqrt(eta[t]) * eps
        np.testing.assert_allclose(add_noise(schedule, x0 - y, eps, t), xt - y, atol=1e-5)
        mean = eta[t - 1] / eta[t] * xt + (eta[t] - eta[t - 1]) / eta[t] * x0
        deviation = kappa * np.sqrt(eta[t - 1] * (eta[t] - eta[t - 1]) / eta[t])
        one, z = solver_steps('ancestral', schedule, steps)[steps - t : steps - t + 1], np.asarray(step_noise(t))
        assert one.t == t
        step, _ = integrate(lambda z, t: x0 - y, one, xt - y, jnp.zeros_like(X0), lambda t: z)
        np.testing.assert_allclose(step + y, mean + deviation * z, atol=1e-5)
    assert one.tau[0] > 0 and solver_steps('ancestral', schedule, steps).tau[-1] == 0  # the last step adds no noise


@pytest.mark.parametrize('solver', ['ddim', 'dpm++2m'])
def test_where_noise_explodes_a_gaussian_is_sampled_from_the_first_scale(solver):
    """The probability flow of N(mean, variance), in closed form as above, with σ_T = 3."""
    mean, variance, t = 0.3, 0.04, np.linspace(0, 1, 1001)
    schedule = Schedule((1 - 0.9 * t) ** 2, 9 * t**2)
    x = schedule.first_scale * NOISE

    def denoise(xt, t):
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (schedule.alpha(t), schedule.sigma(t)))
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (xt - alpha * mean)

    alpha, sigma = float(schedule.alpha(1000)), float(schedule.sigma(1000))
    exact = mean + variance**0.5 * (x - alpha * mean) / (alpha**2 * variance + sigma**2) ** 0.5
    errors = [float(jnp.abs(sample(denoise, schedule, 'x0', x, n, solver=solver) - exact).max()) for n in (20, 80)]
    assert errors[0] > 2 * errors[1] and errors[1] < 0.05


@pytest.mark.parametrize('solver', ['ddim', 'dpm++2m'])
def test_a_step_alone_returns_the_prediction_to_the_last_bit(solver):
    made = sample(lambda x, t: X0, one_step(), 'x0', NOISE, 1, solver=solver)
    np.testing.assert_array_equal(made, X0)


def test_the_grid_goes_from_T_to_zero_without_repeats():
    for steps in (1, 7, 50, 999, 1000):
        grid = timestep_grid(1000, steps)
        assert len(grid) == steps + 1 and grid[0] == 1000 and grid[-1] == 0 and np.all(np.diff(grid) < 0)
    with pytest.raises(ValueError):
        timestep_grid(1000, 1001)


def test_randomness_has_to_be_given():
    with pytest.raises(ValueError, match='step_noise'):
        sample(lambda x, t: x, SCHEDULE, 'eps', NOISE, 5, solver='ancestral')


# SCHEDULE with enough timesteps to double the number of steps several times without rounding t
FINE = make_schedule(ScheduleConfig(timesteps=16000, beta_start=0.0015 / 16, beta_end=0.0155 / 16))


def error_on_a_gaussian(solver, steps, phase=None, end=320, mean=0.3, variance=0.04):
    """Error of x at t = `end` against the probability flow of N(mean, variance), on a grid uniform in λ. `phase`: the
    number of steps after which the solver forgets its last prediction."""
    bar = FINE.alpha_squared
    grid = np.interp(
        np.linspace(*np.log(bar[[16000, end]] / (1 - bar[[16000, end]])), steps + 1),
        np.log(bar[1:] / (1 - bar[1:]))[::-1],
        np.arange(16000, 0, -1),
    )
    grid = np.rint(grid).astype(int)
    deviation = lambda t: np.sqrt(bar[t] * variance + 1 - bar[t])
    exact = np.sqrt(bar[end]) * mean + deviation(end) / deviation(16000) * (NOISE - np.sqrt(bar[16000]) * mean)

    def predict(xt, t):
        alpha, sigma = FINE.alpha(t).reshape(-1, 1, 1, 1), FINE.sigma(t).reshape(-1, 1, 1, 1)
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (xt - alpha * mean)

    table, state = solver(FINE, grid), (NOISE, jnp.zeros_like(NOISE))
    for first in range(0, steps, phase or steps):
        part = table[first : first + (phase or steps)]
        if phase:  # forget: the first step of a phase is a DDIM step
            past = np.arange(len(part)) > 0
            part = dataclasses.replace(part, b=np.where(past, part.b, part.b + part.c), c=np.where(past, part.c, 0))
        state = integrate(predict, part, *state)
    made = state[0]
    return float(jnp.sqrt(jnp.mean((made - exact) ** 2)))


@pytest.mark.parametrize('solver, order', [(ddim, 1), (dpm_2m, 2)], ids=['ddim', 'dpm++2m'])
def test_doubling_the_steps_shows_the_order(solver, order):
    errors = np.array([error_on_a_gaussian(solver, steps) for steps in (20, 40, 80)])
    orders = np.log2(errors[:-1] / errors[1:])
    assert np.all(np.abs(orders - order) < 0.35), orders


def test_forgetting_at_each_phase_costs_accuracy():
    """This is why mosaics carry the last prediction from phase to phase, beside x."""
    assert error_on_a_gaussian(dpm_2m, 20) < 0.75 * error_on_a_gaussian(dpm_2m, 20, phase=5)


def test_the_second_order_is_worth_many_steps():
    assert error_on_a_gaussian(dpm_2m, 20) < error_on_a_gaussian(ddim, 80)


@pytest.mark.parametrize('schedule', [SCHEDULE, ZERO], ids=['plain', 'zero terminal SNR'])
@pytest.mark.parametrize('steps', [1, 2, 16])
def test_a_perfect_denoiser_is_recovered_by_dpm_2m(schedule, steps):
    out = sample(lambda xt, t: X0, schedule, 'x0', NOISE, steps, solver='dpm++2m')
    np.testing.assert_allclose(out, X0, atol=1e-5)


@pytest.mark.parametrize('solver', [ddim, dpm_2m])
def test_a_way_in_parts_is_the_way(solver):
    """x and the last prediction are passed from part to part; nothing restarts."""
    steps, predict = solver(SCHEDULE, timestep_grid(1000, 9)), gaussian_denoiser(0.3, 0.04)
    whole, _ = integrate(predict, steps, NOISE, jnp.zeros_like(NOISE))
    state = NOISE, jnp.zeros_like(NOISE)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        state = integrate(predict, steps[part], *state)
    np.testing.assert_allclose(state[0], whole, atol=1e-6)


def test_one_step_of_dpm_2m_is_its_formula():
    """Equation (4) of the module with λ written out from β."""
    bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.0015, 0.0155, 1000))])
    grid = np.array([700, 500, 200])
    half = 0.5 * np.log(bar[grid] / (1 - bar[grid]))
    alpha, sigma, h = np.sqrt(bar[grid]), np.sqrt(1 - bar[grid]), np.diff(half)
    first = sigma[1] / sigma[0] * NOISE - alpha[1] * np.expm1(-h[0]) * X0
    r = h[0] / h[1]
    d = (1 + 1 / (2 * r)) * (X0 / 2) - 1 / (2 * r) * X0
    second = sigma[2] / sigma[1] * first - alpha[2] * np.expm1(-h[1]) * d
    predict = lambda x, t: jnp.where(t.reshape(-1, 1, 1, 1) == 700, X0, X0 / 2)
    made, _ = integrate(predict, dpm_2m(SCHEDULE, grid), NOISE, jnp.zeros_like(X0))
    np.testing.assert_allclose(made, second, atol=1e-5)
