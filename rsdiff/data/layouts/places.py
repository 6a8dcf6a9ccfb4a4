"""What the readers of published datasets find: places, each with frames of one sensor and sharper images of another."""

import dataclasses
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from rsdiff.data.images import read_masked


class Picture(NamedTuple):
    """Pixels, uint8 (h, w, 3), and the mask of those that hold a measurement, bool (h, w)."""

    pixels: np.ndarray
    valid: np.ndarray


class Frame(NamedTuple):
    """A low-resolution image of a place. `cloud`: the share of cloud, 0 where unknown. `gsd_m`: metres per pixel, or None."""

    picture: Picture
    cloud: float = 0.0
    gsd_m: float | None = None


@dataclasses.dataclass(frozen=True)
class Sharp:
    """A high-resolution image of a place.

    Attributes:
      name: of its file, without suffix; unique in the dataset.
      read: reads it. Raises BadInput.
      cost: by name of a frame, how much worse a reference it is than others that are as clear: days between them, say; 0
        for names that are absent.
      gsd_m: metres per pixel, or None.
      known: numbers and texts for the manifest.
    """

    name: str
    read: Callable[[], Picture]
    cost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    gsd_m: float | None = None
    split: str | None = None
    label: str | None = None
    captions: tuple[str, ...] = ()
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Place:
    """The images of one ground: frames by name, in the dataset's order, which `read_frames` reads. Raises BadInput."""

    name: str
    read_frames: Callable[[], dict[str, Frame]]
    images: tuple[Sharp, ...]
    files: Sequence[Path]  # all that are read


class Incomplete(NamedTuple):
    """A place that lacks something, and what."""

    name: str
    problem: str


class Colours(NamedTuple):
    """How raster files become RGB (`rsdiff.data.scenes.open_scene`); None: as the layout has it."""

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None

    def else_of(self, default: 'Colours') -> 'Colours':
        """These, and `default` where they are None."""
        return Colours(self.bands or default.bands, self.value_range or default.value_range)


def read_picture(path: Path, colours: Colours = Colours()) -> Picture:
    """The image at `path`. Raises BadInput (`rsdiff.data.images.read_masked`)."""
    return Picture(*read_masked(path, *colours))


def without_black(picture: Picture) -> Picture:
    """The picture with its pixels that are 0 in all channels marked as not valid, for datasets that mark them so."""
    return Picture(picture.pixels, picture.valid & picture.pixels.any(-1))
