"""The loss of JPEG compression, for a traced quality: as libjpeg with 4:2:0 chroma, Pillow's default.

Follows ITU-T T.81 and JFIF. Entropy coding is lossless and therefore omitted.
"""

from typing import cast

import jax.numpy as jnp
import numpy as np
import scipy.fft
from einops import rearrange, reduce

from rsdiff.data.canvas import PRECISION, Canvas, replicated

# T.81 annex K.1, row by row
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMINANCE = np.array(
    [
        [17, 18, 24, 47, 99, 99, 99, 99],
        [18, 21, 26, 66, 99, 99, 99, 99],
        [24, 26, 56, 99, 99, 99, 99, 99],
        [47, 66, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
    ]
)

# JFIF: luma, and two colour differences scaled to the same range
LUMA = np.array([0.299, 0.587, 0.114])
RGB_TO_YCC = np.stack([LUMA, (np.array([0, 0, 1]) - LUMA) / 1.772, (np.array([1, 0, 0]) - LUMA) / 1.402])
YCC_TO_RGB = np.linalg.inv(RGB_TO_YCC)

# the DCT of an 8 × 8 block as one (64, 64) matrix: two products with 8 × 8 matrices would be slower
DCT_8 = cast(np.ndarray, scipy.fft.dct(np.eye(8), norm='ortho', axis=0))
DCT = np.kron(DCT_8, DCT_8)


def jpeg(canvas: Canvas, quality) -> Canvas:
    """Compresses and decompresses an RGB image.

    Args:
      canvas: three channels in [0, 255]; values are clipped and rounded to integers, as in a file.
      quality: libjpeg's quality, an integer in 1 … 100.
    Returns:
      Integer values in [0, 255].
    """
    _, height, width = canvas.pixels.shape
    # padded to complete blocks of the subsampled chroma
    rgb = _levels(replicated(canvas, -(-height // 16) * 16, -(-width // 16) * 16))
    planes = jnp.round(_colours(RGB_TO_YCC, rgb - 128))  # luma about 128, chroma about 0, as they are coded
    luma = _coded(planes[:1], table(LUMINANCE, quality))
    chroma = _coded(reduce(planes[1:], 'c (h a) (w b) -> c h w', 'mean', a=2, b=2), table(CHROMINANCE, quality))
    chroma = replicated(Canvas(chroma, tuple((n + 1) // 2 for n in canvas.size)), *chroma.shape[1:])
    chroma = _doubled(_doubled(chroma, axis=1), axis=2)
    decoded = _levels(_colours(YCC_TO_RGB, jnp.concatenate([luma, chroma])) + 128)
    return Canvas(decoded[:, :height, :width], canvas.size)


def table(base: np.ndarray, quality):
    """libjpeg's scaling of a quantisation table, jpeg_quality_scaling and jpeg_add_quant_table; int32 (8, 8)."""
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return jnp.clip((base * percent + 50) // 100, 1, 255)


def _coded(planes, steps):
    """Quantises the DCT of each 8 × 8 block to multiples of `steps`: planes (c, h, w) about 0 → integer values."""
    blocks = rearrange(planes, 'c (h u) (w v) -> c h w (u v)', u=8, v=8)
    steps = steps.reshape(64)
    coefficients = jnp.round(jnp.matmul(blocks, DCT.T.astype(np.float32), precision=PRECISION) / steps) * steps
    blocks = jnp.matmul(coefficients, DCT.astype(np.float32), precision=PRECISION)
    decoded = rearrange(blocks, 'c h w (u v) -> c (h u) (w v)', u=8, v=8)
    return jnp.clip(jnp.round(decoded), -128, 127)


def _doubled(planes, axis: int):
    """Doubles `axis`: 3/4 of the nearer pixel plus 1/4 of the farther, libjpeg's "fancy upsampling"."""
    planes = jnp.moveaxis(planes, axis, 0)
    before = jnp.concatenate([planes[:1], planes[:-1]])
    after = jnp.concatenate([planes[1:], planes[-1:]])
    doubled = jnp.stack([0.75 * planes + 0.25 * before, 0.75 * planes + 0.25 * after], 1)
    return jnp.moveaxis(rearrange(doubled, 'n a ... -> (n a) ...'), 0, axis)


def _colours(matrix: np.ndarray, planes):
    return jnp.einsum('dc,chw->dhw', matrix.astype(np.float32), planes, precision=PRECISION)


def _levels(values):
    return jnp.clip(jnp.round(values), 0, 255)
