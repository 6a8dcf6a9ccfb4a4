"""Agreement of a predicted x_0 with the low-resolution image that it must explain.

    x_0 ← x_0 + w up(y - down(x_0))                                      (1)

is, at w = 1, the range-space projection of DDNM (Wang et al. 2023, arXiv 2212.00490, eq. 10) for `down`, the mean over
factor × factor blocks. Their `up` repeats each pixel, which prints the blocks; here it is a smooth interpolation, under
which (1) is applied twice, and again at every sampling step. It removes the tint that each window would otherwise give
itself, and leaves the detail, which `down` cannot see, to the network.

Where the condition was made by another degradation than the mean, its finest scale says something else than `down` does.
A larger factor compares both at a coarser one, where every degradation that keeps brightness agrees with the mean.

A window knows its x_0 no further than its own edge, so `up` continues the difference there. Within two blocks of the
edge the correction is therefore another than the neighbour's, which is for the merging of windows to make good.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import reduce

from rsdiff.diffusion.schedule import like
from rsdiff.diffusion.solvers import Denoise


@dataclasses.dataclass(frozen=True)
class Projection:
    """How (1) is applied: at which `factor`, a multiple of the condition's; how much, w of `strength`; and only to
    predictions from noise above `end`: t > end."""

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


# What `smooth_up` sees around a pixel, in pixels of its input. Where so many more are given on each side, and their
# enlargement cut away, the rest does not know where the crop was made.
UP_REACH_PX = 2


def smooth_up_inside(y, factor: int, margin: int):
    """`smooth_up` of all but the outer `margin` pixels of y: (…, h + 2m, w + 2m, c) → (…, h·factor, w·factor, c)."""
    return inside(smooth_up(y, factor), margin * factor)


def inside(x, margin: int):
    """All but the outer `margin` pixels of x (…, h, w, c)."""
    height, width = x.shape[-3:-1]
    return x[..., margin : height - margin, margin : width - margin, :]


def project(x0, y, factor: int | None = None, strength: float | jax.Array = 1.0, repeats: int = 2):
    """(1), `repeats` times.

    Args:
      x0: (…, h·f, w·f, c).
      y: (…, h, w, c), the condition.
      factor: the scale of the comparison in pixels of x0, a multiple of f; by default f.
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
    """`predict`, with what it says projected onto the condition y (…, h, w, c) as `projection` has it."""

    def held(xt, t):
        x0 = predict(xt, t)
        on = like(t > projection.end, x0) * projection.strength
        return project(x0, y, projection.factor, on)

    return held


def keep_known(predict: Denoise, pixels, mask) -> Denoise:
    """`predict`, with what is known put in its place: `pixels` (…, h, w, c) where `mask` (…, h, w, 1) is true.

    That is the projection of DDNM for a `down` that leaves pixels out: what is unknown is drawn to fit.
    """
    return lambda xt, t: jnp.where(mask, pixels, predict(xt, t))
