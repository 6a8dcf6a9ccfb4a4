"""A web page to pan and zoom a mosaic, opened from disk: one pyramid of PNG tiles per layer, shown by Leaflet.

All layers show the same area. Zoom 0 is the condition, halved until it fits in one tile; zoom z has 2^z times as many pixels
per side. With c halvings, the condition has its native resolution at zoom c, and the result of stage s at zoom c + 2s:

    metres per pixel at zoom z = gsd_m 2^(c - z)                                                                      (1)

A tile of a lower zoom level is the 2×2 mean of the four tiles beneath it, over opaque pixels only.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from rsdiff.base.boxes import Box
from rsdiff.base.files import write_text_atomically
from rsdiff.data.images import box_downscale, write_image
from rsdiff.sampling.mosaic.void import with_alpha

TILE_PX = 256
# More files than this are a burden to most file systems, and slow to copy.
LARGEST_VIEWER = 200_000
PAGE, LEAFLET = (Path(__file__).parent / name for name in ('viewer.html', 'leaflet'))


class Layer(NamedTuple):
    """An image in the viewer: uint8, with a (height, width, 3) `shape` and slices, and 2^`finer` times as many pixels per
    side as the condition."""

    name: str
    image: Any
    gsd_m: float
    finer: int
    valid: Callable[[Box], np.ndarray] | None = None  # box → mask of pixels to show; None: all


def halvings(condition_shape: Sequence[int]) -> int:
    """c of equation 1."""
    return ((max(condition_shape[:2]) - 1) // TILE_PX).bit_length()


def count_tiles(condition_shape: Sequence[int], finer: int) -> int:
    """The number of files of a layer."""
    sides = [side << finer for side in condition_shape[:2]]
    return sum(
        int(np.prod([-(-side // (TILE_PX << level)) for side in sides]))
        for level in range(halvings(condition_shape) + finer + 1)
    )


class Pyramid:
    """The tiles folder/<zoom>/<y>/<x>.png of an image whose native resolution is at `zoom`. Tiles are transparent beyond the
    image's border, since Leaflet shows all tiles at the same size, and where pixels are not `valid`.

    `files` lists the tiles that were written or found intact."""

    def __init__(
        self, folder: Path, image: Any, zoom: int, bar: tqdm, valid: Callable[[Box], np.ndarray] | None = None
    ):
        self.folder, self.image, self.zoom, self.bar, self.valid = folder, image, zoom, bar, valid
        self.files: list[Path] = []

    def write(self, zoom: int = 0, y: int = 0, x: int = 0) -> np.ndarray:
        """Writes a tile and all tiles beneath it, except those already intact. Returns the tile's pixels that lie in the
        image, RGBA."""
        path = self.folder / str(zoom) / str(y) / f'{x}.png'
        rows, columns = (range(TILE_PX * n, min(TILE_PX * (n + 1), side)) for n, side in zip((y, x), self._sides(zoom)))
        finer = None
        if zoom < self.zoom:
            down, across = self._beneath(zoom, y, x, zoom + 1)
            finer = np.concatenate([np.concatenate([self.write(zoom + 1, v, u) for u in across], 1) for v in down])
        else:
            self.bar.update()
        self.files.append(path)
        if (there := read_tile(path)) is not None:
            return there[: len(rows), : len(columns)]
        pixels = self._own(rows, columns) if finer is None else halved(finer)
        if pixels.shape[:2] == (TILE_PX, TILE_PX) and pixels[..., 3].all():
            write_image(path, pixels[..., :3])
        else:
            whole = np.zeros((TILE_PX, TILE_PX, 4), np.uint8)
            whole[: len(rows), : len(columns)] = pixels
            write_image(path, whole)
        return pixels

    def _own(self, rows: range, columns: range) -> np.ndarray:
        pixels = np.asarray(self.image[rows.start : rows.stop, columns.start : columns.stop])
        valid = np.ones(pixels.shape[:2], bool)
        if self.valid is not None:
            valid = self.valid(Box(rows.start, columns.start, rows.stop, columns.stop))
        return with_alpha(pixels, valid)

    def _sides(self, zoom: int) -> list[int]:
        """Height and width of the image at `zoom`."""
        return [-(-side // 2 ** (self.zoom - zoom)) for side in self.image.shape[:2]]

    def _beneath(self, zoom: int, y: int, x: int, finer: int) -> list[range]:
        """Rows and columns of the tiles at zoom `finer` that cover the same area as this one."""
        times = 2 ** (finer - zoom)
        return [
            range(times * n, min(times * (n + 1), -(-side // TILE_PX))) for n, side in zip((y, x), self._sides(finer))
        ]


def read_tile(path: Path) -> np.ndarray | None:
    """A tile's pixels, RGBA; None if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('RGBA'))
    except (OSError, SyntaxError, ValueError):
        return None
    return pixels if pixels.shape[:2] == (TILE_PX, TILE_PX) else None


def halved(image: np.ndarray) -> np.ndarray:
    """Means of the opaque pixels in each 2×2 block, RGBA, transparent where there are none. At the end of an odd side, blocks
    are smaller."""
    image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode='edge')
    if image[..., 3].all():
        return box_downscale(image, 2)
    blocks = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 4).astype(np.float64)
    opaque = blocks[..., 3:] > 0
    count = opaque.sum((1, 3))
    means = np.rint((blocks[..., :3] * opaque).sum((1, 3)) / np.maximum(count, 1))
    return with_alpha(means, count[..., 0] > 0)


def write_viewer(
    folder: Path,
    title: str,
    layers: list[Layer],
    condition_shape: Sequence[int],
    gsd_m: float,
    georeference: dict[str, Any],
    show: bool = True,
) -> list[Path]:
    """Writes folder/tiles and then folder/index.html, which needs no files outside this folder.

    Returns all files of the viewer.

    Args:
      layers: from bottom to top; the last one is the finest.
      gsd_m: metres per pixel of the condition.
      georeference: attributes of the last layer; with `crs` and `transform`, the page shows coordinates.
    """
    coarsest = halvings(condition_shape)
    tiles = sum(int(np.prod([-(-side // TILE_PX) for side in layer.image.shape[:2]])) for layer in layers)
    with tqdm(total=tiles, unit='tile', dynamic_ncols=True, disable=not show, desc=folder.name) as bar:
        written = []
        for layer in layers:
            pyramid = Pyramid(folder / 'tiles' / layer.name, layer.image, coarsest + layer.finer, bar, layer.valid)
            pyramid.write()
            written += pyramid.files
    shutil.copytree(LEAFLET, folder / LEAFLET.name, dirs_exist_ok=True)
    known = {
        'title': title,
        'gsd_m': gsd_m,
        'shape': condition_shape[:2],
        'coarsest': coarsest,
        'tile_px': TILE_PX,
        'layers': [{'name': layer.name, 'gsd_m': layer.gsd_m, 'zoom': coarsest + layer.finer} for layer in layers],
        'crs': georeference.get('crs'),
        'transform': georeference.get('transform'),
    }
    # inline, since a page opened from disk may not read files; '<' is escaped so that no text can end the script
    text = json.dumps(known).replace('<', '\\u003c')
    write_text_atomically(
        folder / 'index.html', PAGE.read_text(encoding='utf-8').replace('/* what is shown */ null', text)
    )
    parts = [path for path in (folder / LEAFLET.name).rglob('*') if path.is_file()]
    return [*written, *parts, folder / 'index.html']
