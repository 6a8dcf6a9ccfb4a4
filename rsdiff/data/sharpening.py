"""Unsharp masking, which Real-ESRGAN applies to the targets of its losses (Wang et al. 2021, arXiv 2107.10833).

With B a Gaussian blur, the residual of an image x is sharpened only where it is large,

    r = x - B x,  m = B [|r| > t]                                         (1)
    y = m · clip(x + w r) + (1 - m) · x                                   (2)

with t = 10 grey levels and w = 1/2, as published. The kernel has 51 px, the published 50 made odd, and σ = 8 px, which
OpenCV derives from the size: 0.3 · ((51 - 1) / 2 - 1) + 0.8.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from rsdiff.data.canvas import Canvas, blur

KERNEL_PX, SIGMA_PX = 51, 8.0
THRESHOLD_LEVELS, WEIGHT = 10.0, 0.5


def sharpened(images):
    """Equation (2): float32 (b, h, w, c) in [-1, 1] → the same."""
    residual = images - _blurred(images)
    mask = _blurred((jnp.abs(residual) * 127.5 > THRESHOLD_LEVELS).astype(jnp.float32))
    return mask * jnp.clip(images + WEIGHT * residual, -1, 1) + (1 - mask) * images


def _blurred(images):
    """B of (1); the border is reflected without repeating the edge pixel."""
    count, height, width, _ = images.shape
    line = np.exp(-0.5 * ((np.arange(KERNEL_PX) - KERNEL_PX // 2) / SIGMA_PX) ** 2)
    kernel = jnp.asarray(np.outer(line, line) / line.sum() ** 2, jnp.float32)
    canvas = Canvas(rearrange(jnp.asarray(images), 'b h w c -> (b c) h w'), (height, width))
    return rearrange(blur(canvas, kernel).pixels, '(b c) h w -> b h w c', b=count)
