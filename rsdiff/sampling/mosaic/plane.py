"""Extends an image over the infinite plane, so that a canvas has no border: by mirroring, or periodically in x."""

from typing import Any

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput


class Plane:
    """Reads an image at any position of the plane.

    Args:
      array: anything with a (height, width, channels) shape whose slices `np.asarray` accepts: NumPy, tensorstore,
        `field.CachedField`.
      wrap_x: whether the left edge follows the right one. Otherwise, and always in y, the image is mirrored at its edges
        without repeating the border pixels.
    """

    def __init__(self, array: Any, wrap_x: bool = False):
        self.array, self.wrap_x = array, wrap_x
        self.height, self.width = array.shape[:2]
        if min(self.height, self.width) < 1:
            raise BadInput(f'the condition is empty: {self.width}×{self.height} px')

    def crop(self, box: Box) -> np.ndarray:
        """The pixels of `box`, (box's height, box's width, channels)."""
        rows = mirrored(np.arange(box.y0, box.y1), self.height)
        columns = np.arange(box.x0, box.x1)
        columns = columns % self.width if self.wrap_x else mirrored(columns, self.width)
        # piece by piece: adjacent pixels of the plane may be far apart in the image
        return np.concatenate([np.concatenate([self._read(y, x) for x in runs(columns)], 1) for y in runs(rows)])

    def _read(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        pixels = np.asarray(self.array[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
        return pixels[:: 1 if rows[0] <= rows[-1] else -1, :: 1 if columns[0] <= columns[-1] else -1]


def mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Folds indices into [0, size): … 2 1 | 0 1 2 … size-1 | size-2 …"""
    period = max(2 * (size - 1), 1)
    folded = index % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(index)


def runs(index: np.ndarray) -> list[np.ndarray]:
    """`index` split into runs of consecutive ascending or descending values."""
    pieces = []
    while len(index):
        step = -1 if len(index) > 1 and index[1] < index[0] else 1
        follows = index == index[0] + step * np.arange(len(index))
        length = len(index) if follows.all() else int(follows.argmin())
        pieces.append(index[:length])
        index = index[length:]
    return pieces
