"""How close images are to the truth, to their condition, and in their amount of detail.

uint8 (n, h, w, 3) in, float64 (n,) out; one value an image. Of these PSNR, SSIM and cPSNR reward blur: the mean of all
plausible images beats any one of them. `detail_ratio` stands beside them, which blur lowers and noise raises; the truth
has 1.
"""

from typing import Callable

import numpy as np
from einops import reduce
from scipy.ndimage import gaussian_filter

from rsdiff.errors import BadInput

PEAK = 255.0
SSIM_RADIUS_PX = 5
SHIFT_PX = 8


def psnr(images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Raises:
      ValueError: the shapes differ.
    """
    images, truths = _pair(images, truths)
    return _decibels(np.mean((images - truths) ** 2, axis=(1, 2, 3)))


def ssim(images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13, eq. 13): Gaussian windows of 11 × 11 px, σ = 1.5, K = 0.01
    and 0.03, mean over channels and all places where a window is whole. Equal constant images have 1.

    Raises:
      ValueError: the shapes differ, or the images are smaller than a window.
    """
    a, b = _pair(images, truths)
    margin = SSIM_RADIUS_PX
    if min(a.shape[1:3]) <= 2 * margin:
        raise ValueError(f'{a.shape[2]}×{a.shape[1]} px; SSIM needs more than {2 * margin} a side')
    blur = lambda x: gaussian_filter(x, 1.5, radius=margin, axes=(1, 2))
    mean_a, mean_b = blur(a), blur(b)
    covariance = blur(a * b) - mean_a * mean_b
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    index = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    return index[:, margin:-margin, margin:-margin].mean((1, 2, 3))


def cpsnr(images: np.ndarray, truths: np.ndarray, satlas_compat: bool = False) -> np.ndarray:
    """The best PSNR over all shifts of up to `SHIFT_PX` pixels along both axes, without the mean error of each channel
    (Märtens et al. 2019, arXiv 1907.01821, eqs. 1 to 3): what a shifted or differently exposed sensor costs does not count.

    For the shift d, the image's crop begins at ⌊(S + d) / 2⌋ and the truth's at ⌊(S - d) / 2⌋, S = `SHIFT_PX`; both
    leave out S pixels, whatever d is.

    Args:
      satlas_compat: only even shifts, as in allenai/satlas-super-resolution, whose crops move both at once.
    Raises:
      ValueError: the shapes differ, or the images are not larger than `SHIFT_PX`.
    """
    images, truths = _pair(images, truths)
    if min(images.shape[1:3]) <= SHIFT_PX:
        raise ValueError(f'{images.shape[2]}×{images.shape[1]} px; cPSNR needs more than {SHIFT_PX} a side')
    shifts = range(-SHIFT_PX, SHIFT_PX + 1, 2 if satlas_compat else 1)
    return _decibels(np.array([_least_error(image, truth, shifts) for image, truth in zip(images, truths)]))


def _least_error(image: np.ndarray, truth: np.ndarray, shifts: range) -> float:
    """Mean over channels of the variance of the difference, at the best shift."""
    height, width, _ = (side - SHIFT_PX for side in image.shape)

    def difference(a: np.ndarray, b: np.ndarray, dy: int, dx: int) -> np.ndarray:
        (y, v), (x, u) = (((SHIFT_PX + d) // 2, (SHIFT_PX - d) // 2) for d in (dy, dx))
        return a[y : y + height, x : x + width] - b[v : v + height, u : u + width]

    # found in float32, for speed, then computed in float64
    rough = [(x - x.mean((0, 1))).astype(np.float32) for x in (image, truth)]
    ones = np.ones(height * width, np.float32)  # a matrix product sums faster than `sum` along the first axis

    def roughly(dy: int, dx: int) -> float:
        error = difference(*rough, dy, dx).reshape(-1, 3)
        return np.vdot(error, error) / len(error) - np.sum((ones @ error / len(error)) ** 2)

    best = min(((dy, dx) for dy in shifts for dx in shifts), key=lambda shift: roughly(*shift))
    return float(np.mean(np.var(difference(image, truth, *best), axis=(0, 1))))


def block_means(images: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor × factor pixels, not rounded: (n, h, w, c) → float64 (n, h / factor, w / factor, c)."""
    return reduce(np.asarray(images, np.float64), 'n (h fh) (w fw) c -> n h w c', 'mean', fh=factor, fw=factor)


def lr_consistency(images: np.ndarray, conditions: np.ndarray,
                   degrade: Callable[[np.ndarray, int], np.ndarray] = block_means) -> np.ndarray:
    """PSNR in dB of the images made coarse again against the conditions they were made from, (n, h / k, w / k, 3).

    A truth whose block means were rounded to make its condition has 58.9 dB: 255 over the 12^-½ that rounding costs.

    Args:
      degrade: (images, k) → what their conditions should be.
    """
    return psnr(degrade(images, images.shape[1] // conditions.shape[1]), conditions)


def detail(images: np.ndarray) -> np.ndarray:
    """Root mean square of the 4-neighbour Laplacian, in grey levels: the energy of the finest structure."""
    x = np.asarray(images, np.float64)
    laplacian = 4 * x[:, 1:-1, 1:-1] - x[:, :-2, 1:-1] - x[:, 2:, 1:-1] - x[:, 1:-1, :-2] - x[:, 1:-1, 2:]
    return np.sqrt(np.mean(laplacian**2, axis=(1, 2, 3)))


def detail_ratio(images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """`detail` of the images over that of the truths; two without any have 1."""
    own, real = detail(images), detail(truths)
    return np.divide(own, real, out=np.where(own > 0, np.inf, 1.0), where=real > 0)


def _pair(images: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64.

    Raises:
      ValueError: the shapes differ, or are not those of images.
      BadInput: a pixel is not finite.
    """
    if images.shape != truths.shape or images.ndim != 4:
        raise ValueError(f'shapes {images.shape} and {truths.shape}; two (n, h, w, 3) alike are needed')
    for array in (images, truths):
        if not np.isfinite(array).all():
            raise BadInput('an image has pixels that are not finite; mend or leave it out')
    return images.astype(np.float64), truths.astype(np.float64)


def _decibels(mean_square: np.ndarray) -> np.ndarray:
    with np.errstate(divide='ignore'):
        return 10 * np.log10(PEAK**2 / mean_square)
