"""Consistency of a predicted x_0 with the low-resolution image.

    x_0 ← x_0 + w up(y - down(x_0))                                      (1)

is, at w = 1, the range-space projection of DDNM (Wang et al. 2023, arXiv 2212.00490, eq. 10) with `down` the mean over
factor × factor blocks. Their `up` repeats each pixel, which leaves blocking artefacts; here it is a smooth interpolation,
and (1) is applied twice at every sampling step. This removes the tint that each window would otherwise have, and leaves
the detail, which `down` cannot see, to the network.

If the condition was degraded otherwise than by block means, it disagrees with `down` at its finest scale. A larger factor
compares at a coarser scale, where every degradation that preserves brightness agrees with the mean.

A window's x_0 ends at the window's edge, so `up` extrapolates the difference there. Within two blocks of the edge the
correction therefore differs from the neighbouring window's; merging the windows evens this out.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import reduce

from rsdiff.diffusion.schedule import like
from rsdiff.diffusion.solvers import Denoise


@dataclasses.dataclass(frozen=True)
class Projection:
    """How (1) is applied: at scale `factor`, a multiple of the condition's; with w = `strength`; and only at timesteps
    t > `end`."""

    factor: int = 4
    strength: float = 1.0
    end: int = 0


def box_down(x, factor: int):
    """Mean over factor × factor blocks: (…, h, w, c) → (…, h/factor, w/factor, c)."""
    return reduce(x, '... (h fh) (w fw) c -> ... h w c', 'mean', fh=factor, fw=factor)


def smooth_up(y, factor: int):
    """Bicubic enlargement: (…, h, w, c) → (…, h·factor, w·factor, c)."""
    *batch, height, width, channels = y.shape
    return jax.image.resize(y, (*batch, height * factor, width * factor, channels), 'bicubic')


# Reach of `smooth_up`'s kernel, in pixels of its input. With this margin on each side, cut away after the enlargement,
# the result does not depend on where the crop was made.
UP_REACH_PX = 2


def smooth_up_inside(y, factor: int, margin: int):
    """`smooth_up` of all but the outer `margin` pixels of y: (…, h + 2m, w + 2m, c) → (…, h·factor, w·factor, c)."""
    return inside(smooth_up(y, factor), margin * factor)


def inside(x, margin: int):
    """All but the outer `margin` pixels of x (…, h, w, c)."""
    height, width = x.shape[-3:-1]
    return x[..., margin : height - margin, margin : width - margin, :]


def project(x0, y, factor: int | None = None, strength: float | jax.Array = 1.0, repeats: int = 2):
    """Applies (1) `repeats` times.

    Args:
      x0: (…, h·f, w·f, c).
      y: (…, h, w, c), the condition.
      factor: the scale of the comparison in pixels of x0, a multiple of f; f by default.
      strength: w, a number or an array that broadcasts against x0.
    Returns:
      The shape of x0.
    """
    own = x0.shape[-2] // y.shape[-2]
    factor = factor or own
    y = box_down(y, factor // own)
    for _ in range(repeats):
        x0 = x0 + strength * smooth_up(y - box_down(x0, factor), factor)
    return x0


def projected(predict: Denoise, y, projection: Projection) -> Denoise:
    """`predict`, with its output projected onto the condition y (…, h, w, c) as `projection` specifies."""

    def held(xt, t):
        x0 = predict(xt, t)
        on = like(t > projection.end, x0) * projection.strength
        return project(x0, y, projection.factor, on)

    return held


def keep_known(predict: Denoise, pixels, mask) -> Denoise:
    """`predict`, with known pixels inserted: `pixels` (…, h, w, c) where `mask` (…, h, w, 1) is true.

    This is DDNM's projection for a `down` that omits pixels: the unknown ones are generated to fit.
    """
    return lambda xt, t: jnp.where(mask, pixels, predict(xt, t))
