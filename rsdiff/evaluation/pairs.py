"""Which image is judged by which: truths with their conditions, and generated images by the truth they should show.

A truth is cut at its far edges to whole condition pixels, so that everything of a pair has one size.
"""

import dataclasses
import logging
from pathlib import Path, PurePosixPath
from typing import Callable, Sequence

import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath
from rsdiff.data.folder import Entry, file_inside, read_folder
from rsdiff.data.images import bicubic, image_size, read_image

SCALE = 4


@dataclasses.dataclass(frozen=True)
class Pair:
    """A truth and the image that a generator is given instead, `SCALE` times coarser. `bands` and `value_range` say how
    raster files become RGB (`rsdiff.data.scenes.open_scene`)."""

    truth: Entry
    condition: AnyPath
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None

    def read_truth(self) -> np.ndarray:
        """uint8 (h, w, 3), multiples of `SCALE`."""
        return cut(read_image(self.truth.path, self.bands, self.value_range))

    def size(self) -> tuple[int, int]:
        """Height and width of the cut truth, of which no pixel is decoded.

        Raises:
          BadInput: it can't be read, or nothing is left.
        """
        return cut_size(self.truth.path)

    def read_condition(self) -> np.ndarray:
        """uint8 (h / SCALE, w / SCALE, 3).

        Raises:
          BadInput: it has another size.
        """
        condition, size = read_image(self.condition), self.size()
        if tuple(SCALE * side for side in condition.shape[:2]) != size:
            raise BadInput(
                f'{self.condition}: {condition.shape[1]}×{condition.shape[0]} px; {self.truth.path} has '
                f'{size[1]}×{size[0]}, and the condition must be {SCALE} times smaller'
            )
        return condition


def cut(image: np.ndarray) -> np.ndarray:
    """`image` without the remainder of `SCALE` at its far edges."""
    height, width = (side // SCALE * SCALE for side in image.shape[:2])
    return image[:height, :width]


def cut_size(path: AnyPath) -> tuple[int, int]:
    """Height and width that `cut` leaves of the image at `path`, whose pixels are not decoded.

    Raises:
      BadInput: it can't be read, or nothing is left.
    """
    whole = image_size(path)
    height, width = (side // SCALE * SCALE for side in whole)
    if not height or not width:
        raise BadInput(f'{path}: {whole[1]}×{whole[0]} px; at least {SCALE} a side are needed')
    return height, width


def sensor_condition(folder: AnyPath, truth: Entry) -> AnyPath | None:
    """The real low-resolution image that the manifest has for `truth`, its `low_res_file_name`, if it has one.

    Raises:
      BadInput: that is not a file of the folder.
    """
    name = truth.extra.get('low_res_file_name')
    if name is None:
        return None
    if not isinstance(name, str):
        raise BadInput(f'{folder}: low_res_file_name of {truth.file_name} is {name!r}; it must be a file name')
    return file_inside(folder, name, f'{folder}: {truth.file_name}')


def match(folder: Path, truths: Sequence[Entry]) -> list[Entry]:
    """For each truth, the image in `folder` that was made for it.

    An image is for the truth that its manifest names as `source`, else for the one of its own name; suffixes do not count.
    Of several variants the first is taken.

    Raises:
      BadInput: a truth has none; the first few are named.
    """
    made = {}
    for entry in read_folder(folder):
        made.setdefault(_stem(str(entry.extra.get('source', entry.file_name))), entry)
    missing = [truth.file_name for truth in truths if _stem(truth.file_name) not in made]
    if missing:
        raise BadInput(
            f'{folder}: {len(missing)} of {len(truths)} reference images have no partner by name: '
            f'{", ".join(missing[:5])}{", …" if len(missing) > 5 else ""}; complete it, or compare the two '
            'as sets with --unpaired'
        )
    if len(made) > len(truths):
        logging.warning('%s: %d images have no reference, and are left out', folder, len(made) - len(truths))
    return [made[_stem(truth.file_name)] for truth in truths]


def read_made(entry: Entry, pair: Pair) -> np.ndarray:
    """The generated image, uint8, of the size of the pair's truth; the uncut truth's size is cut down to it.

    Raises:
      BadInput: it has another size.
    """
    image, size = cut(read_image(entry.path, pair.bands, pair.value_range)), pair.size()
    if image.shape[:2] != size:
        raise BadInput(f'{entry.path}: {image.shape[1]}×{image.shape[0]} px; {pair.truth.path} has {size[1]}×{size[0]}')
    return image


def enlarged(pair: Pair) -> np.ndarray:
    """The condition by Pillow's bicubic interpolation, uint8 (h, w, 3)."""
    condition = pair.read_condition()
    return bicubic(condition, *(SCALE * side for side in condition.shape[:2]))


def repeated(pair: Pair) -> np.ndarray:
    """The condition with every pixel repeated, uint8 (h, w, 3)."""
    return pair.read_condition().repeat(SCALE, 0).repeat(SCALE, 1)


# Reads the image of one row of the table for a pair.
Reader = Callable[[Pair], np.ndarray]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(''))
