import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from rsdiff.base.errors import BadInput
from rsdiff.data.images import bicubic, box_downscale
from rsdiff.evaluation.fidelity import cpsnr, cssim, detail, detail_ratio, lr_consistency, psnr, ssim
from rsdiff.evaluation.seams import seam_ratio

PAIRED = [psnr, ssim, cpsnr, cssim, detail_ratio]


@pytest.fixture
def batch(smooth_image):
    """(height, width) → images and truths of several kinds, uint8 (n, height, width, 3)."""

    def make(height, width):
        truth, other = smooth_image(height, width), smooth_image(height, width, 1)
        rng = np.random.default_rng(0)
        noise, ramp = rng.integers(0, 256, (2, height, width, 3)), np.linspace(0, 255, width)[None, :, None]
        images = [
            truth,
            other,
            noise[0],
            truth + rng.normal(0, 8, truth.shape),
            gaussian_filter(truth, (1, 1, 0)),
            truth // 2 + 90,
            np.full_like(truth, 100),
            ramp + 0 * truth,
        ]
        truths = [truth, truth, noise[1], truth, truth, truth, truth, np.full_like(truth, 7)]
        return (np.clip(images, 0, 255).astype(np.uint8), np.clip(truths, 0, 255).astype(np.uint8))

    return make


def shifted(image, rows, columns, size):
    """A window of `size` rows and columns, shifted from the centre."""
    y, x = ((n - size) // 2 + offset for n, offset in zip(image.shape, (rows, columns)))
    return image[y : y + size, x : x + size]


# PSNR and SSIM


def test_psnr_is_its_definition(smooth_image):
    image = smooth_image(32, 32)
    halved = image // 2 + 40
    error = (image.astype(float) - halved).ravel()
    expected = 20 * np.log10(255) - 10 * np.log10(error @ error / error.size)
    np.testing.assert_allclose(psnr(np.stack([halved, image]), np.stack([image, image])), [expected, np.inf])


@pytest.mark.parametrize('height, width', [(64, 64), (11, 11), (37, 50)])
def test_ssim_is_scikit_images(batch, height, width):
    metrics = pytest.importorskip('skimage.metrics', reason='the reference; pip install rsdiff-jax[parity]')
    images, truth = batch(height, width)
    expected = [
        metrics.structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=255
        )
        for a, b in zip(images, truth)
    ]
    np.testing.assert_allclose(ssim(images, truth), expected, atol=1e-9)
    assert len(set(np.round(expected, 2))) > 4


def test_psnr_and_ssim_are_torchmetrics(batch):
    torch = pytest.importorskip('torch', reason='for the reference; pip install rsdiff-jax[parity]')
    metrics = pytest.importorskip(
        'torchmetrics.functional.image', reason='the reference; pip install rsdiff-jax[parity]'
    )
    images, truth = batch(40, 56)
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (images, truth))
    their_psnr = metrics.peak_signal_noise_ratio(a, b, data_range=255.0, reduction='none', dim=(1, 2, 3))
    _, places = metrics.structural_similarity_index_measure(
        a, b, data_range=255.0, reduction='none', return_full_image=True
    )
    # theirs reflects the image at its edges, so windows that reach beyond are excluded
    np.testing.assert_allclose(ssim(images, truth), places[..., 5:-5, 5:-5].mean((1, 2, 3)).numpy(), atol=1e-4)
    np.testing.assert_allclose(psnr(images, truth), their_psnr.numpy(), atol=1e-4)


def test_ssim_is_symmetric_and_1_for_equal_images_only(batch):
    images, truth = batch(32, 32)
    np.testing.assert_allclose(ssim(images, truth), ssim(truth, images), atol=1e-12)
    assert ssim(images, images) == pytest.approx(1) and np.sum(ssim(images, truth) > 1 - 1e-9) == 1


# shifts and bias


@pytest.mark.parametrize('border', [0, 1, 3])
def test_cpsnr_and_cssim_are_the_best_over_every_shift(batch, border):
    images, truth = (x[[1, 3, 5]] for x in batch(24, 21))
    height, width = 24 - 2 * border, 21 - 2 * border
    center = images[:, border : border + height, border : border + width].astype(float)
    best = np.full((2, len(images)), -np.inf)
    for u, v in itertools.product(range(2 * border + 1), repeat=2):
        target = truth[:, u : u + height, v : v + width].astype(float)
        moved = center + (target - center).mean((1, 2), keepdims=True)
        best = np.maximum(best, [psnr(moved, target), ssim(moved, target)])
    np.testing.assert_allclose(cpsnr(images, truth, border), best[0], rtol=1e-12)
    np.testing.assert_allclose(cssim(images, truth, border), best[1], rtol=1e-12)


