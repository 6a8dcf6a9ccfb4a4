import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.diffusion.schedule import (
    Schedule,
    ScheduleConfig,
    add_noise,
    make_schedule,
    one_step,
    target,
    to_eps,
    to_x0,
)


def test_linear_and_sqrt_linear_reach_the_published_end_points():
    assert make_schedule(ScheduleConfig()).alpha_squared[-1] == pytest.approx(1.95e-4, rel=5e-3)
    assert make_schedule(ScheduleConfig(shape='sqrt_linear')).alpha_squared[-1] == pytest.approx(6.7e-4, rel=5e-3)


def test_time_zero_is_clean_and_snr_falls():
    schedule = make_schedule(ScheduleConfig())
    assert schedule.alpha_squared[0] == 1 and schedule.sigma_squared[0] == 0 and schedule.timesteps == 1000
    snr = np.asarray(schedule.snr(jnp.arange(1, 1001)))
    assert np.all(np.diff(snr) < 0)


def test_the_first_step_is_beta_start():
    assert make_schedule(ScheduleConfig()).sigma_squared[1] == pytest.approx(0.0015, rel=1e-4)


def exploding():
    """α falls as ResShift's does, and σ rises to 3: α² + σ² is 1 only at t = 0."""
    eta = np.linspace(0, 0.999, 1001)
    return Schedule((1 - eta) ** 2, 9 * eta)


@pytest.mark.parametrize('kind', ['eps', 'x0', 'v'])
@pytest.mark.parametrize('schedule', [make_schedule(ScheduleConfig()), exploding()], ids=['kept', 'exploding'])
def test_every_prediction_stands_for_the_same_x0_and_eps(kind, schedule):
    x0, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    t = jnp.array([1, 10, 100, 500, 1000])
    xt = add_noise(schedule, x0, eps, t)
    recovered = to_x0(schedule, kind, target(schedule, kind, x0, eps, t), xt, t)
    np.testing.assert_allclose(recovered, x0, atol=2e-4)
    np.testing.assert_allclose(to_eps(schedule, x0, xt, t), eps, atol=2e-4)


def test_noised_data_keeps_unit_variance():
    schedule = make_schedule(ScheduleConfig())
    x0, eps = jax.random.normal(jax.random.key(1), (2, 1, 400, 400, 1))
    for t in (1, 300, 1000):
        assert float(add_noise(schedule, x0, eps, jnp.array([t])).var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('zero_terminal_snr', [False, True])
def test_where_the_variance_is_kept_its_sum_is_one_to_the_last_bit(zero_terminal_snr):
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=zero_terminal_snr))
    assert np.all(np.asarray(schedule.power(jnp.arange(1001))) == 1) and schedule.first_scale == 1


def test_a_step_alone_goes_from_noise_to_what_is_predicted():
    schedule = one_step()
    x0, eps = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 3))
    assert schedule.timesteps == 1 and schedule.first_scale == 1
    np.testing.assert_array_equal(add_noise(schedule, x0, eps, jnp.array([1])), eps)


@pytest.mark.parametrize('shape', ['linear', 'sqrt_linear'])
def test_zero_terminal_snr_stretches_alpha_down_to_nothing(shape):
    plain = make_schedule(ScheduleConfig(shape=shape))
    zero = make_schedule(ScheduleConfig(shape=shape, zero_terminal_snr=True))
    bar = zero.alpha_squared
    assert bar[-1] == 0 and bar[0] == 1 and bar[1] == plain.alpha_squared[1]
    assert np.all(np.diff(bar) < 0)
    # an affine map of √ᾱ keeps the ratios of differences
    steps = lambda schedule: np.diff(np.sqrt(schedule.alpha_squared[1:]))
    ratio = steps(zero) / steps(plain)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=2e-3)


@pytest.mark.parametrize('kind', ['x0', 'v'])
def test_at_zero_terminal_snr_nothing_of_the_image_is_left_and_predictions_still_convert(kind):
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True))
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))
    t = jnp.array([1, 999, 1000])
    xt = add_noise(schedule, x0, eps, t)
    np.testing.assert_array_equal(xt[2], eps[2])
    np.testing.assert_allclose(to_x0(schedule, kind, target(schedule, kind, x0, eps, t), xt, t), x0, atol=1e-5)
    np.testing.assert_allclose(to_eps(schedule, x0, xt, t), eps, atol=2e-4)


@pytest.mark.parametrize(
    'wrong', [dict(beta_start=0.0), dict(beta_end=1.5), dict(shape='cosine'), dict(timesteps=1, zero_terminal_snr=True)]
)
def test_an_impossible_schedule_is_refused(wrong):
    with pytest.raises((ValueError, BadInput)):
        make_schedule(ScheduleConfig(**wrong))
