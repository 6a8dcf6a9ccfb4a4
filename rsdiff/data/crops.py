"""Random crops of numbered images: what image folders, prepared datasets and TFDS have in common as sources."""

import logging
import threading
from typing import Protocol

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry, training_entries
from rsdiff.data.images import box_downscale
from rsdiff.data.scenes import RASTER_SUFFIXES, Scene, open_scene


class Images(Protocol):
    """Numbered images that several threads may open in any order."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """Where image `number` lies."""
        ...

    def open(self, number: int) -> tuple[Scene, float]:
        """Image `number` and its metres a pixel. Raises BadInput where it can't be opened."""
        ...


class Crops:
    """A source of random crops, reduced by one of `reductions` that the image is large enough for, and turned.

    An image that can't be read, is smaller than a crop, or shows nothing but gaps is named once in the log, counted
    in `skipped`, and replaced by the next that can be used. It is tried again whenever its turn comes: what takes its
    place then depends on the seed and not on what was read before.
    """

    # in a row with nodata pixels, after which the image is passed over
    TRIES = 8

    def __init__(self, images: Images, reductions: tuple[int, ...]):
        self.images, self.reductions = images, reductions
        self.skipped: set[str] = set()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Where image `index` lies."""
        return self.images.name(index)

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray | np.float32]:
        """A crop of image `index`, or of the next one that can be used.

        Raises:
          BadInput: no image can be used.
        """
        reason = None
        for offset in range(len(self)):
            number = (index + offset) % len(self)
            try:
                scene, gsd_m = self.images.open(number)
                with scene:
                    return self._crop(number, scene, gsd_m, rng, size_px)
            except BadInput as error:
                self._skip(number, error)
                reason = error
        raise BadInput(f'none of {len(self)} images can be read at {size_px} px; the last: {reason}')

    def _crop(self, number, scene, gsd_m, rng, size_px):
        fitting = [factor for factor in self.reductions if factor * size_px <= min(scene.height, scene.width)]
        if not fitting:
            raise BadInput(f'{self.name(number)}: {scene.width}×{scene.height} is smaller than the {size_px} px crop')
        factor = int(rng.choice(fitting))
        side = factor * size_px
        for _ in range(self.TRIES):
            y, x = (int(rng.integers(n - side + 1)) for n in (scene.height, scene.width))
            box = Box(y, x, y + side, x + side)
            if not scene.nodata(box):
                break
        else:
            raise BadInput(f'{self.name(number)}: {self.TRIES} crops in a row have pixels without data')
        crop = scene.read(box) if factor == 1 else box_downscale(scene.read(box), factor)
        # The eight symmetries of the square: nadir imagery has no preferred direction.
        crop = np.rot90(crop, rng.integers(4))
        crop = crop[:, ::-1] if rng.integers(2) else crop
        return {'image': np.ascontiguousarray(crop), 'gsd_m': np.float32(factor * gsd_m)}

    def _skip(self, number: int, error: BadInput) -> None:
        name = self.name(number)
        with self.lock:
            if name in self.skipped:
                return
            self.skipped.add(name)
        logging.warning('skipped: %s', error)


class FolderImages:
    """The images of a folder to train on (`rsdiff.data.folder.training_entries`), or those `entries` of it; `bands` and
    `value_range` as `open_scene` takes them. `flag` is the one that messages advise to give the resolution by.

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
        # a raster file may know its own, which shows when it is opened
        missing = [
            e.file_name for e in self.entries if e.gsd_m is None and e.path.suffix.lower() not in RASTER_SUFFIXES
        ]
        if gsd_m is None and missing:
            raise BadInput(
                f'{folder}: {len(missing)} images have no gsd_m ({missing[0]}, …); say it in the manifest '
                f'or give one for all ({self.flag})'
            )

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, number: int) -> str:
        """The path of image `number`."""
        return str(self.entries[number].path)

    def open(self, number: int) -> tuple[Scene, float]:
        """See `Images`. The manifest's resolution goes before the file's, and both before the folder's default."""
        entry = self.entries[number]
        scene = open_scene(entry.path, self.bands, self.value_range)
        gsd_m = entry.gsd_m or scene.gsd_m or self.default_gsd_m
        if gsd_m is None:
            scene.__exit__()
            raise BadInput(f'{entry.path}: neither it nor a manifest says its gsd_m; give one for all ({self.flag})')
        return scene, gsd_m
