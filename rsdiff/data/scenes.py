"""The one reader of imagery: GeoTIFF, JPEG 2000 and 16-bit PNG by rasterio (the `geo` extra), other formats by Pillow.

Rasters are read window by window: a window reads only the blocks it touches. JPEG, PNG and similar formats do not
support partial reads, so such an image is decoded in full, once while its scene is open. A scene belongs to one thread;
to read the same file in several threads, open it in each.
"""

import math
from typing import IO, Protocol, cast

import numpy as np
from etils import epath
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.orientation import TURNS, Turned
from rsdiff.data.pictures import BROKEN, Picture
from rsdiff.data.rasters import Raster, import_rasterio

# suffixes of files that may store their own resolution
RASTER_SUFFIXES = '.tif', '.tiff', '.jp2'


class Scene(Protocol):
    """An open image: `with open_scene(path) as scene`."""

    height: int
    width: int
    gsd_m: float | None  # metres per pixel, if the file has it
    georeference: dict | None  # {'crs': WKT, 'transform': [a, b, c, d, e, f]}: x = a column + b row + c, y = d … + f

    def read(self, box: Box) -> np.ndarray:
        """The pixels of `box`, uint8 (height, width, 3). Raises BadInput if they can't be read."""
        ...

    def valid(self, box: Box) -> np.ndarray:
        """The mask of valid pixels in `box`: bool (height, width), read-only. For rasters it is rasterio's dataset mask
        (nodata of all bands, internal and `.msk` masks, alpha), for other images their alpha. In addition, a pixel that is
        not finite in a selected band is invalid. Raises BadInput if it can't be read."""
        ...

    def nodata(self, box: Box) -> float:
        """The share of pixels in `box` that are not valid."""
        ...

    def __enter__(self) -> 'Scene': ...

    def __exit__(self, *_) -> None: ...


def open_scene(
    path: epath.PathLike,
    bands: tuple[int, ...] | None = None,
    value_range: tuple[float, float] | None = None,
    file: IO[bytes] | None = None,
    palette: bool = True,
) -> Scene:
    """Opens the image at `path`, upright and as RGB. The format is recognised by the first bytes, not by the name.

    Args:
      path: a local path, or one of a bucket (`gs://…`) that etils' epath can open.
      bands: the bands of a raster file for red, green and blue, counted from 1; by default those marked as such, else the
        first three that are not alpha, or the first one three times. Sentinel-2 in its own order: (4, 3, 2).
      value_range: the values that become 0 and 255, required for files with more than 8 bits. 8-bit files ignore it.
      file: an opened file, closed with the scene, if there is no path to open; `path` is then only its name.
      palette: whether the values of a file with a palette become its colours. If not, they stay as they are, the same in
        all three channels: the values of a mask are class indices.
    Raises:
      BadInput: it can't be read, lacks the bands, has more than 8 bits and no `value_range`, or needs the `geo` extra.
    """
    if value_range is not None and not -math.inf < value_range[0] < value_range[1] < math.inf:
        raise BadInput(
            f'value_range is {tuple(value_range)}; it must be two finite numbers, and the first value must be the '
            'smaller one'
        )
    try:
        opened = file or epath.Path(path).open('rb')
        start = opened.read(26)
        opened.seek(0)
    except FileNotFoundError:
        raise BadInput(f'{path}: no such image') from None
    except OSError as error:
        raise BadInput(f'{path}: not a readable image ({error.strerror or error})') from None
    driver = _raster_driver(start)
    rasterio = import_rasterio() if driver else None
    if rasterio and driver:
        with opened:
            orientation = _tag_of_orientation(opened, driver)
            data = opened.read() if file is not None or driver == 'PNG' else None
        scene = Raster(rasterio, path, driver, bands, value_range, data, palette)
        # the georeference of a raster refers to its rows and columns as stored
        return cast(Scene, Turned(scene, orientation) if orientation in TURNS and not scene.has_place else scene)
    if driver == 'JP2OpenJPEG' or driver == 'GTiff' and bands:
        opened.close()
        raise BadInput(f"{path}: reading a {driver} file needs rasterio; pip install 'rsdiff-jax[geo]'")
    picture = Picture(path, opened, palette)
    return cast(Scene, Turned(picture, picture.orientation) if picture.orientation in TURNS else picture)


def _raster_driver(start: bytes) -> str | None:
    """GDAL's name of the format of a file that rasterio reads better than Pillow, by its first 26 bytes."""
    if start[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
        return 'GTiff'
    if start[:12] == b'\0\0\0\x0cjP  \r\n\x87\n' or start[:4] == b'\xff\x4f\xff\x51':
        return 'JP2OpenJPEG'
    # the 25th byte of a PNG is its number of bits per channel
    return 'PNG' if start[:8] == b'\x89PNG\r\n\x1a\n' and start[24:25] == b'\x10' else None


def _tag_of_orientation(file: IO[bytes], driver: str) -> int:
    """The EXIF orientation, which GDAL ignores; 1 if there is none. Leaves the file at its start."""
    try:
        if driver == 'GTiff':
            start = file.read(16)
            tags = ImageFileDirectory_v2(start if b'+' in start[:4] else start[:8])
            file.seek(tags.next)
            tags.load(file)
            return tags.get(ExifTags.Base.Orientation, 1)
        return Image.Image.getexif(Image.open(file)).get(ExifTags.Base.Orientation, 1) if driver == 'PNG' else 1
    except BROKEN:
        return 1
    finally:
        file.seek(0)
