"""What is diffused instead of what is wanted, and the way back.

A codec turns targets, a dict of arrays such as {'image': x_0}, into one array z_0, and a z_0 into targets. It may look at the
condition. Where a window is a crop of something larger, spatial fields of the condition come with a `margin`, in pixels of
`lr`, so that what the codec makes of them does not depend on where the crop was made.
"""

import dataclasses
from typing import Literal, Protocol

import jax

from rsdiff.base.ranges import check_range
from rsdiff.diffusion import constraints
from rsdiff.models.conditioning import Condition

Targets = dict[str, jax.Array]


class Codec(Protocol):
    """z_0 and targets, each from the other."""

    def encode(self, targets: Targets, condition: Condition, margin: int = 0) -> jax.Array:
        """Targets (b, h, w, ·) → z_0."""
        ...

    def decode(self, z0, condition: Condition, margin: int = 0) -> Targets:
        """The inverse of `encode`."""
        ...


@dataclasses.dataclass(frozen=True)
class IdentityConfig:
    """z_0 is the image, in [-1, 1]."""

    kind: Literal['identity'] = 'identity'

    def encode(self, targets: Targets, condition: Condition, margin: int = 0) -> jax.Array:
        return targets['image']

    def decode(self, z0, condition: Condition, margin: int = 0) -> Targets:
        return {'image': z0}


@dataclasses.dataclass(frozen=True)
class ResidualConfig:
    """z_0 is what the image has beyond its enlarged condition,

        z_0 = (x_0 - up(lr)) / scale                                     (1)

    The schedule is made for data of unit variance. Fine texture has a twentieth of that in an image of [-1, 1], less than
    the noise of the schedule's first step, and would be lost; as z_0 it has its place, and the colours, which (1) takes
    out, need not be learned. `scale` is best the root mean square of x_0 - up(lr).
    """

    kind: Literal['residual'] = 'residual'
    scale: float = 0.1

    def __post_init__(self):
        check_range(self, 1e-4, 100, 'scale')

    def encode(self, targets: Targets, condition: Condition, margin: int = 0) -> jax.Array:
        image = targets['image']
        return (image - enlarged(condition['lr'], image.shape[1], margin)) / self.scale

    def decode(self, z0, condition: Condition, margin: int = 0) -> Targets:
        return {'image': enlarged(condition['lr'], z0.shape[1], margin) + self.scale * z0}


def enlarged(lr, height: int, margin: int):
    """up(lr) of (1) without its margin: (b, h + 2m, w + 2m, c) → (b, height, height · w / h, c)."""
    return constraints.smooth_up_inside(lr, height // (lr.shape[1] - 2 * margin), margin)


CodecConfig = IdentityConfig | ResidualConfig
