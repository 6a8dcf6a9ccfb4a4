"""How close an image is to the truth, to its condition, and in its amount of detail. uint8 (h, w, 3) in, floats out.

PSNR rewards blur: the mean of all plausible images beats any one of them. It stands beside `detail_ratio`, which blur
lowers and noise raises; the truth has 1.
"""

import numpy as np

from rsdiff.data.images import box_downscale


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, peak 255; infinite for equal images.

    Raises:
      ValueError: the shapes differ.
    """
    if image.shape != truth.shape:
        raise ValueError(f'shapes {image.shape} and {truth.shape} differ')
    error = np.mean((image.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float('inf') if error == 0 else float(10 * np.log10(255.0**2 / error))


def lr_consistency(image: np.ndarray, condition: np.ndarray) -> float:
    """PSNR in dB of the image's block means against the condition it was made from, (h / k, w / k, 3)."""
    return psnr(box_downscale(image, image.shape[0] // condition.shape[0]), condition)


def detail(image: np.ndarray) -> float:
    """Root mean square of the 4-neighbour Laplacian, in grey levels: the energy of the finest structure."""
    x = image.astype(np.float64)
    laplacian = 4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]
    return float(np.sqrt(np.mean(laplacian**2)))


def detail_ratio(image: np.ndarray, truth: np.ndarray) -> float:
    """`detail` of the image over that of the truth."""
    return detail(image) / detail(truth)