@pytest.mark.parametrize('shift', [(0, 0), (1, 0), (-3, 2), (4, -4), (0, 3)])
def test_neither_a_shift_nor_a_bias_of_each_channel_counts(smooth_image, shift):
    scene = smooth_image(48, 48) // 2 + 20
    image = shifted(scene, *shift, 32) + np.uint8([7, 0, 90])
    pair = image[None], shifted(scene, 0, 0, 32)[None]
    assert cpsnr(*pair) == np.inf and cssim(*pair) == pytest.approx(1)
    assert psnr(*pair) < 20 and ssim(*pair) < 0.95


def test_a_gain_counts(smooth_image):
    image = smooth_image(32, 32)
    assert cpsnr((image // 2)[None], image[None]) < 40


def test_a_shift_beyond_the_border_counts(smooth_image):
    scene = smooth_image(64, 64)
    assert cpsnr(shifted(scene, 0, 5, 32)[None], shifted(scene, 0, 0, 32)[None], border_px=4) < 40


@pytest.mark.parametrize('rows', range(-8, 9))
def test_satlas_finds_even_shifts_only_and_twice_as_far(smooth_image, rows):
    scene = smooth_image(64, 64)
    image, truth = shifted(scene, rows, 0, 32)[None], shifted(scene, 0, 0, 32)[None]
    assert (cpsnr(image, truth, satlas_compat=True) == np.inf) == (rows % 2 == 0)
    assert (cpsnr(image, truth) == np.inf) == (abs(rows) <= 4)


def test_satlas_is_a_loop_over_pairs_of_corners(batch):
    images, truth = (x[[1, 3, 5]].astype(float) for x in batch(26, 21))
    errors = []
    for y, x in itertools.product(range(9), repeat=2):
        error = images[:, y : y + 18, x : x + 13] - truth[:, 8 - y : 26 - y, 8 - x : 21 - x]
        errors.append(error.var((1, 2)).mean(1))
    np.testing.assert_allclose(cpsnr(images, truth, satlas_compat=True), 10 * np.log10(255**2 / np.min(errors, 0)))


# the condition, and detail


def test_lr_consistency_sees_a_tint_but_not_detail(smooth_image):
    condition = smooth_image(16, 16)
    enlarged = np.kron(condition, np.ones((4, 4, 1), np.uint8))
    checkers = np.indices((64, 64)).sum(0)[..., None] % 2 * 20 - 10
    tinted = np.clip(enlarged.astype(int) + 10, 0, 255).astype(np.uint8)
    detailed = np.clip(enlarged + checkers, 0, 255).astype(np.uint8)
    equal, with_detail, with_tint = lr_consistency(np.stack([enlarged, detailed, tinted]), np.stack([condition] * 3))
    assert equal == np.inf and with_detail > 40 and with_tint < 30


def test_lr_consistency_knows_the_sensors_degradation(smooth_image):
    images = np.stack([smooth_image(64, 48, seed) for seed in (0, 1)])
    sensor = lambda images, factor: np.stack([bicubic(gaussian_filter(image, (2, 2, 0)), 16, 12) for image in images])
    conditions = sensor(images, 4)
    assert np.all(lr_consistency(images, conditions, sensor) == np.inf)
    assert np.all(lr_consistency(images, conditions) < 40)


def test_rounding_is_all_that_parts_a_truth_from_its_condition():
    truth = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    assert lr_consistency(truth, box_downscale(truth[0], 4)[None])[0] == pytest.approx(58.9, abs=0.3)


def test_detail_is_the_energy_of_scipys_laplacian(smooth_image):
    images = np.stack([smooth_image(40, 40, seed) for seed in (0, 1)]).astype(float)
    reference = np.stack([[laplace(image[..., c]) for c in range(3)] for image in images])[:, :, 1:-1, 1:-1]
    np.testing.assert_allclose(detail(images), np.sqrt(np.mean(reference**2, (1, 2, 3))))


def test_blur_lowers_detail_and_noise_raises_it(smooth_image):
    image = smooth_image(64, 64)
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    blurred, equal, noisy = detail_ratio(
        np.stack([gaussian_filter(image, (1, 1, 0)), image, noisy]), np.stack([image] * 3)
    )
    assert blurred < 0.9 and equal == 1 < noisy


# edge cases


def test_flat_images_have_figures():
    flat = lambda level: np.full((1, 20, 20, 3), level, np.uint8)
    assert cpsnr(flat(10), flat(200)) == np.inf and psnr(flat(10), flat(10)) == np.inf
    # only the means differ: SSIM (1) reduces to its first factor
    assert ssim(flat(10), flat(200)) == pytest.approx((2 * 10 * 200 + 2.55**2) / (10**2 + 200**2 + 2.55**2))
    assert ssim(flat(0), flat(0)) == 1 and cssim(flat(10), flat(200)) == pytest.approx(1)
    checkers = np.indices((20, 20)).sum(0)[None, ..., None] % 2 * flat(50)
    assert detail_ratio(flat(3), flat(7)) == 1
    assert detail_ratio(flat(3), checkers) == 0 and detail_ratio(checkers, flat(3)) == np.inf
    assert np.isfinite(cpsnr(flat(3), checkers)) and np.isfinite(cssim(flat(3), checkers))


@pytest.mark.parametrize('score', PAIRED)
def test_a_batch_is_scored_image_by_image_and_may_be_empty(batch, score):
    images, truth = batch(32, 32)
    alone = [score(a[None], b[None])[0] for a, b in zip(images, truth)]
    np.testing.assert_allclose(score(images, truth), alone, rtol=1e-12)
    assert score(images[:0], truth[:0]).shape == (0,)


@pytest.mark.parametrize('score', PAIRED)
def test_floats_are_grey_levels_too(batch, score):
    images, truth = (x[:4] for x in batch(32, 32))
    np.testing.assert_allclose(
        score(images.astype(np.float32), truth.astype(np.float64)), score(images, truth), rtol=1e-12
    )


@pytest.mark.parametrize('score', PAIRED + [lr_consistency])
def test_nan_and_infinity_are_refused_by_number(batch, score):
    images, truth = (x.astype(np.float32) for x in batch(32, 32))
    for value in (np.nan, np.inf):
        broken = images.copy()
        broken[2, 5, 6, 1] = value
        options = {'degrade': lambda images, factor: images} if score is lr_consistency else {}
        for pair in ((broken, truth), (truth, broken)):
            with pytest.raises(BadInput, match='image 2 of 8 has pixels that are NaN or infinite') as raised:
                score(*pair, **options)
            assert '\n' not in str(raised.value)


@pytest.mark.parametrize('score', PAIRED + [lr_consistency])
def test_unlike_shapes_are_refused(score):
    zeros = lambda *shape: np.zeros(shape, np.uint8)
    for a, b in (
        (zeros(2, 32, 32, 3), zeros(2, 32, 31, 3)),
        (zeros(2, 32, 32, 3), zeros(1, 32, 32, 3)),
        (zeros(2, 32, 32, 3), zeros(2, 32, 32, 1)),
        (zeros(2, 0, 32, 3), zeros(2, 0, 32, 3)),
    ):
        with pytest.raises(ValueError):
            score(a, b)
    if score is not lr_consistency:
        with pytest.raises(ValueError, match='two batches'):
            score(zeros(32, 32, 3), zeros(32, 32, 3))


@pytest.mark.parametrize('score, least', [(ssim, 11), (cpsnr, 10), (cssim, 19), (detail_ratio, 3)])
def test_images_too_small_are_refused_and_the_smallest_have_a_score(score, least):
    images, truth = np.random.default_rng(0).integers(0, 256, (2, 1, least, least, 3), np.uint8)
    assert np.isfinite(score(images, truth)).all()
    for small in (images[:, :-1], images[:, :, :-1], images[:, :1]):
        with pytest.raises(BadInput, match=f'needs {least} px per side'):
            score(small, small)


# seams


def test_seams_are_found_where_they_are_and_only_there():
    image = 128 + 300 * gaussian_filter(np.random.default_rng(1).normal(size=(128, 128, 3)), (3, 3, 0))
    tint = np.kron(np.random.default_rng(0).normal(0, 20, (4, 4, 3)), np.ones((32, 32, 1)))
    tiled = np.clip(image + tint, 0, 255).astype(np.uint8)
    assert seam_ratio(image.clip(0, 255).astype(np.uint8), 32) == pytest.approx(1, abs=0.2)
    assert seam_ratio(tiled, 32) > 2 > 1.2 > seam_ratio(tiled[8:, 8:], 32)
