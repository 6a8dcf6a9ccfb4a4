"""Sliding windows over a canvas: pure geometry, in output pixels.

Windows of side W overlap by half, and each contributes its middle: a quarter is cropped from every side (MetaEarth, Yu et
al. 2024, §III-D). The middles, of side W/2, tile the canvas exactly; windows at its edge reach beyond it.
"""

import dataclasses

import numpy as np

from rsdiff.data.boxes import Box
from rsdiff.errors import BadInput


@dataclasses.dataclass(frozen=True)
class WindowGrid:
    """The windows of a canvas of `height` × `width` output pixels, made from a condition `upscale` times smaller."""

    height: int
    width: int
    window_px: int
    upscale: int = 4

    def __post_init__(self):
        if self.window_px % (4 * self.upscale):
            raise ValueError(f'a window of {self.window_px} px has no quarter that is whole in the condition')
        if min(self.height, self.width) < self.window_px:
            least = self.window_px // self.upscale
            raise BadInput(f'the condition is {self.width // self.upscale}×{self.height // self.upscale} px, smaller '
                           f'than a window; this generator needs at least {least}×{least}')

    @property
    def stride(self) -> int:
        """Pixels from one window to the next, and the side of a tile."""
        return self.window_px // 2

    @property
    def margin(self) -> int:
        """Pixels cropped from each side of a window."""
        return self.window_px // 4

    def tiles(self) -> list[Box]:
        """What is written: disjoint boxes that cover the canvas, row by row; the last ones are cut at its edge."""
        return [Box(y, x, min(y + self.stride, self.height), min(x + self.stride, self.width))
                for y in range(0, self.height, self.stride) for x in range(0, self.width, self.stride)]

    def window(self, tile: Box) -> Box:
        """The window whose middle is `tile`; it may reach beyond the canvas."""
        y, x = tile.y0 - self.margin, tile.x0 - self.margin
        return Box(y, x, y + self.window_px, x + self.window_px)

    def condition_box(self, tile: Box) -> Box:
        """The same window in pixels of the condition."""
        return Box(*(edge // self.upscale for edge in self.window(tile)))

    def middle(self, window: np.ndarray, tile: Box) -> np.ndarray:
        """What a sampled window (W, W, c) contributes to `tile`."""
        m = self.margin
        return window[m : m + tile.y1 - tile.y0, m : m + tile.x1 - tile.x0]


def reflected_read(array, box: Box) -> np.ndarray:
    """The pixels of `box`, which may reach beyond the edge: there the image is mirrored, without repeating its border.

    Args:
      array: anything with a (height, width, 3) shape whose slices `np.asarray` understands: NumPy, tensorstore.
    """
    rows, columns = (_reflect(np.arange(a, b), size)
                     for a, b, size in zip((box.y0, box.x0), (box.y1, box.x1), array.shape))
    y, x = rows.min(), columns.min()
    inside = np.asarray(array[y : rows.max() + 1, x : columns.max() + 1])
    return inside[rows - y][:, columns - x]


def _reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Mirrors indices into [0, size): … 2 1 | 0 1 2 … size-1 | size-2 …"""
    if size == 1:
        return np.zeros_like(index)
    period = 2 * (size - 1)
    folded = index % period
    return np.minimum(folded, period - folded)
