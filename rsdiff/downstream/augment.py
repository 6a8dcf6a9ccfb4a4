"""Standard augmentations of a real image: the inexpensive baselines that a generator has to beat.

    view      one of the eight orientations, a crop of half to all of the area, colour jitter; same label
    mixup     λ a + (1 − λ) b                            label λ y_a + (1 − λ) y_b, λ ~ U(0, 1)          (1)
    cutout    a with a square of mean colour in it       same label                                      (2)
    cutmix    a with a rectangle of b in it              as (1), λ the share of a's pixels left          (3)

(1) Zhang et al. 2018 (arXiv 1710.09412) with α = 1; (2) DeVries & Taylor 2017 (arXiv 1708.04552), a square of half the
side with its centre anywhere; (3) Yun et al. 2019 (arXiv 1905.04899), α = 1. All take and return uint8 (n, n, 3).
"""

import numpy as np
from PIL import Image, ImageEnhance

LEAST_AREA = 0.5
COLOUR_CHANGE = 0.3
CUT_SIDE = 0.5


def view(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Randomly flipped, rotated and cropped, with random brightness, contrast and saturation."""
    n, image = len(image), turned(image, generator)
    side = n * np.sqrt(generator.uniform(LEAST_AREA, 1))
    top, left = generator.uniform(0, n - side, 2)
    seen = Image.fromarray(image).resize((n, n), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return jittered(np.asarray(seen), generator)


def turned(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """In one of the eight orientations of a square."""
    transpose, upside_down, mirror = generator.random(3) < 0.5
    image = image.swapaxes(0, 1) if transpose else image
    return np.ascontiguousarray(image[:: -1 if upside_down else 1, :: -1 if mirror else 1])


def jittered(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """With random brightness, contrast and saturation."""
    seen = Image.fromarray(image)
    for kind in ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color:
        seen = kind(seen).enhance(generator.uniform(1 - COLOUR_CHANGE, 1 + COLOUR_CHANGE))
    return np.asarray(seen)


def mixup(a: np.ndarray, b: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """(1): the image, and λ."""
    share = generator.random()
    return np.rint(share * a + (1 - share) * b).astype(np.uint8), share


def cutout(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(2)."""
    result = image.copy()
    result[window(len(image), CUT_SIDE, generator)] = np.rint(image.mean((0, 1)))
    return result


def cutmix(a: np.ndarray, b: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """(3): the image, and λ."""
    cut = window(len(a), np.sqrt(1 - generator.random()), generator)
    result = a.copy()
    result[cut] = b[cut]
    return result, 1 - result[cut].size / result.size


def window(n: int, share: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns of a square with side `share` × n around a random point, clipped to the image."""
    half = share * n / 2
    rows, columns = (
        slice(max(0, round(centre - half)), min(n, round(centre + half))) for centre in generator.uniform(0, n, 2)
    )
    return rows, columns
