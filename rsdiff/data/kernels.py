"""Blur kernels of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833, §3.1 and §3.4), of traced size and shape.

Each is normalised, float32 (canvas_px, canvas_px), centred, and zero outside its own size_px × size_px.
"""

import jax.numpy as jnp
import numpy as np


def gaussian_or_plateau(canvas_px: int, size_px, sigma_x, sigma_y, angle, power, plateau):
    """exp(-q^power / 2), or 1 / (1 + q^power) where `plateau`, with q the squared distance in σ.

    Args:
      size_px: odd, at most canvas_px.
      sigma_x, sigma_y: in pixels, along axes rotated by `angle` in radians.
      power: 1 is a Gaussian; others are the generalised Gaussian, its tails heavier below 1.
    """
    x, y = _grid(canvas_px)
    u = jnp.cos(angle) * x + jnp.sin(angle) * y
    v = -jnp.sin(angle) * x + jnp.cos(angle) * y
    q = ((u / sigma_x) ** 2 + (v / sigma_y) ** 2) ** power
    return _cut(jnp.where(plateau, 1 / (1 + q), jnp.exp(-q / 2)), size_px)


def sinc(canvas_px: int, size_px, cutoff):
    """The ideal circular low-pass filter at `cutoff` radians per pixel, ω J₁(ω r) / 2πr, truncated to a square;
    it causes ringing."""
    x, y = _grid(canvas_px)
    r = np.hypot(x, y)
    centre = r == 0
    away = cutoff * bessel_j1(cutoff * r) / (2 * jnp.pi * np.where(centre, 1, r))
    return _cut(jnp.where(centre, cutoff**2 / (4 * jnp.pi), away), size_px)


def delta(canvas_px: int):
    """The identity kernel."""
    return jnp.zeros((canvas_px, canvas_px)).at[canvas_px // 2, canvas_px // 2].set(1.0)


def bessel_j1(x):
    """J₁(x) for 0 <= x <= 50 from its integral, the mean of cos(τ - x sin τ) over τ: the midpoint rule with 48 points
    on half a period is exact to float32 as long as J₉₅(x) is negligible."""
    tau = (np.arange(48, dtype=np.float32) + 0.5) * np.float32(np.pi / 48)
    return jnp.cos(tau - x[..., None] * np.sin(tau)).mean(-1)


def _grid(canvas_px: int):
    axis = np.arange(canvas_px, dtype=np.float32) - canvas_px // 2
    return axis[None, :], axis[:, None]


def _cut(kernel, size_px):
    x, y = _grid(kernel.shape[0])
    kernel = jnp.where(np.maximum(abs(x), abs(y)) <= (size_px - 1) / 2, kernel, 0)
    return kernel / kernel.sum()
