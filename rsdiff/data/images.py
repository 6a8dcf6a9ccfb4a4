"""Conversion between image files and arrays, and between the two value ranges in use.

Files and interfaces: uint8 RGB, (height, width, 3). Networks: float32 in [-1, 1].
"""

import io
from typing import IO

import numpy as np
from etils import epath
from PIL import Image

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import write_bytes_atomically
from rsdiff.data.pictures import MOST_PIXELS
from rsdiff.data.scenes import open_scene


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] → float32 in [-1, 1]."""
    return np.asarray(image, np.float32) / 127.5 - 1.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float in [-1, 1] (clipped) → uint8 in [0, 255]; the inverse of `to_float`.

    Raises:
      FloatingPointError: a value is NaN or infinite.
    """
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f'{np.count_nonzero(~np.isfinite(values))} of {values.size} values of an image are NaN or infinite; '
            'check the weights, and the gsd_m that the network is given'
        )
    return np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8)


def read_image(
    path: epath.PathLike,
    bands: tuple[int, ...] | None = None,
    value_range: tuple[float, float] | None = None,
    file: IO[bytes] | None = None,
) -> np.ndarray:
    """The image at `path` as uint8 RGB (height, width, 3), upright; alpha and masks are dropped.

    Args:
      bands, value_range, file: see `rsdiff.data.scenes.open_scene`.
    Raises:
      BadInput: as `open_scene`; or the pixels are damaged, or too many to be read at once.
    """
    with open_scene(path, bands, value_range, file) as scene:
        return scene.read(_all_of(path, scene))


def read_masked(
    path: epath.PathLike,
    bands: tuple[int, ...] | None = None,
    value_range: tuple[float, float] | None = None,
    file: IO[bytes] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `read_image`, and the mask of valid pixels: bool (height, width), read-only."""
    with open_scene(path, bands, value_range, file) as scene:
        box = _all_of(path, scene)
        return scene.read(box), scene.valid(box)


def image_size(path: epath.PathLike) -> tuple[int, int]:
    """Height and width of the image at `path`, upright. No pixel is decoded, so any bit depth works.

    Raises:
      BadInput: it can't be opened.
    """
    with open_scene(path, value_range=(0, 1)) as scene:
        return scene.height, scene.width


def _all_of(path, scene) -> Box:
    if scene.height * scene.width > MOST_PIXELS:
        raise BadInput(f'{path}: {scene.width}×{scene.height} px are too many to be read at once; cut it into parts')
    return Box(0, 0, scene.height, scene.width)


def write_image(path: epath.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (height, width, 3) to `path`, in the format of its suffix, atomically."""
    path, encoded = epath.Path(path), io.BytesIO()
    Image.fromarray(image).save(encoded, Image.registered_extensions()[path.suffix.lower()], quality=95)
    write_bytes_atomically(path, encoded.getvalue())


def bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic resize of a uint8 (h, w, 3) image to (height, width)."""
    return resized(image, height, width, Image.Resampling.BICUBIC)


def resized(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """Pillow's resize of a uint8 (h, w, 3) image by any of its filters (`Image.Resampling`)."""
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def clean_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic resize in float32, one channel at a time, without rounding or clipping, as in the metrics of
    Parmar et al. 2022 (arXiv 2104.11222, "clean"): uint8 (h, w, 3) → float32 (height, width, 3), in [0, 255] except
    for overshoot."""
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC))
        for channel in image.astype(np.float32).transpose(2, 0, 1)
    ]
    return np.stack(channels, axis=-1)


def box_downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over `factor`×`factor` blocks of a uint8 (h, w, 3) image; the remainder at the far edges is cut off."""
    height, width = (n // factor * factor for n in image.shape[:2])
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)
