"""Correctness metrics against opensr-test, if installed, and at the corners of its triangle."""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
from scipy.ndimage import zoom

from rsdiff.base.errors import BadInput
from rsdiff.data.images import box_downscale
from rsdiff.evaluation.opensr import correctness, normalised_difference


@pytest.fixture
def triple(smooth_image):
    """Samples of several kinds, their truths, and the conditions; uint8 (n, 32, 24, 3) and (n, 8, 6, 3)."""
    truth, other = smooth_image(32, 24), smooth_image(32, 24, 1)
    noise = np.random.default_rng(0).integers(0, 256, truth.shape)
    condition = box_downscale(truth, 4)
    bilinear = zoom(condition, (4, 4, 1), order=1, mode='nearest', grid_mode=True)
    images = np.stack([truth, bilinear, noise, other, (bilinear / 2 + truth / 2), truth // 2 + 60]).astype(np.uint8)
    return images, np.stack([truth] * len(images)), np.stack([condition] * len(images))


@pytest.fixture
def opensr_test(monkeypatch):
    """opensr-test's own `Metrics`. The package imports plotting and image registration, which these scores do not need,
    so `pip install --no-deps opensr-test` is enough."""
    pytest.importorskip('torch', reason='opensr-test needs torch; pip install rsdiff-jax[parity]')
    pytest.importorskip('skimage', reason='opensr-test needs scikit-image; pip install rsdiff-jax[parity]')
    pytest.importorskip('pydantic', reason='opensr-test needs pydantic; pip install pydantic')
    spec = importlib.util.find_spec('opensr_test')
    if spec is None:
        pytest.skip('the reference is missing; pip install --no-deps opensr-test')
    package = types.ModuleType('opensr_test')
    package.__path__ = list(spec.submodule_search_locations)
    for name, module in {
        'opensr_test': package,
        'opensr_test.plot': types.ModuleType('opensr_test.plot'),
        'satalign': types.ModuleType('satalign'),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module('opensr_test.main')
    for name in [name for name in sys.modules if name.startswith('opensr_test')]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize('threshold', [None, 0.1, 0.01])
@pytest.mark.parametrize('distance', ['nd', 'l1'])
def test_the_shares_are_those_of_opensr_test(triple, opensr_test, threshold, distance):
    import torch

    images, truth, conditions = triple
    metrics = opensr_test.Metrics(
        border_mask=0, harm_apply_spectral=False, harm_apply_spatial=False, correctness_distance=distance
    )
    tensor = lambda x: torch.from_numpy(x / 255).permute(2, 0, 1).float()
    theirs = [
        metrics.correctness(
            tensor(condition),
            tensor(image),
            tensor(target),
            gradient_threshold='auto' if threshold is None else threshold,
        )
        for image, target, condition in zip(images, truth, conditions)
    ]
    ours = correctness(
        images,
        truth,
        conditions,
        threshold=threshold,
        distance=normalised_difference if distance == 'nd' else lambda x, y: np.abs(x - y).mean(-1),
    )
    for name in ('improvement', 'omission', 'hallucination'):
        expected = [row[f'{name[:2]}_metric'] for row in theirs]
        assert np.ptp(expected) > 0.3
        np.testing.assert_allclose(getattr(ours, name), expected, atol=1e-4)


def test_truth_condition_and_noise_are_the_three_corners(triple):
    improvement, omission, hallucination = correctness(*triple)
    assert np.argmax(improvement) == 0 and improvement[0] > 0.95
    assert np.argmax(omission) == 1 and omission[1] > 0.95
    assert np.argmax(hallucination[:4]) in (2, 3) and hallucination[2] > 0.8
    np.testing.assert_allclose(improvement + omission + hallucination, 1)


def test_more_of_the_truth_is_more_improvement_and_less_omission(triple):
    _, (truth, *_), (condition, *_) = triple
    bilinear = zoom(condition.astype(float), (4, 4, 1), order=1, mode='nearest', grid_mode=True)
    mixed = np.stack([(1 - share) * bilinear + share * truth for share in np.linspace(0, 1, 6)])
    scores = correctness(mixed, np.stack([truth] * 6), np.stack([condition] * 6))
    assert np.all(np.diff(scores.improvement) > 0) and np.all(np.diff(scores.omission) < 0)


def test_detail_where_there_is_none_is_hallucinated():
    flat = np.full((1, 16, 16, 3), 90, np.uint8)
    checkers = flat + np.uint8(40) * (np.indices((16, 16)).sum(0)[None, ..., None] % 2).astype(np.uint8)
    assert correctness(checkers, flat, flat[:, ::4, ::4]) == (0, 0, 1)
    assert np.isnan(correctness(flat, flat, flat[:, ::4, ::4])).all()


def test_an_image_is_scored_by_itself_and_a_batch_may_be_empty(triple):
    whole = correctness(*triple)
    for number in range(len(triple[0])):
        alone = correctness(*(x[number : number + 1] for x in triple))
        np.testing.assert_allclose(np.ravel(alone), [score[number] for score in whole])
    assert [score.shape for score in correctness(*(x[:0] for x in triple))] == [(0,)] * 3


def test_what_does_not_fit_is_refused(triple):
    images, truth, conditions = triple
    for wrong in (
        (images[:, :-1], truth, conditions),
        (images, truth, conditions[:1]),
        (images, truth, conditions[:, 1:]),
        (images, truth, conditions[0]),
        (conditions, conditions, images),
    ):
        with pytest.raises(ValueError):
            correctness(*wrong)
    for number in range(3):
        broken = [x.astype(float) for x in triple]
        broken[number][1, 2, 3, 0] = np.nan
        with pytest.raises(BadInput, match='image 1 of 6 has pixels that are NaN'):
            correctness(*broken)
