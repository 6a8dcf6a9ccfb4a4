"""The image that a mosaic is made from, on disk and of any size."""

import hashlib
import os
from pathlib import Path

import numpy as np

from rsdiff.data.boxes import Box
from rsdiff.data.scenes import open_scene
from rsdiff.errors import BadInput

_BLOCKS, _BLOCK_BYTES = 256, 1 << 16


class Condition:
    """An image file that reads like a uint8 NumPy array (height, width, 3), a raster window by window.

    Args:
      bands, value_range: see `rsdiff.data.scenes.open_scene`.
    Raises:
      BadInput: as `open_scene`; and when values are read that are no numbers.
    """

    def __init__(self, path: Path | str, bands: tuple[int, ...] | None = None,
                 value_range: tuple[float, float] | None = None):
        self.path, self.scene = path, open_scene(path, bands, value_range)
        self.shape = self.scene.height, self.scene.width, 3
        self.gsd_m, self.georeference = self.scene.gsd_m, self.scene.georeference

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(key, self.shape))
        box = Box(y0, x0, y1, x1)
        if getattr(self.scene, 'floating', False) and self.scene.nodata(box) > 0:
            raise BadInput(f'{self.path}: rows {y0} to {y1}, columns {x0} to {x1} hold NaN or no data; fill them first')
        return self.scene.read(box)

    def digest(self) -> str:
        """sha256 of the file's length and of blocks spread evenly over it, all of it up to 16 MB; the first 16 digits."""
        size = os.path.getsize(self.path)
        digest = hashlib.sha256(str(size).encode())
        with open(self.path, 'rb') as file:
            for block in range(_BLOCKS):
                file.seek(block * max(size - _BLOCK_BYTES, 0) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
        return digest.hexdigest()[:16]


def scaled(georeference: dict | None, upscale: int) -> dict:
    """Where on Earth the same image lies once it has `upscale` times as many pixels a side; {} where that is not known."""
    if georeference is None:
        return {}
    a, b, c, d, e, f = georeference['transform']
    return {'crs': georeference['crs'], 'transform': [a / upscale, b / upscale, c, d / upscale, e / upscale, f]}
