"""Is what a super-resolver adds an improvement, an omission or a hallucination? (Aybar et al. 2024, opensr-test, IEEE GRSL 21)

Three images of a place span a triangle of distances: the truth HR, the result SR, and the condition enlarged, LR. At each
pixel, with d the absolute difference, mean over channels,

    d_im = d(SR, HR) / d(LR, HR),   d_om = d(SR, LR) / d(LR, HR),   H = d_im + d_om - 1 ≥ 0      (1)

H is what SR went beyond the straight line from LR to HR. The distances from the three corners are

    improvement:    d_im + d_om (1 - exp(-λ H))                                                 (2)
    omission:       d_om + d_im (1 - exp(-λ H))                                                 (3)
    hallucination:  exp(-λ d_im d_om)                                                           (4)

and the softmin of the three, with temperature T, is how much of the pixel is each. They are averaged over the pixels where
something was to be added or was: any of the three distances above the 75th percentile of d(LR, HR).

λ = 0.05, T = 0.25 and the percentile are opensr-test's defaults (1.3.3). It first matches SR to HR in histogram and position,
and has fractional differences by default; here SR is taken as it is, and distances are of grey levels, so that figures
compare with each other and not with its leaderboard.
"""

import numpy as np

from rsdiff.data.images import bicubic

NAMES = 'improvement', 'omission', 'hallucination'
PENALTY, TEMPERATURE, PERCENTILE = 0.05, 0.25, 75


def correctness(images: np.ndarray, truths: np.ndarray, conditions: np.ndarray) -> dict[str, np.ndarray]:
    """The three shares of each image, float64 (n,) each; they sum to 1.

    Where the condition and the result are the truth already, nothing was to be added: an improvement.

    Args:
      images, truths: uint8 (n, h, w, 3).
      conditions: uint8 (n, h / k, w / k, 3).
    """
    shares = [_shares(*triple) for triple in zip(images, truths, conditions)]
    return dict(zip(NAMES, np.array(shares).reshape(-1, 3).T))


def _shares(image: np.ndarray, truth: np.ndarray, condition: np.ndarray) -> np.ndarray:
    lr = bicubic(condition, *truth.shape[:2])
    distance = lambda a, b: np.abs(a.astype(np.float64) - b).mean(-1)
    reference, to_truth, to_lr = distance(lr, truth), distance(image, truth), distance(image, lr)
    counts = np.maximum(np.maximum(reference, to_truth), to_lr) > np.percentile(reference, PERCENTILE)
    if not counts.any():
        return np.array([1.0, 0.0, 0.0])
    reference = np.maximum(reference[counts], 1 / 3)  # the least that is not 0
    d_im, d_om = to_truth[counts] / reference, to_lr[counts] / reference
    bend = -np.expm1(-PENALTY * np.maximum(d_im + d_om - 1, 0))
    distances = np.stack([d_im + d_om * bend, d_om + d_im * bend, np.exp(-PENALTY * d_im * d_om)])
    closeness = np.exp(-(distances - distances.min(0)) / TEMPERATURE)
    return (closeness / closeness.sum(0)).mean(1)
