"""Fields: what a network takes beside an image and its resolution, read from the files and numbers of the image's row.

A crop cuts the same ground from the image and from every file of its row. A file may be a whole number of times finer or
coarser than the image; a crop then begins where a pixel of the coarsest file begins. What it cuts is reduced to the scale that
the network takes, images by the mean, masks by one pixel of each block: a mean of class numbers is another class.

A field that the network needs is uint8 in a batch. One that it can do without is float32 in [-1, 1], NaN in the rows that
lack it, and is no part of the batch where every row lacks it. A number is float32, NaN where it is unknown.
"""

import contextlib
import dataclasses
from fractions import Fraction
from typing import Sequence

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry, as_number, file_key
from rsdiff.data.images import box_downscale, to_float
from rsdiff.data.scenes import Scene, open_scene

OF_EVERY_CROP = 'image', 'gsd_m'


@dataclasses.dataclass(frozen=True)
class Field:
    """A number, or with `channels` (1 or 3) an image of the crop's ground whose side is 1/`scale` of the crop's. `needed`: the
    network can't do without."""

    name: str
    channels: int = 0
    scale: int = 1
    needed: bool = True

    @property
    def is_mask(self) -> bool:
        """Whether its values are numbers of classes, which have no mean."""
        return self.name == 'mask' or self.name.endswith('_mask')

    @property
    def key(self) -> str:
        """What rows call it."""
        return file_key(self.name) if self.channels else self.name

    @property
    def dtype(self) -> type:
        """Of its array in a batch."""
        return np.uint8 if self.channels and self.needed else np.float32

    def shape(self, size_px: int) -> tuple[int, ...]:
        """Of its array in a crop of `size_px`, a multiple of `scale`."""
        return (size_px // self.scale, size_px // self.scale, self.channels) if self.channels else ()

    def is_of(self, entry: Entry) -> bool:
        """Whether the row has it, a file or a number."""
        return self.name in (entry.files if self.channels else entry.numbers)


IMAGE = Field('image', 3)


class Layer:
    """The opened file of a field, by the pixels of an image that shows the same ground.

    Args:
      size: height and width of that image.
    Raises:
      BadInput: the file's size is no whole multiple of the image's, nor the other way round; a remainder at the far edges of
        the image, too small for one more pixel of the file, is left out.
    """

    def __init__(self, name: str, field: Field, scene: Scene, size: tuple[int, int]):
        self.name, self.field, self.scene = name, field, scene
        own = scene.height, scene.width
        larger, smaller = max(own, size), min(own, size)
        times = larger[0] // max(smaller[0], 1)
        # pixels of the file a pixel of the image
        self.ratio = Fraction(times) if own >= size else Fraction(1, max(times, 1))
        if own != tuple(int(side * self.ratio) for side in size):
            raise BadInput(
                f'{name}: {own[1]}×{own[0]} px; its image has {size[1]}×{size[0]}, which is no whole number of times as many'
            )
        self.height, self.width = (int(side / self.ratio) for side in own)

    def reduction(self, factor: int) -> Fraction:
        """How many of its pixels become one where those of the image are reduced by `factor`; below 1 it is too coarse."""
        return factor * self.field.scale * self.ratio

    def nodata(self, box: Box) -> float:
        """The share of `box`, in pixels of the image, that holds no measurement; in a mask every value is one."""
        return 0.0 if self.field.is_mask else self.scene.nodata(self._own(box))

    def read(self, box: Box, factor: int) -> np.ndarray:
        """`box`, in pixels of the image, of a side that is a multiple of `factor` and the scale: uint8 (h, w, channels).

        Raises:
          BadInput: it can't be read, or has colours where one channel is wanted.
        """
        pixels, block = self.scene.read(self._own(box)), int(self.reduction(factor))
        if self.field.channels == 1:
            if (pixels != pixels[..., :1]).any():
                raise BadInput(f'{self.name}: it has colours; the field {self.field.name} is of one channel')
            pixels = pixels[..., :1]
        if block == 1:
            return pixels
        return pixels[block // 2 :: block, block // 2 :: block] if self.field.is_mask else box_downscale(pixels, block)

    def _own(self, box: Box) -> Box:
        return Box(*(int(edge * self.ratio) for edge in box))


class Fields:
    """Those of the fields `wanted` that some of `entries` have. `bands` and `value_range` are as `open_scene` takes them, of
    all files but masks.

    Args:
      where: the folder of the entries, for messages.
    Raises:
      BadInput: a field that is needed is missing in a row, a number is none, or a field has other channels than files have.
    """

    def __init__(
        self,
        wanted: Sequence[Field] = (),
        entries: Sequence[Entry] = (),
        where: str = '',
        bands: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        self.entries, self.bands, self.value_range = entries, bands, value_range
        self.present = tuple(field for field in wanted if _is_present(field, entries, where))

    def open(self, number: int, scene: Scene, opened: contextlib.ExitStack) -> list[Layer]:
        """The files of entry `number`, whose image is `scene`, open for as long as `opened` is.

        Raises:
          BadInput: one can't be opened, or does not fit the image.
        """
        layers, files = [], self.entries[number].files if self.present else {}
        for field in self.present:
            if not field.channels or field.name not in files:
                continue
            path = files[field.name]
            options = (None, None) if field.is_mask else (self.bands, self.value_range)
            own = opened.enter_context(open_scene(path, *options, palette=not field.is_mask))
            layers.append(Layer(str(path), field, own, (scene.height, scene.width)))
        return layers

    def complete(self, number: int, cut: dict[str, np.ndarray], size_px: int) -> dict[str, np.ndarray]:
        """The fields of entry `number` as a batch has them: what is `cut` from its files, its numbers, and NaN."""
        found = {}
        for field in self.present:
            if not field.is_of(self.entries[number]):
                found[field.name] = np.full(field.shape(size_px), np.nan, np.float32)
            elif not field.channels:
                found[field.name] = np.asarray(self.entries[number].numbers[field.name], np.float32)
            else:
                found[field.name] = cut[field.name] if field.needed else to_float(cut[field.name])
        return found


def check_none_needed(wanted: Sequence[Field], where: str) -> None:
    """Raises BadInput where a field is needed: of data that have images and gsd_m alone."""
    if needed := [field for field in wanted if field.needed]:
        names = ', '.join(field.name for field in needed)
        raise BadInput(
            f'{where}: has image and gsd_m alone, and the network needs {names}; train on a folder with '
            f'{", ".join(field.key for field in needed)} in its manifest'
        )


def _is_present(field: Field, entries: Sequence[Entry], where: str) -> bool:
    having = [entry for entry in entries if field.is_of(entry)]
    lacking = [entry for entry in entries if not field.is_of(entry)]
    if field.name in OF_EVERY_CROP:
        raise BadInput(f'{field.name} is of every crop; a field needs another name')
    if not field.channels:
        for entry in lacking:
            value = entry.extra.get(field.name)
            if value is not None and as_number(value) is None:
                raise BadInput(
                    f'{where}: {field.name} of {entry.file_name} is {str(value)[:40]!r}; it must be a number'
                )
    if having and field.channels not in (0, 1, 3):
        raise BadInput(
            f'{where}: the field {field.name} is of {field.channels} channels; {field.key} is read as 1 or 3'
        )
    if field.needed and lacking:
        example = f'{having[0].file_name} has one' if having else 'no row has one'
        raise BadInput(
            f'{where}: the manifest has no {field.key} of {len(lacking)} of {len(entries)} images '
            f'({lacking[0].file_name}, …), and the network needs {field.name}; {example}'
        )
    return bool(having)
