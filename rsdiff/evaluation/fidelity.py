"""Fidelity of images: similarity to the truth and to their conditions, and the amount of detail relative to the truth.

Every function takes batches (n, h, w, c) of grey levels 0 … 255, uint8 or finite floats, and returns float64 (n,), one
value per pair, so that thousands of pairs can be processed in batches.

PSNR rewards blur: the mean of all plausible images beats any one of them. It is complemented by `detail_ratio`, which
blur lowers and noise raises; it is 1 for the truth. SSIM (Wang et al. 2004) compares means μ, variances σ² and the
covariance under a Gaussian window of 11 × 11 pixels, σ = 1.5, at every position where the window is inside the image:

    SSIM = (2 μ_a μ_b + C₁) (2 σ_ab + C₂) / ((μ_a² + μ_b² + C₁) (σ_a² + σ_b² + C₂))       (1)

Images of different sensors are shifted by some pixels and differ in brightness, independently of their quality. So
super-resolution is scored as in ESA's PROBA-V challenge (Märtens et al. 2019): the image without a border of B pixels
is compared with each of the (2B + 1)² windows of its size in the truth, after removing each channel's mean error:

    cPSNR = max_{u,v} PSNR(image_BB + bias, truth_uv),   bias = mean(truth_uv - image_BB)                       (2)

and likewise with SSIM.
"""

import itertools
from typing import Callable

import numpy as np
from einops import reduce
from scipy.ndimage import correlate1d

from rsdiff.base.errors import BadInput

# (images (n, h, w, c), k) → their expected conditions, (n, h / k, w / k, c), in grey levels
Degrade = Callable[[np.ndarray, int], np.ndarray]

PEAK = 255
WINDOW_RADIUS, WINDOW_SIGMA = 5, 1.5
WINDOW = np.exp(-0.5 * (np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1) / WINDOW_SIGMA) ** 2)
WINDOW /= WINDOW.sum()
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def checked_pairs(
    images: np.ndarray, truth: np.ndarray, least_px: int = 1, who: str = 'this measure'
) -> tuple[np.ndarray, np.ndarray]:
    """Both batches as float64. `who` is the measure that needs sides of at least `least_px`.

    Raises:
      ValueError: the shapes differ, or are not (n, h, w, c).
      BadInput: h or w is below `least_px`, or a pixel is not finite.
    """
    if images.shape != truth.shape or images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f'shapes {images.shape} and {truth.shape}; two batches of the same shape (n, h, w, c) are needed'
        )
    if min(images.shape[1:3]) < least_px:
        raise BadInput(f'images of {images.shape[1]}×{images.shape[2]} px; {who} needs {least_px} px per side')
    for batch in (images, truth):
        finite = np.isfinite(batch).all((1, 2, 3))
        if not finite.all():
            raise BadInput(
                f'image {np.argmin(finite)} of {len(batch)} has pixels that are NaN or infinite; leave it out'
            )
    return np.asarray(images, np.float64), np.asarray(truth, np.float64)


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, peak 255, over all pixels; infinite for equal images.

    Raises:
      ValueError: the shapes differ, or are not (n, h, w, c).
      BadInput: a pixel is not finite.
    """
    images, truth = checked_pairs(images, truth)
    return _decibels(((images - truth) ** 2).mean((1, 2, 3)))


def ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean of (1) over positions and channels; at most 1, which only equal images reach.

    The window's centre is never within 5 pixels of an edge. Flat images are compared by their means alone.

    Raises:
      ValueError: as `psnr`.
      BadInput: a pixel is not finite, or the images are smaller than the window.
    """
    images, truth = checked_pairs(images, truth, least_px=len(WINDOW), who='ssim')

    def similarity(a, b):
        (mean_a, variance_a), (mean_b, variance_b) = _local_moments(a), _local_moments(b)
        return _similarity(mean_a, mean_b, variance_a, variance_b, _local_mean(a * b) - mean_a * mean_b)

    return np.array([similarity(a, b) for a, b in zip(images, truth)])


def cpsnr(images: np.ndarray, truth: np.ndarray, border_px: int = 4, satlas_compat: bool = False) -> np.ndarray:
    """(2) in dB, over all shifts up to `border_px`; infinite if the images differ only in shift and bias, e.g. if flat.

    Args:
      border_px: B of (2). PROBA-V uses 3 for images of 384². 4 is one pixel of a 4 times coarser condition.
      satlas_compat: as in allenai/satlas-super-resolution, whose border is 4: in (2) only the truth's window moves from
        edge to edge; here both windows move, in opposite directions. So shifts reach twice as far, and odd ones are
        left out.
    Raises:
      ValueError: as `psnr`.
      BadInput: a pixel is not finite, or less than 2 × 2 pixels are left within the border.
    """
    # a single pixel has no error after the bias is removed
    images, truth = checked_pairs(images, truth, least_px=2 * border_px + 2, who='cpsnr')
    starts = [(2 * border_px - start if satlas_compat else border_px, start) for start in range(2 * border_px + 1)]
    height, width = (size - 2 * border_px for size in images.shape[1:3])

    def least_error(image, truth):
        # channels first, so that each is contiguous in memory
        image, truth = image.transpose(2, 0, 1).copy(), truth.transpose(2, 0, 1).copy()
        errors = []
        for (i, u), (j, v) in itertools.product(starts, starts):
            error = truth[:, u : u + height, v : v + width] - image[:, i : i + height, j : j + width]
            error = error.reshape(len(error), -1)
            squares, bias = np.einsum('cp,cp->c', error, error) / error.shape[1], error.mean(1)
            errors.append((squares - bias**2).mean())
        return max(min(errors), 0)  # rounding errors can make it negative

    return _decibels(np.array([least_error(a, b) for a, b in zip(images, truth)]))


