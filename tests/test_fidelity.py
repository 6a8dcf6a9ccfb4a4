import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from rsdiff.data.images import box_downscale
from rsdiff.errors import BadInput
from rsdiff.evaluation.fidelity import SHIFT_PX, cpsnr, detail, detail_ratio, lr_consistency, psnr, ssim


@pytest.fixture
def images(smooth_image):
    return np.stack([smooth_image(40, 48, seed) for seed in range(3)])


def noisy(images, sigma=12, seed=0):
    return np.clip(images + np.random.default_rng(seed).normal(0, sigma, images.shape), 0, 255).astype(np.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image(images):
    metrics = pytest.importorskip('skimage.metrics', reason='needs scikit-image (the parity extra)')
    for other in (noisy(images), gaussian_filter(images, (0, 2, 2, 0)), 255 - images):
        for ours, a, b in zip(psnr(other, images), other, images):
            assert ours == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=255), abs=1e-4)
        for ours, a, b in zip(ssim(other, images), other, images):
            theirs = metrics.structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                                   channel_axis=-1, data_range=255)
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_ssim_is_that_of_torchmetrics(images):
    torch = pytest.importorskip('torch', reason='needs torch (the parity extra)')
    functional = pytest.importorskip('torchmetrics.functional.image', reason='needs torchmetrics (the parity extra)')
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (noisy(images), images)]
    _, places = functional.structural_similarity_index_measure(*tensors, data_range=255.0, reduction='none',
                                                               return_full_image=True)
    # its own mean includes a border where windows reach into the mirrored image
    theirs = places[..., 5:-5, 5:-5].mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(ssim(noisy(images), images), theirs, atol=1e-4)


def test_equal_and_constant_images_have_the_value_that_ends_the_scale(images):
    flat = np.full_like(images, 77)
    for a in (images, flat):
        assert (psnr(a, a) == np.inf).all() and (cpsnr(a, a) == np.inf).all() and ssim(a, a) == pytest.approx(1)
        assert np.isfinite(psnr(a, 255 - a)).all()
    brighter = flat + np.uint8(20)
    assert (cpsnr(brighter, flat) == np.inf).all() and (ssim(brighter, flat) < 1).all() and np.isfinite(ssim(flat, images)).all()
    assert (detail_ratio(flat, flat) == 1).all() and (detail_ratio(flat, images) == 0).all()
    assert (detail_ratio(images, flat) == np.inf).all()


def brute_force_cpsnr(image, truth, step):
    """The definition, in float64, with crops that move in opposite directions."""
    best, (height, width) = np.inf, np.array(image.shape[:2]) - SHIFT_PX
    for dy in range(-SHIFT_PX, SHIFT_PX + 1, step):
        for dx in range(-SHIFT_PX, SHIFT_PX + 1, step):
            y, x, v, u = (SHIFT_PX + dy) // 2, (SHIFT_PX + dx) // 2, (SHIFT_PX - dy) // 2, (SHIFT_PX - dx) // 2
            error = image[y : y + height, x : x + width].astype(float) - truth[v : v + height, u : u + width]
            best = min(best, np.mean((error - error.mean((0, 1))) ** 2))
    return 10 * np.log10(255**2 / best)


def test_cpsnr_is_the_best_of_all_shifts(images):
    moved = np.roll(noisy(images, 3), (3, -2), (1, 2))
    for step, compatible in ((1, False), (2, True)):
        expected = [brute_force_cpsnr(a, b, step) for a, b in zip(moved, images)]
        np.testing.assert_allclose(cpsnr(moved, images, compatible), expected, atol=1e-9)


@pytest.mark.parametrize('dy, dx', [(0, 0), (1, 0), (-3, 2), (8, -8), (7, 5)])
def test_neither_a_shift_nor_a_bias_of_a_channel_costs_anything(smooth_image, dy, dx):
    whole = smooth_image(64, 64) // 2 + 50
    image, truth = whole[8 + dy : 56 + dy, 8 + dx : 56 + dx], whole[8:56, 8:56]
    tinted = (image + np.array([9, 0, 30], np.uint8))[None]
    assert cpsnr(tinted, truth[None])[0] == np.inf
    assert (cpsnr(tinted, truth[None], satlas_compat=True)[0] == np.inf) == (dy % 2 == dx % 2 == 0)


def test_lr_consistency_sees_a_tint_but_not_detail(smooth_image):
    conditions = np.stack([smooth_image(16, 16, seed) for seed in range(2)])
    enlarged = conditions.repeat(4, 1).repeat(4, 2)
    checkers = np.indices((64, 64)).sum(0)[..., None] % 2 * 20 - 10
    tinted = np.clip(enlarged.astype(int) + 10, 0, 255).astype(np.uint8)
    assert (lr_consistency(enlarged, conditions) == np.inf).all()
    assert (lr_consistency(np.clip(enlarged + checkers, 0, 255).astype(np.uint8), conditions) > 40).all()
    assert (lr_consistency(tinted, conditions) < 30).all()


def test_rounding_is_all_that_parts_a_truth_from_its_condition():
    truth = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    conditions = box_downscale(truth[0], 4)[None]
    assert lr_consistency(truth, conditions)[0] == pytest.approx(58.9, abs=0.3)


def test_lr_consistency_takes_the_degradation_that_is_known(smooth_image):
    image = noisy(smooth_image(64, 64)[None])
    conditions = image[:, ::4, ::4]
    assert lr_consistency(image, conditions)[0] < 40
    assert lr_consistency(image, conditions, lambda x, k: x[:, ::k, ::k])[0] == np.inf


def test_detail_is_the_energy_of_scipys_laplacian(images):
    x = images[0].astype(float)
    reference = np.stack([laplace(x[..., c]) for c in range(3)], -1)[1:-1, 1:-1]
    assert detail(images)[0] == pytest.approx(np.sqrt(np.mean(reference**2)))


def test_blur_lowers_detail_and_noise_raises_it(images):
    assert (detail_ratio(gaussian_filter(images, (0, 1, 1, 0)), images) < 0.9).all()
    assert (detail_ratio(images, images) == 1).all() and (detail_ratio(noisy(images, 20), images) > 1).all()


@pytest.mark.parametrize('measure', [psnr, ssim, cpsnr])
def test_what_can_not_be_compared_is_refused(images, measure):
    with pytest.raises(ValueError, match='shapes'):
        measure(images, images[:, :16])
    with pytest.raises(ValueError, match='shapes'):
        measure(images[0], images[0])
    with pytest.raises(BadInput, match='not finite'):
        measure(np.where(np.arange(48)[:, None] == 5, np.nan, images), images)
    if measure is not psnr:
        with pytest.raises(ValueError, match='48×1 px'):
            measure(images[:, :1], images[:, :1])
