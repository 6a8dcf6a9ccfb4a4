"""Blur and resize of images whose size is traced, in arrays of static shape.

The image lies in the top left of a larger canvas. The rest of the canvas is undefined: every operation reads only the
image, and pads it as it needs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

PRECISION = jax.lax.Precision.HIGHEST  # accelerators would otherwise multiply with fewer bits than a grey level needs


class Canvas(NamedTuple):
    """`pixels`: float32 (channels, canvas height, canvas width). `size`: the image's height and width, ints if known
    at compile time, else int32 scalars."""

    pixels: jax.Array
    size: tuple


def replicated(canvas: Canvas, height: int, width: int) -> jax.Array:
    """The image padded by repeating its last row and column: float32 (channels, height, width)."""
    rows, columns = (jnp.minimum(jnp.arange(length), n - 1) for length, n in zip((height, width), canvas.size))
    return canvas.pixels[:, rows][:, :, columns]


def blur(canvas: Canvas, kernel) -> Canvas:
    """Convolves with a kernel (k, k), k odd; the border is reflected without repeating the edge pixel.

    Uses the Fourier transform: on a CPU at k = 21 it is some 20 times faster than a convolution or a sum of shifts.
    """
    size, (_, height, width) = kernel.shape[0], canvas.pixels.shape
    rows, columns = (
        _reflected(jnp.arange(length + size - 1) - size // 2, n) for length, n in zip((height, width), canvas.size)
    )
    padded = canvas.pixels[:, rows][:, :, columns]
    # the circular convolution wraps into the first size - 1 rows and columns, which are cut off
    shape = _fast_length(height + size - 1), _fast_length(width + size - 1)
    product = jnp.fft.rfft2(padded, shape) * jnp.fft.rfft2(kernel, shape)
    blurred = jnp.fft.irfft2(product, shape)
    return Canvas(blurred[:, size - 1 : size - 1 + height, size - 1 : size - 1 + width], canvas.size)


def resize(canvas: Canvas, size: tuple, shape: tuple[int, ...], choice, antialias: bool) -> Canvas:
    """Resizes the image with one matrix for its rows and one for its columns.

    Pixel centres are at half-integers and the scale is exactly the ratio of the two sizes, so the image does not shift.

    Args:
      size: height and width of the result, ints or int32 scalars.
      shape: height and width of its canvas; the result's last row and column are repeated up to there.
      choice: 0 area, the mean over a pixel's footprint; 1 bilinear; 2 bicubic with a = -0.5, as in Pillow.
      antialias: whether the bilinear and bicubic kernels widen when downscaling (as in Pillow) or not (as in torch).
    """
    if all(isinstance(n, int) for n in canvas.size + size) and canvas.size == size == shape == canvas.pixels.shape[1:]:
        return canvas
    rows, columns = (
        _weights(n, length, new_n, new_length, choice, antialias)
        for n, length, new_n, new_length in zip(canvas.size, canvas.pixels.shape[1:], size, shape)
    )
    return Canvas(jnp.einsum('ph,chw,qw->cpq', rows, canvas.pixels, columns, precision=PRECISION), size)


def _weights(n, length: int, new_n, new_length: int, choice, antialias: bool):
    """The matrix (new_length, length) that resamples n samples to new_n."""
    ratio = jnp.float32(n) / new_n
    centre = (jnp.minimum(jnp.arange(new_length), new_n - 1) + 0.5) * ratio - 0.5
    source = jnp.arange(length)
    distance = jnp.abs(source - centre[:, None])
    widened = distance / jnp.maximum(ratio, 1.0) if antialias else distance
    # the overlap of two intervals of lengths 1 and `ratio` is a trapezoidal function of the distance of their centres
    area = lambda: jnp.clip((ratio + 1) / 2 - distance, 0, jnp.minimum(ratio, 1.0))
    bilinear = lambda: jnp.maximum(1 - widened, 0)
    bicubic = lambda: _keys_cubic(widened)
    if isinstance(choice, int):
        weights = (area, bilinear, bicubic)[choice]()
    else:
        weights = jnp.select([choice == 0, choice == 1], [area(), bilinear()], bicubic())
    weights = jnp.where(source < n, weights, 0)
    return weights / weights.sum(-1, keepdims=True)


def _keys_cubic(x):
    """Keys 1981, a = -1/2, at x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _reflected(index, n):
    """Reflects any index into [0, n): … 2 1 0 1 2 …"""
    return jnp.abs((index + n - 1) % jnp.maximum(2 * (n - 1), 1) - (n - 1))


def _fast_length(length: int) -> int:
    """The next length with no prime factor above 5."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
