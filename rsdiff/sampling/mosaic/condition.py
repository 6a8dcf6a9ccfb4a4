"""The images that a mosaic is made from: files of any size."""

import functools
import hashlib
import logging
import os
from pathlib import Path
from typing import Sequence

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_local
from rsdiff.data.fields import IMAGE, Field, is_black
from rsdiff.sampling.mosaic.void import REACH_PX, Void, fill

_BLOCKS, _BLOCK_BYTES = 256, 1 << 16
# size of the windows in which the mask is read
_ROWS, _COLUMNS = 1024, 4096


class Condition:
    """An image file that reads like a uint8 NumPy array (height, width, channels); rasters are read window by window. Void
    pixels (without a measurement) are filled from those around them (`void.fill`), except in masks, where every value is
    valid.

    Args:
      bands, value_range: see `rsdiff.data.scenes.open_scene`.
      field: the field that the file is opened for, by the same rule as in training.
    Raises:
      BadInput: as `Field.open`; the file is in a bucket; the field has neither 1 nor 3 channels; or it has one, and the
        file's middle is in colour. Reading other coloured pixels of such a file raises it, too.
    """

    def __init__(
        self,
        path: Path | str,
        bands: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        field: Field = IMAGE,
    ):
        if not is_local(path):
            raise BadInput(f'{path}: a mosaic needs a local file; copy it to this machine first')
        if field.channels not in (1, 3):
            raise BadInput(f'{path}: the field {field.name} has {field.channels} channels; files are read as 1 or 3')
        self.path, self.field, self.scene = path, field, field.open(path, bands, value_range)
        self.shape = self.scene.height, self.scene.width, field.channels
        self.gsd_m, self.georeference = self.scene.gsd_m, self.scene.georeference
        if field.channels == 1:
            y, x = self.scene.height // 2, self.scene.width // 2
            self[max(y - _ROWS // 2, 0) : y + _ROWS // 2, max(x - _COLUMNS // 2, 0) : x + _COLUMNS // 2]

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip(key, self.shape))
        return self.field.of_channels(self._read(Box(y0, x0, y1, x1)), self.path)

    def _read(self, box: Box) -> np.ndarray:
        """The pixels of `box` without void, uint8 (h, w, 3)."""
        y0, x0, y1, x1 = box.y0, box.x0, box.y1, box.x1
        if self.field.is_mask or y1 <= y0 or x1 <= x0 or self.scene.valid(box).all():
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


class Stack:
    """Several images of one place that read like one NumPy array (height, width, frames · channels): float32 in [-1, 1], NaN
    beyond the last image.

    Raises:
      BadInput: the images differ in size.
    """

    def __init__(self, images: Sequence[Condition], field: Field):
        self.images, self.field = images, field
        height, width, _ = images[0].shape
        for image in images:
            if image.shape != images[0].shape:
                raise BadInput(
                    f'{image.path}: {image.shape[1]}×{image.shape[0]} px; {images[0].path} has {width}×{height}, and all '
                    f'images of {field.name} must have one size'
                )
        self.shape = height, width, field.frames * field.channels

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        return self.field.to_float(np.concatenate([image[key] for image in self.images], axis=-1))

    def digest(self) -> str:
        """First 16 hex digits of the sha256 of the images' digests."""
        return hashlib.sha256('/'.join(image.digest() for image in self.images).encode()).hexdigest()[:16]


def open_field(
    field: Field, paths: Sequence[Path], bands: tuple[int, ...] | None, value_range: tuple[float, float] | None
) -> Condition | Stack | None:
    """The image of a field, or the stack of the first images that are not black; None if all images of a stack are black.

    Raises:
      BadInput: as `Condition` and `Stack`; or all images of a needed stack are black.
    """
    if not field.is_stack:
        return Condition(paths[0], bands, value_range, field)
    usable = []
    for path in paths:
        if len(usable) < field.frames:
            image = Condition(path, bands, value_range, field)
            if is_black(image.scene):
                logging.warning('skipped: %s: all black', path)
            else:
                usable.append(image)
    if not usable and field.needed:
        raise BadInput(f'{paths[0]}: all {len(paths)} images of {field.name} are black, and this checkpoint needs one')
    return Stack(usable, field) if usable else None


def scaled(georeference: dict | None, upscale: int) -> dict:
    """The georeference of the same image with `upscale` times as many pixels per side; {} if it is unknown."""
    if georeference is None or not georeference.get('transform'):
        return {}
    a, b, c, d, e, f = georeference['transform']
    crs = {'crs': georeference['crs']} if georeference.get('crs') else {}
    return crs | {'transform': [a / upscale, b / upscale, c, d / upscale, e / upscale, f]}
