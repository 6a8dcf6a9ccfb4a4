"""Image files to arrays and back, and the one convention between them.

Outside: uint8 RGB, (height, width, 3). Inside: float32 in [-1, 1].
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from rsdiff.errors import BadInput

# The images are large on purpose; Pillow's guard against decompression bombs is raised, not removed.
Image.MAX_IMAGE_PIXELS = 1 << 30


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] → float32 in [-1, 1]."""
    return np.asarray(image, np.float32) / 127.5 - 1.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float in [-1, 1] (clipped) → uint8 in [0, 255]; the inverse of `to_float`."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def read_image(path: Path | str) -> np.ndarray:
    """The image at `path` as uint8 (height, width, 3); grey and palette images become RGB, alpha is dropped.

    Raises:
      BadInput: the file is missing, truncated, no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(('I', 'F')):
                raise BadInput(f'{path}: {image.mode} pixels, more than 8 bits; convert it to 8-bit RGB first')
            return np.asarray(image.convert('RGB'))
    except FileNotFoundError:
        raise BadInput(f'{path}: no such image') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f'{path}: not a readable image ({error})') from None


def write_image(path: Path | str, image: np.ndarray) -> None:
    """Writes uint8 (height, width, 3) to `path`, in the format of its suffix, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.partial{path.suffix}')
    Image.fromarray(image).save(partial, quality=95)
    os.replace(partial, path)


def bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic resize of a uint8 (h, w, 3) image to (height, width)."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC))


def box_downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over `factor`×`factor` blocks of a uint8 (h, w, 3) image; the remainder at the far edges is cut off."""
    height, width = (n // factor * factor for n in image.shape[:2])
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)
