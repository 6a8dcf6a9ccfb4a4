"""Codecs: from targets to the array that is diffused, and back.

A codec encodes targets, a dict of arrays such as {'image': x_0}, as one array z_0, and decodes z_0 to targets. It may use the
condition. If a window is a crop of something larger, the condition's spatial fields have a `margin`, in pixels of `lr`, so
that the codec's result does not depend on where the crop was made.
"""

import dataclasses
from typing import Literal, Protocol

import jax

from rsdiff.base.ranges import check_range
from rsdiff.diffusion import constraints
from rsdiff.models.conditioning import Condition

Targets = dict[str, jax.Array]


class Codec(Protocol):
    """Converts between targets and z_0."""

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
    """z_0 is the image's residual with respect to its upsampled condition,

        z_0 = (x_0 - up(lr)) / scale                                     (1)

    The schedule is designed for data of unit variance. Fine texture in an image of [-1, 1] has a twentieth of that, less than
    the noise of the schedule's first step, and would be lost. The scaled residual has the right range, and the network need
    not learn the colours, which (1) removes. The best `scale` is the root mean square of x_0 - up(lr).
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
    """up(lr) in (1), without its margin: (b, h + 2m, w + 2m, c) → (b, height, height · w / h, c)."""
    return constraints.smooth_up_inside(lr, height // (lr.shape[1] - 2 * margin), margin)


CodecConfig = IdentityConfig | ResidualConfig
