"""Rotation of images to upright by their EXIF orientation."""

import functools
import logging

import numpy as np

from rsdiff.base.boxes import Box

# by EXIF orientation: whether rows and columns are swapped, then whether rows, then whether columns are reversed
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Turned:
    """`scene` (`rsdiff.data.scenes.Scene`) rotated upright by its EXIF orientation, one of `TURNS`."""

    def __init__(self, scene, orientation: int):
        self.scene, (self.swap, self.reverse_rows, self.reverse_columns) = scene, TURNS[orientation]
        self.height, self.width = (scene.width, scene.height) if self.swap else (scene.height, scene.width)

    def __enter__(self) -> 'Turned':
        return self

    def __exit__(self, *_) -> None:
        self.scene.__exit__()

    @property
    def gsd_m(self) -> float | None:
        """See `Scene`."""
        return self.scene.gsd_m

    @functools.cached_property
    def georeference(self) -> None:
        """None: no format defines whether a georeference applies before or after the rotation."""
        if self.scene.georeference:
            logging.warning('%s: its georeference is not kept, since it also has an EXIF orientation', self.scene.path)

    def read(self, box: Box) -> np.ndarray:
        """See `Scene`."""
        return np.ascontiguousarray(self._turn(self.scene.read(self._before(box))))

    def valid(self, box: Box) -> np.ndarray:
        """See `Scene`."""
        return self._turn(self.scene.valid(self._before(box)))

    def nodata(self, box: Box) -> float:
        """See `Scene`."""
        return self.scene.nodata(self._before(box))

    def _before(self, box: Box) -> Box:
        y0, x0, y1, x1 = box
        if self.reverse_rows:
            y0, y1 = self.height - y1, self.height - y0
        if self.reverse_columns:
            x0, x1 = self.width - x1, self.width - x0
        return Box(x0, y0, x1, y1) if self.swap else Box(y0, x0, y1, x1)

    def _turn(self, image: np.ndarray) -> np.ndarray:
        image = image.swapaxes(0, 1) if self.swap else image
        image = image[::-1] if self.reverse_rows else image
        return image[:, ::-1] if self.reverse_columns else image