def cssim(images: np.ndarray, truth: np.ndarray, border_px: int = 4) -> np.ndarray:
    """SSIM as in (2): the maximum over all shifts up to `border_px`, after removing each channel's mean error.

    Raises:
      ValueError: as `psnr`.
      BadInput: a pixel is not finite, or the image within the border is smaller than SSIM's window.
    """
    images, truth = checked_pairs(images, truth, least_px=2 * border_px + len(WINDOW), who='cssim')
    height, width = (size - 2 * border_px for size in images.shape[1:3])

    def best(image, truth):
        image = image[border_px : border_px + height, border_px : border_px + width]
        (mean_a, variance_a), (mean_b, variance_b) = _local_moments(image), _local_moments(truth)
        scores = []
        for u, v in itertools.product(range(2 * border_px + 1), repeat=2):
            target = truth[u : u + height, v : v + width]
            here = slice(u, u + len(mean_a)), slice(v, v + mean_a.shape[1])
            covariance = _local_mean(image * target) - mean_a * mean_b[here]
            bias = (target - image).mean((0, 1))
            scores.append(_similarity(mean_a + bias, mean_b[here], variance_a, variance_b[here], covariance))
        return max(scores)

    return np.array([best(a, b) for a, b in zip(images, truth)])


def block_means(images: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor × factor pixels, not rounded: (n, h, w, c) → float64 (n, h / factor, w / factor, c)."""
    return reduce(np.asarray(images, np.float64), 'n (h fh) (w fw) c -> n h w c', 'mean', fh=factor, fw=factor)


def lr_consistency(images: np.ndarray, conditions: np.ndarray, degrade: Degrade = block_means) -> np.ndarray:
    """PSNR in dB between the downscaled images and their conditions.

    If a condition is the rounded block means of its truth, the truth has 58.9 dB: peak 255, rounding error 12^-½ RMS.

    Args:
      images: uint8 (n, h, w, 3).
      conditions: uint8 (n, h / k, w / k, 3).
      degrade: the function that made the conditions.
    Raises:
      ValueError: the downscaled images differ from their conditions in size.
      BadInput: a pixel is not finite.
    """
    factor = max(1, images.shape[1] // max(1, conditions.shape[1]))
    if images.shape[1:3] != tuple(factor * side for side in conditions.shape[1:3]):
        raise ValueError(
            f'shapes {images.shape} and {conditions.shape}; the images must be a whole number of times larger'
        )
    return psnr(degrade(images, factor), conditions)


def detail(images: np.ndarray) -> np.ndarray:
    """Root mean square of the 4-neighbour Laplacian, in grey levels: the energy of the finest structure.

    Raises:
      BadInput: the images are smaller than 3 × 3 pixels, or a pixel is not finite.
    """
    x, _ = checked_pairs(images, images, least_px=3, who='detail')
    laplacian = 4 * x[:, 1:-1, 1:-1] - x[:, :-2, 1:-1] - x[:, 2:, 1:-1] - x[:, 1:-1, :-2] - x[:, 1:-1, 2:]
    return np.sqrt((laplacian**2).mean((1, 2, 3)))


def detail_ratio(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`detail` of the images over that of the truth: 1 if neither has any, infinite if only the truth has none."""
    ours, theirs = (detail(batch) for batch in checked_pairs(images, truth))
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(ours == theirs, 1, ours / theirs)


def _decibels(squared_error: np.ndarray) -> np.ndarray:
    with np.errstate(divide='ignore'):
        return 10 * np.log10(PEAK**2 / squared_error)


def _local_mean(x: np.ndarray) -> np.ndarray:
    """(h, w, c) → (h - 10, w - 10, c): mean under the window, where it is inside the image."""
    inside = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    return correlate1d(correlate1d(x, WINDOW, axis=0)[inside], WINDOW, axis=1)[:, inside]


def _local_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local mean and variance."""
    mean = _local_mean(x)
    return mean, _local_mean(x**2) - mean**2


def _similarity(mean_a, mean_b, variance_a, variance_b, covariance) -> float:
    """The mean of (1)."""
    brightness = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return (brightness * structure).mean()
