"""Images that Pillow reads and decodes in full: JPEG, PNG, WebP, BMP, and TIFF if rasterio is not installed."""

import contextlib
import functools
import logging
import struct
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_local
from rsdiff.data import places
from rsdiff.data.rasters import import_rasterio

# The images are large on purpose; Pillow's guard against decompression bombs is raised, not removed.
Image.MAX_IMAGE_PIXELS = 1 << 30
# Pillow refuses images beyond twice that limit
MOST_PIXELS = 1 << 31
# what Pillow raises for broken files, depending on the format
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    NotImplementedError,
    Image.DecompressionBombError,
)


class Picture:
    """An image file that Pillow reads, as a `rsdiff.data.scenes.Scene`. The pixels are decoded when first asked for.

    Args:
      path: of the file, for messages and for the files beside it.
      file: the opened file, closed on exit.
      palette: see `rsdiff.data.scenes.open_scene`.
    Raises:
      BadInput: it is not an image, has more than 8 bits per channel, or is a TIFF that only rasterio reads correctly.
    """

    # pixel scale, control points, transformation, keys, nodata
    RASTER_TAGS = 33550, 33922, 34264, 34735, 42113

    def __init__(self, path, file: IO[bytes], palette: bool = True):
        self.path, self.file, self.pixels, self.opaque, self.palette = path, file, None, None, palette
        try:
            with self._reading():
                self.image = Image.open(file)
                self._refuse_what_would_be_read_wrongly()
        except BaseException:
            file.close()
            raise
        self.width, self.height = self.image.size

    def __enter__(self) -> 'Picture':
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def read(self, box: Box) -> np.ndarray:
        """See `Scene`; grey and palette images become RGB."""
        self._decode()
        return box.crop(self.pixels)

    def valid(self, box: Box) -> np.ndarray:
        """See `Scene`: the pixels that are not fully transparent."""
        if self.image.has_transparency_data:
            self._decode()
            if self.opaque is not None:
                return box.crop(self.opaque)
        return np.broadcast_to(np.True_, (box.y1 - box.y0, box.x1 - box.x0))

    def nodata(self, box: Box) -> float:
        """See `Scene`."""
        return float(1 - self.valid(box).mean()) if self.image.has_transparency_data else 0.0

    @functools.cached_property
    def orientation(self) -> int:
        """The EXIF orientation; 1 is upright. Pillow itself rotates a TIFF."""
        return 1 if self.image.format == 'TIFF' else self._orientation()

    @functools.cached_property
    def gsd_m(self) -> float | None:
        """See `Scene`: from the files beside it."""
        place, _ = self._place
        return place and places.pixel_side_m(*place, self.height, self.width)

    @functools.cached_property
    def georeference(self) -> dict | None:
        """See `Scene`: from a world file with a CRS in GDAL's `.aux.xml`. Any other georeference is logged."""
        place, lost = self._place
        if lost:
            logging.warning('%s: its georeference is not kept: %s', self.path, lost)
        return place and places.georeference(place)

    @functools.cached_property
    def _place(self) -> tuple[places.Place | None, str | None]:
        beside = places.files_beside(self.path) if is_local(self.path) else []
        if not beside:
            return None, None
        rasterio = import_rasterio()
        if rasterio is None:
            return None, f"reading {beside[0]} needs rasterio; pip install 'rsdiff-jax[geo]'"
        # GDAL's name of the format, which Pillow uses too, except for JPEGs with several images
        driver = 'JPEG' if self.image.format == 'MPO' else self.image.format
        try:
            with rasterio.open(str(self.path), driver=driver) as dataset:
                return places.place_of(dataset)
        except (rasterio.errors.RasterioError, ValueError):
            return None, f'{beside[0]} can not be read'

    def _decode(self) -> None:
        if self.pixels is not None:
            return
        with self._reading():
            if self.image.mode == 'P' and not self.palette:
                self.pixels = np.asarray(self.image)[..., None].repeat(3, axis=-1)
            elif self.image.has_transparency_data:
                pixels = np.asarray(self.image.convert('RGBA'))
                self.opaque = pixels[..., 3] > 0
                if self.opaque.all():
                    self.opaque = None
                self.pixels = np.ascontiguousarray(pixels[..., :3])
            else:
                self.pixels = np.asarray(self.image.convert('RGB'))
        if self.image.format == 'PNG' and self._orientation() != self.orientation:
            raise BadInput(f'{self.path}: its EXIF orientation is stored after its pixels; save it again')

    def _orientation(self) -> int:
        try:
            # not Pillow's getexif for PNG, which decodes the pixels
            return Image.Image.getexif(self.image).get(ExifTags.Base.Orientation, 1)
        except BROKEN:
            # the EXIF data are broken, but the image may be intact
            return 1

    def _refuse_what_would_be_read_wrongly(self) -> None:
        decoders = str([tile[3] for tile in self.image.tile])
        if self.image.mode.startswith(('I', 'F')) or ';16' in decoders:
            raise BadInput(
                f'{self.path}: more than 8 bits ({self.image.mode} pixels); convert it to 8-bit RGB, or pip '
                "install 'rsdiff-jax[geo]' and give a value_range"
            )
        tags = getattr(self.image, 'tag_v2', {})
        if (
            any(tag in tags for tag in self.RASTER_TAGS)
            or self.image.format == 'TIFF'
            and getattr(self.image, 'n_frames', 1) > 1
        ):
            raise BadInput(f"{self.path}: reading a GeoTIFF needs rasterio; pip install 'rsdiff-jax[geo]'")

    @contextlib.contextmanager
    def _reading(self):
        try:
            yield
        except BROKEN as error:
            raise BadInput(f'{self.path}: not a readable image ({error})') from None
