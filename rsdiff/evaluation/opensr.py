"""Is the detail that super-resolution adds right? The correctness scores of opensr-test (Aybar et al. 2024, IEEE GRSL 21,
doi 10.1109/LGRS.2024.3401394), by the equations of its version 1.3.3.

At each pixel the sample is compared with the truth and with its condition, enlarged without any knowledge (bilinearly).
Both distances count in units of what the condition lacks:

    d_ref = d(condition, truth)   d_im = d(sample, truth) / d_ref   d_om = d(sample, condition) / d_ref             (1)

A sample at d_im = 0 is the truth, an improvement; at d_om = 0 it has omitted all detail; far from both it hallucinates.
With the excess H = d_im + d_om - 1 of the way round by the sample, which is ≥ 0 where d is a metric, and γ = 0.05,

    improvement   = d_im + d_om (1 - exp(-γ H))
    omission      = d_om + d_im (1 - exp(-γ H))                           (2)
    hallucination = exp(-γ d_im d_om)

are three distances, the nearer the better, and softmin(· / 0.25) makes shares of them whose sum is 1. They are averaged
over the pixels where any of the three d before (1) exceeds the 75th percentile of d_ref: elsewhere there is nothing to
add. The distance is the normalised difference, mean over channels of |x - y| / (x + y).

opensr-test also matches the sample's histogram to the truth's, moves it over the truth by phase correlation, and crops
16 pixels from each side first: cures for images of two sensors. Here none of this is done (there, `Config(
border_mask=0, harm_apply_spectral=False, harm_apply_spatial=False)`), and images are grey levels for the screen, not
reflectances. So these figures do not belong into one table with published ones.
"""

from typing import Callable, NamedTuple, cast

import numpy as np
from scipy.ndimage import zoom

from rsdiff.evaluation.fidelity import checked_pairs

GAMMA, TEMPERATURE, QUANTILE = 0.05, 0.25, 0.75


class Correctness(NamedTuple):
    """Shares of each image, float64 (n,); their sum is 1."""

    improvement: np.ndarray
    omission: np.ndarray
    hallucination: np.ndarray


def normalised_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, h, w) of two batches (n, h, w, c) that are nowhere negative: 0 for equal pixels, at most 1."""
    return (np.abs(x - y) / np.abs(x + y + 1e-8)).mean(-1)


def correctness(
    images: np.ndarray,
    truth: np.ndarray,
    conditions: np.ndarray,
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray] = normalised_difference,
    threshold: float | None = None,
) -> Correctness:
    """The mean shares of (2).

    Args:
      images, truth: uint8 (n, h, w, c).
      conditions: uint8 (n, h / k, w / k, c), what the images were made from.
      distance: d of (1), (n, h, w) of two batches (n, h, w, c) in [0, 1].
      threshold: pixels count where a distance exceeds it; by default the 75th percentile of d_ref, image by image.
    Returns:
      Of each image; NaN where no pixel counts, as in an image that is its enlarged condition and the truth as well.
    Raises:
      ValueError: the shapes do not fit.
      BadInput: a pixel is not finite.
    """
    images, truth = checked_pairs(images, truth)
    conditions, _ = checked_pairs(conditions, conditions)
    factor = max(1, images.shape[1] // conditions.shape[1])
    enlarged = cast(np.ndarray, zoom(conditions, (1, factor, factor, 1), order=1, mode='nearest', grid_mode=True))
    if enlarged.shape != images.shape:
        raise ValueError(f'conditions {conditions.shape} are no whole fraction of images {images.shape}')
    enlarged, images, truth = enlarged / 255, images / 255, truth / 255

    d_ref, d_im, d_om = distance(enlarged, truth), distance(images, truth), distance(images, enlarged)
    limit: float | np.ndarray | None = threshold
    if limit is None:
        pixels = images.shape[1] * images.shape[2]
        rank = int(QUANTILE * pixels) - 1
        limit = np.partition(d_ref.reshape(-1, pixels), rank)[:, rank, None, None]
    counts = np.maximum(np.maximum(d_ref, d_im), d_om) > limit
    # where nothing was lacking, d_im = d_om = ∞: whatever came there is hallucinated
    with np.errstate(divide='ignore', invalid='ignore'):
        d_im, d_om = d_im / d_ref, d_om / d_ref
        added = 1 - np.exp(-GAMMA * (d_im + d_om - 1))
        scores = np.stack([d_im + d_om * added, d_om + d_im * added, np.exp(-GAMMA * d_im * d_om)])
        shares = np.exp(-scores / TEMPERATURE)
        shares = np.where(counts, shares / shares.sum(0), 0)
        return Correctness(*(shares.sum((2, 3)) / counts.sum((1, 2))))
