"""Whether the grid that an image was made on shows in it."""

import numpy as np


def seam_ratio(image: np.ndarray, stride_px: int) -> float:
    """Mean absolute difference across grid lines over that across all other pixel borders; 1 is seamless.

    Args:
      image: (h, w, c), h and w larger than `stride_px`.
      stride_px: the grid's lines lie before rows and columns stride_px, 2 · stride_px, …
    """
    across, inside = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(image.astype(np.float64), axis=axis)).mean(axis=(1 - axis, 2))
        on_line = (np.arange(1, len(steps) + 1) % stride_px) == 0
        across.append(steps[on_line])
        inside.append(steps[~on_line])
    return float(np.concatenate(across).mean() / np.concatenate(inside).mean())
