import numpy as np
import pytest
from scipy.special import softmax

from rsdiff.data.images import bicubic, box_downscale
from rsdiff.evaluation import opensr
from rsdiff.evaluation.opensr import correctness


@pytest.fixture
def triple(smooth_image):
    truths = np.stack([smooth_image(64, 64, seed) for seed in range(3)])
    conditions = np.stack([box_downscale(truth, 4) for truth in truths])
    return truths, conditions, np.stack([bicubic(lr, 64, 64) for lr in conditions])


def shares(images, truths, conditions):
    found = correctness(images, truths, conditions)
    assert sum(found.values()) == pytest.approx(1) and list(found) == list(opensr.NAMES)
    return found


def test_each_corner_of_the_triangle_has_its_name(triple):
    truths, conditions, enlarged = triple
    noise = np.random.default_rng(0).integers(0, 256, truths.shape, np.uint8)
    for corner, images in (('improvement', truths), ('omission', enlarged), ('hallucination', noise)):
        found = shares(images, truths, conditions)
        assert (found[corner] > 0.85).all(), corner


def test_half_way_to_the_truth_is_half_an_improvement_and_beyond_it_is_invention(triple):
    truths, conditions, enlarged = triple
    towards = lambda part: np.clip(np.rint(enlarged + part * (truths.astype(float) - enlarged)), 0, 255).astype(np.uint8)
    half, wrong = shares(towards(0.5), truths, conditions), shares(towards(-2.0), truths, conditions)
    assert half['improvement'] == pytest.approx(half['omission'], abs=0.05)
    assert (half['hallucination'] < 0.15).all() and (wrong['hallucination'] > 0.5).all()


def test_shares_are_the_softmin_of_the_three_distances():
    """Constant images, so that one number each stands for d: of LR 100, HR 160, SR 130 + 45."""
    full = lambda value: np.full((1, 32, 32, 3), value, np.uint8)
    found = correctness(full(175), full(160), full(100)[:, ::4, ::4])
    d_im, d_om = 15 / 60, 75 / 60
    bend = 1 - np.exp(-0.05 * (d_im + d_om - 1))
    # no distance to the truth exceeds the percentile of equal ones, that to the condition does
    expected = softmax(-np.array([d_im + d_om * bend, d_om + d_im * bend, np.exp(-0.05 * d_im * d_om)]) / 0.25)
    assert [found[name][0] for name in opensr.NAMES] == pytest.approx(list(expected), abs=1e-6)


def test_nothing_to_add_and_nothing_added_is_no_fault():
    flat = np.full((1, 32, 32, 3), 90, np.uint8)
    assert shares(flat, flat, flat[:, ::4, ::4])['improvement'] == 1
