"""Image files to arrays and back, and the one convention between them.

Outside: uint8 RGB, (height, width, 3). Inside: float32 in [-1, 1].
"""

import contextlib
import io
from pathlib import Path
from typing import IO

import numpy as np
from etils import epath
from PIL import Image

from rsdiff.data.boxes import Box
from rsdiff.errors import BadInput
from rsdiff.files import write_bytes_atomically

# The images are large on purpose; Pillow's guard against decompression bombs is raised, not removed.
Image.MAX_IMAGE_PIXELS = 1 << 30


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] → float32 in [-1, 1]."""
    return np.asarray(image, np.float32) / 127.5 - 1.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float in [-1, 1] (clipped) → uint8 in [0, 255]; the inverse of `to_float`.

    Raises:
      FloatingPointError: a value is NaN or infinite, which no pixel can show.
    """
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise FloatingPointError(f'{np.count_nonzero(~np.isfinite(values))} of {values.size} values of an image are NaN or infinite; '
                                 'check the weights, and the gsd_m that the network is given')
    return np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8)


class Picture:
    """An image file that Pillow reads, as a scene (`rsdiff.data.scenes`). The pixels are decoded when first asked for.

    Args:
      path: local, or one that etils' epath can open.
      file: the opened file, where there is no path; `path` is then only its name in messages.
    Raises:
      BadInput: the file is missing, no image, or has more than 8 bits a channel.
    """

    GEOTIFF_TAGS = 33550, 34264, 34735  # pixel scale, transformation, keys
    gsd_m = None
    georeference = None

    def __init__(self, path, file: IO[bytes] | None = None):
        self.path, self.pixels, self.alpha, self.file = path, None, None, None
        with self._reading():
            self.file = file or epath.Path(path).open('rb')
            try:
                self.image = Image.open(self.file)
                if self.image.mode.startswith(('I', 'F')):
                    raise BadInput(f'{path}: {self.image.mode} pixels, more than 8 bits; convert it to 8-bit RGB first')
            except BaseException:
                self.file.close()
                raise
        self.width, self.height = self.image.size

    def __enter__(self) -> 'Picture':
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def read(self, box: Box | None = None) -> np.ndarray:
        """The pixels of `box`, or all: uint8 (height, width, 3); grey and palette images become RGB, alpha is dropped.

        Raises:
          BadInput: the file is truncated or broken.
        """
        if self.pixels is None:
            with self._reading():
                self.pixels = np.asarray(self.image.convert('RGB'))
        return self.pixels if box is None else box.crop(self.pixels)

    def valid(self, box: Box) -> np.ndarray:
        """Which pixels of `box` hold a measurement, bool (height, width): those that are not fully transparent.

        Raises:
          BadInput: the file is truncated or broken.
        """
        if 'A' not in self.image.getbands() and 'transparency' not in self.image.info:
            return np.ones((box.y1 - box.y0, box.x1 - box.x0), bool)
        if self.alpha is None:
            with self._reading():
                self.alpha = np.asarray(self.image.convert('RGBA'))[..., 3]
        return box.crop(self.alpha) > 0

    def nodata(self, box: Box) -> float:
        """The share of pixels in `box` that hold no measurement."""
        return float(1 - self.valid(box).mean())

    @property
    def is_georeferenced(self) -> bool:
        """Whether it is a TIFF that says where on Earth it lies."""
        return any(tag in getattr(self.image, 'tag_v2', {}) for tag in self.GEOTIFF_TAGS)

    @contextlib.contextmanager
    def _reading(self):
        try:
            yield
        except FileNotFoundError:
            raise BadInput(f'{self.path}: no such image') from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadInput(f'{self.path}: not a readable image ({error})') from None


def read_image(path: Path | str) -> np.ndarray:
    """The image at `path` as uint8 (height, width, 3); grey and palette images become RGB, alpha is dropped.

    Raises:
      BadInput: the file is missing, truncated, no image, or has more than 8 bits a channel.
    """
    with Picture(path) as picture:
        return picture.read()


def write_image(path: epath.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (height, width, 3) to `path`, in the format of its suffix, whole or not at all."""
    path, encoded = epath.Path(path), io.BytesIO()
    Image.fromarray(image).save(encoded, Image.registered_extensions()[path.suffix.lower()], quality=95)
    write_bytes_atomically(path, encoded.getvalue())


def bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic resize of a uint8 (h, w, 3) image to (height, width)."""
    return resized(image, height, width, Image.BICUBIC)


def resized(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """The same by any of Pillow's filters, by its number (`Image.Resampling`)."""
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def clean_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same in float32 and a channel at a time, nothing rounded or clipped, as the scores of Parmar et al. 2022
    (arXiv 2104.11222, "clean") want it: uint8 (h, w, 3) → float32 (height, width, 3), [0, 255] but for overshoot."""
    channels = [Image.fromarray(channel).resize((width, height), Image.BICUBIC)
                for channel in np.float32(image).transpose(2, 0, 1)]
    return np.stack(channels, axis=-1)


def box_downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over `factor`×`factor` blocks of a uint8 (h, w, 3) image; the remainder at the far edges is cut off."""
    height, width = (n // factor * factor for n in image.shape[:2])
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)
