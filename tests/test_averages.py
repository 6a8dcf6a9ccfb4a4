"""Averages of any length from snapshots of two."""

import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.training import averages
from rsdiff.training.averages import LONGEST, coefficients, decay, name_of, power
from rsdiff.training.config import EMAConfig

STEPS = 2000


def weights(gamma, time, at):
    """p of (1)."""
    return np.where(at <= time, (gamma + 1) * at**gamma / time ** (gamma + 1), 0.0)


def averaged(values, length):
    """The average of `values` after each step, by (2)."""
    found, average = [], 0.0
    for value, beta in zip(values, np.asarray(decay(length, np.arange(1, len(values) + 1)), np.float64)):
        average = beta * average + (1 - beta) * value
        found.append(average)
    return np.array(found)


@pytest.mark.parametrize('length', [0.01, 0.05, 0.1, 0.25, LONGEST])
def test_the_length_is_the_standard_deviation_of_the_weights(length):
    at = (np.arange(1_000_000) + 0.5) / 1_000_000
    p = weights(power(length), 1.0, at) / len(at)
    mean = (p * at).sum()
    assert p.sum() == pytest.approx(1, rel=1e-4)
    assert np.sqrt((p * (at - mean) ** 2).sum()) == pytest.approx(length, rel=1e-3)


def test_the_steps_of_an_average_have_these_weights():
    """The average of a value that is 1 at one step and else 0."""
    for step in (500, 1000, 1900):
        ours = averaged(np.arange(1, STEPS + 1) == step, 0.1)[-1]
        assert ours == pytest.approx(weights(power(0.1), STEPS, step - 0.5), rel=2e-2)


def test_late_steps_are_as_exact_as_early_ones():
    """As 1/t is small beside 1, float32 leaves little of 1 - 1/t."""
    for step in (10, 10**6):
        exact = -np.expm1((power(0.05) + 1) * np.log1p(-1 / np.float64(step)))
        assert 1 - float(decay(0.05, np.int32(step))) == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize('a', [(16.9, 0.7), (0.0, 1.0), (6.9, 0.2)])
@pytest.mark.parametrize('b', [(16.9, 0.7), (2.5, 1.0)])
def test_inner_products_are_integrals(a, b):
    at = (np.arange(400_000) + 0.5) / 400_000
    assert averages._inner(*a, *b) == pytest.approx((weights(*a, at) * weights(*b, at)).mean(), rel=1e-4)


def test_two_lengths_make_any_other():
    values = 5 + np.cumsum(np.random.default_rng(0).standard_normal(STEPS)) / 20
    tracked, steps = {length: averaged(values, length) for length in (0.05, 0.1)}, range(100, STEPS + 1, 100)
    snapshots = [(length, step) for length in tracked for step in steps]
    found = np.array([tracked[length][step - 1] for length, step in snapshots])
    spread = np.ptp([averaged(values, length)[-1] for length in (0.02, 0.25)])
    for length in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2):
        x = coefficients(*zip(*snapshots), length)
        assert x.sum() == pytest.approx(1)
        assert x @ found == pytest.approx(averaged(values, length)[-1], abs=2e-3 * spread)


def test_lengths_that_are_none_are_named():
    assert name_of(0.05) == 'length_0_05'
    with pytest.raises(BadInput, match='an average of length 0: it must be above 0 and at most 0.289'):
        EMAConfig(lengths=(0.05, 0.0))
    with pytest.raises(BadInput, match='give each length once'):
        EMAConfig(lengths=(0.05, 0.05))
