"""Consistency of a predicted x_0 with the low-resolution image.

    x_0 ← x_0 + w up(y - down(x_0))                                      (1)

is, at w = 1, the range-space projection of DDNM (Wang et al. 2023, arXiv 2212.00490, eq. 10) with `down` the mean over
factor × factor blocks. Their `up` repeats each pixel, which leaves blocking artefacts; here it is a smooth interpolation,
and (1) is applied twice at every sampling step. This removes the tint that each window would otherwise have, and leaves
the detail, which `down` cannot see, to the network.

If the condition was degraded otherwise than by block means, it disagrees with `down` at its finest scale. A larger factor
compares at a coarser scale, where every degradation that preserves brightness agrees with the mean.

The wavelet colour correction of StableSR (Wang et al. 2023, arXiv 2305.07015) is an alternative. It leaves the detail of
the sample, and replaces everything coarser by the enlarged condition's,

    x_0 ← x_0 - low(x_0) + low(up(y))                                    (2)

`low` blurs with the kernel (1 2 1) / 4 along both axes, once at every dilation 1, 2, 4, … (the à trous transform). It is
applied to the result only, not at every step.

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


@dataclasses.dataclass(frozen=True)
class Wavelet:
    """How (2) is applied: with `levels` dilations, and only at timesteps t ≤ `start`, that of the last step."""

    levels: int = 5
    start: int = 1


def wavelet_low(x, levels: int):
    """`low` of (2), with edges repeated: (…, h, w, c), the same shape."""
    for level in range(levels):
        for axis in (-3, -2):
            x = _blurred(x, 2**level, axis)
    return x


def _blurred(x, reach: int, axis: int):
    padding = [(0, 0)] * x.ndim
    padding[axis] = (reach, reach)
    padded, size = jnp.pad(x, padding, 'edge'), x.shape[axis]
    before, same, after = (jax.lax.slice_in_dim(padded, n, n + size, axis=axis) for n in (0, reach, 2 * reach))
    return 0.25 * before + 0.5 * same + 0.25 * after


def wavelet_corrected(predict: Denoise, y, wavelet: Wavelet) -> Denoise:
    """`predict`, with the low frequencies of its output replaced by those of the condition y (…, h, w, c)."""

    def corrected(xt, t):
        x0 = predict(xt, t)
        coarse = wavelet_low(smooth_up(y, x0.shape[-2] // y.shape[-2]) - x0, wavelet.levels)
        return x0 + like(t <= wavelet.start, x0) * coarse

    return corrected


def consistent(predict: Denoise, y, by: Projection | Wavelet) -> Denoise:
    """`predict`, made consistent with the condition y (…, h, w, c)."""
    return projected(predict, y, by) if isinstance(by, Projection) else wavelet_corrected(predict, y, by)


def keep_known(predict: Denoise, pixels, mask) -> Denoise:
    """`predict`, with known pixels inserted: `pixels` (…, h, w, c) where `mask` (…, h, w, 1) is true.

    This is DDNM's projection for a `down` that omits pixels: the unknown ones are generated to fit.
    """
    return lambda xt, t: jnp.where(mask, pixels, predict(xt, t))
