"""Void: pixels of a condition without a measurement, which are filled from their surroundings and recorded in a mask.

The generator needs an input at these pixels, and their values influence the output some distance beyond them. So void is
filled with a mean of the surrounding valid pixels v, in which near pixels weigh far more than distant ones,

    fill(p) = (Σ_k 16^(K-k) Σ_{|q - p| <= 2^k} v(q) + g G) / (Σ_k 16^(K-k) N_k(p) + g),  k = 0 … K                   (1)

with N_k the number of valid pixels in the square of side 2^(k+1) + 1, and G a grey to which the fill fades where valid pixels
are few or far away. All sums are over integers: the value depends on the position alone, not on the rectangle that is read.
"""

from typing import Any, NamedTuple

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.sampling.mosaic.plane import Plane

LEVELS = 7
REACH_PX = 2 ** (LEVELS - 1)  # 2^K of (1): pixels further away have no influence
GREY, GREY_WEIGHT = 128, 1024


class Void(NamedTuple):
    """The number of void pixels (at least one) among a condition's `pixels`, and a digest of the mask."""

    void_pixels: int
    pixels: int
    digest: str

    def __str__(self) -> str:
        return f'{self.void_pixels} of {self.pixels} pixels filled, mask {self.digest}'


def fill(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Equation 1.

    Args:
      pixels: uint8 (h, w, 3).
      valid: bool (h, w). Pixels beyond the borders have no influence.
    Returns:
      uint8 (h, w, 3), `pixels` where they are valid.
    """
    ys, xs = np.nonzero(~valid)
    # integral image: sums over the rectangle above and to the left, with a leading row and column of zeros
    values = np.dstack([np.where(valid[..., None], pixels, 0), valid]).astype(np.int64)
    sums = np.pad(values, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
    above = np.full((len(ys), 3), GREY_WEIGHT * GREY, np.int64)
    below = np.full((len(ys), 1), GREY_WEIGHT, np.int64)
    height, width = valid.shape
    for level in range(LEVELS):
        y0, x0 = np.maximum(ys - 2**level, 0), np.maximum(xs - 2**level, 0)
        y1, x1 = np.minimum(ys + 2**level + 1, height), np.minimum(xs + 2**level + 1, width)
        square = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        weight = 16 ** (LEVELS - 1 - level)
        above += weight * square[:, :3]
        below += weight * square[:, 3:]
    filled = pixels.copy()
    filled[ys, xs] = (2 * above + below) // (2 * below)  # rounded
    return filled


def with_alpha(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Converts RGB (h, w, 3) uint8 to RGBA: opaque where `valid` (h, w), transparent and black elsewhere."""
    return np.dstack([np.where(valid[..., None], pixels, 0), np.where(valid, 255, 0)]).astype(np.uint8)


class FineMask:
    """The validity mask of a stage. Each pixel of `condition`, which has `valid(box)`, covers `upscale` × `upscale` pixels of
    the stage."""

    def __init__(self, condition: Any, upscale: int, wrap_x: bool = False):
        self.condition, self.upscale = condition, upscale
        self.shape = condition.shape
        self.plane = Plane(self, wrap_x)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        """The mask at the condition's resolution."""
        (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(key, self.shape))
        return self.condition.valid(Box(y0, x0, y1, x1))

    def region(self, box: Box) -> np.ndarray:
        """The mask of `box` in the stage: bool (height, width)."""
        times = self.upscale
        y0, x0 = box.y0 // times, box.x0 // times
        coarse = self.plane.crop(Box(y0, x0, -(-box.y1 // times), -(-box.x1 // times)))
        rows, columns = np.arange(box.y0, box.y1) // times - y0, np.arange(box.x0, box.x1) // times - x0
        return coarse[rows][:, columns]
