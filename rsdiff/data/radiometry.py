"""Histogram matching: gives an image the radiometry of another sensor's image of the same ground, band by band.

Let F be the cumulative histogram of a band of the image, and G that of the reference. Histogram specification (Gonzalez &
Woods, Digital Image Processing, §3.3) maps every level v to

    T(v) = G⁻¹(F(v)),                                                                                        (1)

with G⁻¹ interpolated linearly between the levels of the reference. A sharp image has a wider histogram than a blurred one of
the same ground, so (1) between images of different resolutions would take contrast from the sharp one. T is therefore
estimated at the reference's resolution, from block means of the image, and applied at full resolution. Levels that no
block mean has are interpolated linearly; beyond the darkest and the brightest block mean, T has slope 1.
"""

import numpy as np

LEVELS = np.arange(256)


def matched(
    image: np.ndarray, coarse: np.ndarray, reference: np.ndarray, valid: np.ndarray | None = None
) -> np.ndarray:
    """`image` with the radiometry of `reference`.

    Args:
      image: uint8 (H, W, c).
      coarse: the same image, uint8, at the resolution of `reference`: (h, w, c).
      reference: uint8 (h, w, c).
      valid: bool (h, w), the pixels to estimate T from, at least one; None: all.
    Returns:
      uint8 (H, W, c).
    """
    levels = lambda pixels: pixels.reshape(-1, pixels.shape[-1]) if valid is None else pixels[valid]
    known, wanted = levels(coarse), levels(reference)
    bands = range(image.shape[-1])
    return np.stack([transfer(known[:, band], wanted[:, band])[image[..., band]] for band in bands], axis=-1)


def transfer(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The function T of (1), from the levels `values` to the levels `reference`, uint8 (n,) each: uint8 (256,)."""
    counts, wanted = (np.bincount(levels, minlength=256) for levels in (values, reference))
    present, levels = np.flatnonzero(counts), np.flatnonzero(wanted)
    share, share_wanted = counts.cumsum() / counts.sum(), wanted.cumsum() / wanted.sum()
    mapped = np.interp(share[present], share_wanted[levels], levels)
    curve = np.interp(LEVELS, present, mapped)
    curve += np.minimum(LEVELS - present[0], 0) + np.maximum(LEVELS - present[-1], 0)
    return np.clip(np.rint(curve), 0, 255).astype(np.uint8)
