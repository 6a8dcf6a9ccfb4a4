import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from rsdiff.evaluation.fidelity import detail, detail_ratio, lr_consistency, psnr
from rsdiff.evaluation.seams import seam_ratio


def test_psnr_is_its_definition(smooth_image):
    image = smooth_image(32, 32)
    shifted = (image.astype(int) // 2 + 40).astype(np.uint8)
    error = (image.astype(float) - shifted).ravel()
    assert psnr(shifted, image) == pytest.approx(20 * np.log10(255) - 10 * np.log10(error @ error / error.size))
    assert psnr(image, image) == float('inf')
    with pytest.raises(ValueError):
        psnr(image, image[:16])


def test_lr_consistency_sees_a_tint_but_not_detail(smooth_image):
    condition = smooth_image(16, 16)
    enlarged = np.kron(condition, np.ones((4, 4, 1), np.uint8))
    checkers = np.indices((64, 64)).sum(0)[..., None] % 2 * 20 - 10
    tinted = np.clip(enlarged.astype(int) + 10, 0, 255).astype(np.uint8)
    assert lr_consistency(enlarged, condition) == float('inf')
    assert lr_consistency(np.clip(enlarged + checkers, 0, 255).astype(np.uint8), condition) > 40
    assert lr_consistency(tinted, condition) < 30


def test_detail_is_the_energy_of_scipys_laplacian(smooth_image):
    image = smooth_image(40, 40).astype(float)
    reference = np.stack([laplace(image[..., c]) for c in range(3)], -1)[1:-1, 1:-1]
    assert detail(image) == pytest.approx(np.sqrt(np.mean(reference**2)))


def test_blur_lowers_detail_and_noise_raises_it(smooth_image):
    image = smooth_image(64, 64)
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    assert detail_ratio(gaussian_filter(image, (1, 1, 0)), image) < 0.9
    assert detail_ratio(image, image) == 1 < detail_ratio(noisy, image)


def test_seams_are_found_where_they_are_and_only_there():
    image = 128 + 300 * gaussian_filter(np.random.default_rng(1).normal(size=(128, 128, 3)), (3, 3, 0))
    tint = np.kron(np.random.default_rng(0).normal(0, 20, (4, 4, 3)), np.ones((32, 32, 1)))
    tiled = np.clip(image + tint, 0, 255).astype(np.uint8)
    assert seam_ratio(image.clip(0, 255).astype(np.uint8), 32) == pytest.approx(1, abs=0.2)
    assert seam_ratio(tiled, 32) > 2 > 1.2 > seam_ratio(tiled[8:, 8:], 32)
