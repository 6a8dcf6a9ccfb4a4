"""The image that a mosaic is made from: a file of any size."""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_local
from rsdiff.data.scenes import open_scene
from rsdiff.sampling.mosaic.void import REACH_PX, Void, fill

_BLOCKS, _BLOCK_BYTES = 256, 1 << 16
# size of the windows in which the mask is read
_ROWS, _COLUMNS = 1024, 4096


class Condition:
    """An image file that reads like a uint8 NumPy array (height, width, 3); rasters are read window by window. Void pixels
    (without a measurement) are filled from those around them (`void.fill`).

    Args:
      bands, value_range: see `rsdiff.data.scenes.open_scene`.
    Raises:
      BadInput: as `open_scene`; or the file is in a bucket.
    """

    def __init__(
        self, path: Path | str, bands: tuple[int, ...] | None = None, value_range: tuple[float, float] | None = None
    ):
        if not is_local(path):
            raise BadInput(f'{path}: a mosaic needs a local file; copy it to this machine first')
        self.path, self.scene = path, open_scene(path, bands, value_range)
        self.shape = self.scene.height, self.scene.width, 3
        self.gsd_m, self.georeference = self.scene.gsd_m, self.scene.georeference

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(key, self.shape))
        box = Box(y0, x0, y1, x1)
        if y1 <= y0 or x1 <= x0 or self.scene.valid(box).all():
            return self.scene.read(box)
        height, width, _ = self.shape
        around = Box(
            max(y0 - REACH_PX, 0), max(x0 - REACH_PX, 0), min(y1 + REACH_PX, height), min(x1 + REACH_PX, width)
        )
        filled = fill(self.scene.read(around), self.scene.valid(around))
        return filled[y0 - around.y0 : y1 - around.y0, x0 - around.x0 : x1 - around.x0]

    def valid(self, box: Box) -> np.ndarray:
        """Mask of the pixels of `box` that hold a measurement, bool (height, width)."""
        return self.scene.valid(box)

    @functools.cached_property
    def void(self) -> Void | None:
        """Summary of the image's void pixels; None if there are none. The mask is read once, window by window.

        Raises:
          BadInput: all pixels are void.
        """
        (height, width, _), void, digest = self.shape, 0, hashlib.sha256()
        for y in range(0, height, _ROWS):
            for x in range(0, width, _COLUMNS):
                valid = self.scene.valid(Box(y, x, min(y + _ROWS, height), min(x + _COLUMNS, width)))
                void += valid.size - np.count_nonzero(valid)
                digest.update(np.packbits(valid).tobytes())
        if void == height * width:
            raise BadInput(
                f'{self.path}: none of its pixels is valid (nodata, mask, transparency or NaN); there is nothing to enlarge'
            )
        return Void(int(void), height * width, digest.hexdigest()[:16]) if void else None

    def digest(self) -> str:
        """sha256 of the file's length and of evenly spaced blocks, all of a file up to 16 MB; first 16 hex digits."""
        size = os.path.getsize(self.path)
        digest = hashlib.sha256(str(size).encode())
        with open(self.path, 'rb') as file:
            for block in range(_BLOCKS):
                file.seek(block * max(size - _BLOCK_BYTES, 0) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
        return digest.hexdigest()[:16]


def scaled(georeference: dict | None, upscale: int) -> dict:
    """The georeference of the same image with `upscale` times as many pixels per side; {} if it is unknown."""
    if georeference is None or not georeference.get('transform'):
        return {}
    a, b, c, d, e, f = georeference['transform']
    crs = {'crs': georeference['crs']} if georeference.get('crs') else {}
    return crs | {'transform': [a / upscale, b / upscale, c, d / upscale, e / upscale, f]}
