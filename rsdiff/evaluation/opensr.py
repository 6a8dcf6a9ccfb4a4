"""Correctness of the detail that super-resolution adds: the scores of opensr-test (Aybar et al. 2024, IEEE GRSL 21,
doi 10.1109/LGRS.2024.3401394), by the equations of its version 1.3.3.

At each pixel, the sample is compared with the truth and with its bilinearly enlarged condition. Both distances are
divided by the distance between condition and truth:

    d_ref = d(condition, truth)   d_im = d(sample, truth) / d_ref   d_om = d(sample, condition) / d_ref             (1)

A sample with d_im = 0 equals the truth, an improvement; one with d_om = 0 omits all detail; one far from both
hallucinates. With γ = 0.05 and H = d_im + d_om - 1, which is ≥ 0 if d is a metric (triangle inequality),

    improvement   = d_im + d_om (1 - exp(-γ H))
    omission      = d_om + d_im (1 - exp(-γ H))                           (2)
    hallucination = exp(-γ d_im d_om)

are the distances to these three cases, and softmin(· / 0.25) converts them to shares whose sum is 1. The shares are
averaged over the pixels where any of the three d before the division (1) exceeds the 75th percentile of d_ref: there is
no detail to add elsewhere. The distance d is the normalised difference, mean over channels of |x - y| / (x + y).

opensr-test first matches the sample's histogram to the truth's, aligns it with the truth by phase correlation, and
crops 16 pixels from each side: corrections for images of two sensors. Here none of this is done (there, `Config(
border_mask=0, harm_apply_spectral=False, harm_apply_spatial=False)`), and images are display grey levels, not
reflectances. So these values must not be compared with published ones.
"""

from typing import Callable, NamedTuple, cast

import numpy as np
from scipy.ndimage import zoom

from rsdiff.evaluation.fidelity import checked_pairs

GAMMA, TEMPERATURE, QUANTILE = 0.05, 0.25, 0.75


class Correctness(NamedTuple):
    """Shares per image, float64 (n,); their sum is 1."""

    improvement: np.ndarray
    omission: np.ndarray
    hallucination: np.ndarray


def normalised_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two batches (n, h, w, c) without negative values → (n, h, w): 0 for equal pixels, at most 1."""
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
      conditions: uint8 (n, h / k, w / k, c), the conditions of the images.
      distance: d of (1), two batches (n, h, w, c) in [0, 1] → (n, h, w).
      threshold: pixels count if a distance exceeds it; by default the 75th percentile of d_ref of each image.
    Returns:
      The shares of each image; NaN if no pixel counts, as for an image equal to its enlarged condition and its truth.
    Raises:
      ValueError: the shapes do not match.
      BadInput: a pixel is not finite.
    """
    images, truth = checked_pairs(images, truth)
    conditions, _ = checked_pairs(conditions, conditions)
    factor = max(1, images.shape[1] // conditions.shape[1])
    enlarged = cast(np.ndarray, zoom(conditions, (1, factor, factor, 1), order=1, mode='nearest', grid_mode=True))
    if enlarged.shape != images.shape:
        raise ValueError(
            f'conditions {conditions.shape}; the images {images.shape} must be a whole number of times larger'
        )
    enlarged, images, truth = enlarged / 255, images / 255, truth / 255

    d_ref, d_im, d_om = distance(enlarged, truth), distance(images, truth), distance(images, enlarged)
    limit: float | np.ndarray | None = threshold
    if limit is None:
        pixels = images.shape[1] * images.shape[2]
        rank = int(QUANTILE * pixels) - 1
        limit = np.partition(d_ref.reshape(-1, pixels), rank)[:, rank, None, None]
    counts = np.maximum(np.maximum(d_ref, d_im), d_om) > limit
    # where d_ref = 0, d_im = d_om = ∞: any added detail is a hallucination
    with np.errstate(divide='ignore', invalid='ignore'):
        d_im, d_om = d_im / d_ref, d_om / d_ref
        added = 1 - np.exp(-GAMMA * (d_im + d_om - 1))
        scores = np.stack([d_im + d_om * added, d_om + d_im * added, np.exp(-GAMMA * d_im * d_om)])
        shares = np.exp(-scores / TEMPERATURE)
        shares = np.where(counts, shares / shares.sum(0), 0)
        return Correctness(*(shares.sum((2, 3)) / counts.sum((1, 2))))
