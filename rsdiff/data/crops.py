"""Random crops of numbered images: the source shared by image folders, prepared datasets and TFDS."""

import contextlib
import logging
import math
import threading
from typing import Protocol

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.fields import IMAGE, Fields, Layer
from rsdiff.data.folder import Entry, training_entries
from rsdiff.data.scenes import RASTER_SUFFIXES, Scene, open_scene


class Images(Protocol):
    """Numbered images that several threads may open in any order."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """The location of image `number`."""
        ...

    def open(self, number: int) -> tuple[Scene, float]:
        """Image `number` and its metres per pixel. Raises BadInput if it can't be opened."""
        ...


class Crops:
    """A source of random crops, reduced by one of `reductions` that the image is large enough for, then randomly rotated
    and mirrored. The `fields` of an image are cropped, reduced, rotated and mirrored in the same way.

    An image that can't be read, is smaller than a crop, or yields only crops with nodata pixels is logged once, added to
    `skipped`, and replaced by the next usable image. It is tried again every time it is drawn, so that its replacement
    depends only on the seed, not on what was read before. Black images of stacks are added to `skipped`, too.
    """

    # number of crops with nodata pixels in a row after which the image is skipped
    TRIES = 8

    def __init__(self, images: Images, reductions: tuple[int, ...], fields: Fields | None = None):
        self.images, self.reductions, self.fields = images, reductions, fields or Fields()
        self.skipped: set[str] = set()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The location of image `index`."""
        return self.images.name(index)

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray | np.float32]:
        """A crop of image `index`, or of the next usable one.

        Raises:
          BadInput: no image can be used.
        """
        reason = None
        for offset in range(len(self)):
            number = (index + offset) % len(self)
            try:
                with contextlib.ExitStack() as opened:
                    scene, gsd_m = self.images.open(number)
                    opened.enter_context(scene)
                    image = Layer(IMAGE, {self.name(number): scene}, (scene.height, scene.width))
                    layers = [image, *self.fields.open(number, (scene.height, scene.width), opened)]
                    with self.fields.lock:
                        self.skipped.update(self.fields.skipped)
                    factor, cut = self._cut(number, layers, rng, size_px)
                    fields = self.fields.complete(number, cut, size_px)
                    return {'image': cut['image'], 'gsd_m': np.float32(factor * gsd_m), **fields}
            except BadInput as error:
                self._skip(number, error)
                reason = error
        raise BadInput(f'none of {len(self)} images can be read at {size_px} px; last error: {reason}')

    def _cut(
        self, number: int, layers: list[Layer], rng: np.random.Generator, size_px: int
    ) -> tuple[int, dict[str, np.ndarray]]:
        """The reduction factor of a crop, and the crop of each layer by the name of its field."""
        height, width = min(layer.height for layer in layers), min(layer.width for layer in layers)
        whole = [f for f in self.reductions if all(layer.reduction(f).denominator == 1 for layer in layers)]
        if not whole:
            raise min(layers, key=lambda layer: layer.reduction(1)).too_coarse()
        fitting = [f for f in whole if f * size_px <= min(height, width)]
        if not fitting:
            raise BadInput(f'{self.name(number)}: {width}×{height} is smaller than the {size_px} px crop')
        factor = int(rng.choice(fitting))
        side, step = factor * size_px, math.lcm(*(layer.ratio.denominator for layer in layers))
        for _ in range(self.TRIES):
            y, x = (step * int(rng.integers((n - side) // step + 1)) for n in (height, width))
            box = Box(y, x, y + side, x + side)
            if not any(layer.nodata(box) for layer in layers):
                break
        else:
            raise BadInput(f'{self.name(number)}: {self.TRIES} crops in a row have pixels without data')
        crops = {layer.field.name: layer.read(box, factor) for layer in layers}
        # The eight symmetries of the square: nadir imagery has no preferred direction.
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        return factor, {name: _turned(crop, turns, mirrored) for name, crop in crops.items()}

    def _skip(self, number: int, error: BadInput) -> None:
        name = self.name(number)
        with self.lock:
            if name in self.skipped:
                return
            self.skipped.add(name)
        logging.warning('skipped: %s', error)


def _turned(crop: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    crop = np.rot90(crop, turns)
    return np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)


class FolderImages:
    """The training images of a folder (`rsdiff.data.folder.training_entries`), or the given `entries` of it; `bands` and
    `value_range` as in `open_scene`. `flag` is the flag for the resolution that error messages name.

    Raises:
      BadInput: the folder can't be read, or the resolution of its images is unknown.
    """

    def __init__(
        self,
        folder: str,
        split: str | None = None,
        gsd_m: float | None = None,
        bands: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        entries: list[Entry] | None = None,
        flag: str = '--config.data.gsd_m',
    ):
        self.entries = training_entries(folder, split) if entries is None else entries
        self.default_gsd_m, self.bands, self.value_range, self.flag = gsd_m, bands, value_range, flag
        # a raster file may store its own, which is known once it is opened
        missing = [
            e.file_name for e in self.entries if e.gsd_m is None and e.path.suffix.lower() not in RASTER_SUFFIXES
        ]
        if gsd_m is None and missing:
            raise BadInput(
                f'{folder}: {len(missing)} images have no gsd_m ({missing[0]}, …); set it in the manifest '
                f'or give one for all ({self.flag})'
            )

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, number: int) -> str:
        """The path of image `number`."""
        return str(self.entries[number].path)

    def open(self, number: int) -> tuple[Scene, float]:
        """See `Images`. The manifest's resolution takes precedence over the file's, and both over the default."""
        entry = self.entries[number]
        scene = open_scene(entry.path, self.bands, self.value_range)
        gsd_m = entry.gsd_m or scene.gsd_m or self.default_gsd_m
        if gsd_m is None:
            scene.__exit__()
            raise BadInput(f'{entry.path}: neither it nor a manifest has its gsd_m; give one for all ({self.flag})')
        return scene, gsd_m
