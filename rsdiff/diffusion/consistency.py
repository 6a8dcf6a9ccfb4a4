"""Agreement of a predicted x_0 with the low-resolution image that it must explain.

    x_0 ← x_0 + up(y - down(x_0))                                        (1)

is the range-space projection of DDNM (Wang et al. 2023, arXiv 2212.00490, eq. 10) for `down`, the mean over
factor × factor blocks. Their `up` repeats each pixel, which prints the blocks; here it is a smooth interpolation, under
which (1) is applied twice, and again at every sampling step. It removes the tint that each window would otherwise give
itself, and leaves the detail, which `down` cannot see, to the network.
"""

import jax
from einops import reduce


def box_down(x, factor: int):
    """Mean over factor × factor blocks: (…, h, w, c) → (…, h/factor, w/factor, c)."""
    return reduce(x, '... (h fh) (w fw) c -> ... h w c', 'mean', fh=factor, fw=factor)


def smooth_up(y, factor: int):
    """Bicubic enlargement: (…, h, w, c) → (…, h·factor, w·factor, c)."""
    *batch, height, width, channels = y.shape
    return jax.image.resize(y, (*batch, height * factor, width * factor, channels), 'bicubic')


def project(x0, y, repeats: int = 2):
    """(1), `repeats` times. x0: (…, h·f, w·f, c); y: (…, h, w, c), the condition. Returns the shape of x0."""
    factor = x0.shape[-2] // y.shape[-2]
    for _ in range(repeats):
        x0 = x0 + smooth_up(y - box_down(x0, factor), factor)
    return x0
