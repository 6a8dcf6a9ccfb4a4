import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.diffusion.objective import ObjectiveConfig, loss_terms, p2_weight, stratified_timesteps
from rsdiff.diffusion.schedule import Schedule, ScheduleConfig, add_noise, make_schedule, target, to_eps, to_x0

SCHEDULE = make_schedule(ScheduleConfig())


def test_p2_with_k_one_is_a_power_of_one_minus_alpha_bar():
    t = jnp.arange(1, 1001)
    for gamma in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(p2_weight(SCHEDULE, t, 1.0, gamma), SCHEDULE.sigma_squared[t] ** gamma, rtol=2e-5)


def test_a_perfect_denoiser_has_no_loss_and_a_silent_one_the_weight():
    x0, eps = jax.random.normal(jax.random.key(0), (2, 6, 16, 16, 3))
    t = jnp.array([1, 50, 200, 400, 700, 1000])
    config = ObjectiveConfig()
    perfect = to_eps(SCHEDULE, x0, add_noise(SCHEDULE, x0, eps, t), t)
    np.testing.assert_allclose(loss_terms(perfect, SCHEDULE, config, x0, eps, t), 0, atol=1e-6)
    silent = loss_terms(jnp.zeros_like(x0), SCHEDULE, config, x0, eps, t)
    expected = p2_weight(SCHEDULE, t, 1.0, 1.0) * jnp.mean(eps**2, (1, 2, 3))
    np.testing.assert_allclose(silent, expected, rtol=1e-5)


@pytest.mark.parametrize('prediction', ['x0', 'v'])
@pytest.mark.parametrize('error_in, weight', [('x0', 1.0), ('v', 1.0), ('eps', 0.0)])
def test_at_zero_terminal_snr_the_loss_is_finite_and_ignores_only_errors_in_eps(prediction, error_in, weight):
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True))
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 3))
    t = jnp.array([1, 999, 1000])
    config = ObjectiveConfig(prediction, error_in, p2_gamma=0.5)
    off_by = lambda error: target(schedule, prediction, x0, eps, t) + error
    np.testing.assert_allclose(loss_terms(off_by(0.0), schedule, config, x0, eps, t), 0, atol=1e-6)
    terms, gradient = jax.value_and_grad(lambda e: jnp.sum(loss_terms(off_by(e), schedule, config, x0, eps, t)))(1.0)
    assert np.isfinite(terms) and np.isfinite(gradient)
    # p2's weight is 1 where SNR = 0, and errors in x_0 and v are the same there
    assert float(loss_terms(off_by(1.0), schedule, config, x0, eps, t)[2]) == pytest.approx(weight)


@pytest.mark.parametrize('prediction', ['eps', 'x0', 'v'])
@pytest.mark.parametrize('error_in', ['eps', 'x0', 'v'])
def test_the_error_is_measured_where_it_is_said_whatever_the_schedule(prediction, error_in):
    """A prediction with an error implies an x_0, hence an ε and a v; the loss is their error. Here α² + σ² ≠ 1."""
    eta = np.linspace(0, 0.9, 11)
    schedule = Schedule((1 - eta) ** 2, 4 * eta)
    x0, eps, error = jax.random.normal(jax.random.key(0), (3, 3, 8, 8, 3))
    t = jnp.array([1, 5, 10])
    xt = add_noise(schedule, x0, eps, t)
    off = target(schedule, prediction, x0, eps, t) + 0.1 * error
    config = ObjectiveConfig(prediction, error_in, p2_gamma=0.0)
    terms = loss_terms(off, schedule, config, x0, eps, t)
    x0_off = to_x0(schedule, prediction, off, xt, t)
    said = target(schedule, error_in, x0_off, to_eps(schedule, x0_off, xt, t), t)
    expected = jnp.mean((said - target(schedule, error_in, x0, eps, t)) ** 2, (1, 2, 3))
    np.testing.assert_allclose(terms, expected, rtol=1e-3)


def test_timesteps_are_spread_over_the_whole_range():
    draws = np.concatenate([stratified_timesteps(jax.random.key(k), 10, 1000) for k in range(200)])
    assert draws.min() >= 1 and draws.max() <= 1000
    assert np.mean(draws) == pytest.approx(500.5, abs=10)
    one = np.sort(stratified_timesteps(jax.random.key(0), 10, 1000))
    assert np.all(np.abs(np.diff(one) - 100) <= 1)
