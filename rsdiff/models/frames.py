"""Networks of several images of one place, their *frames*: settings and input.

The condition field `frames` holds up to T images, those that do not exist as NaN, so that a batch may mix examples with
different numbers of them. The existing ones are moved to the front, in their order, and counted; what comes after them
must not affect the result.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range
from rsdiff.models.conditioning import Condition, Number, Spatial, Tokens

FRAMES = 'frames'


class FourTimes:
    """The properties of a 4× network's config that have no settings."""

    @property
    def upscale(self) -> int:
        """Resolution of the result relative to `lr`."""
        return 4

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this, in pixels."""
        return self.upscale


@dataclasses.dataclass(frozen=True)
class FramesConfig(FourTimes):
    """Settings that SRCNN and HighResNet share. The defaults are those of satlas-super-resolution's published weights.

    Attributes:
      features: channels of an encoded frame.
      frames: the most frames per example; with 1, the network takes `lr` alone.
      zoom: enlargement by pixel shuffle, whose result is resized to 4×.
      reference: each frame is encoded together with the median of all.
      channels: of every frame and of the result.
      unit_range: the layers work on pixels in [0, 1]; input and result are in [-1, 1] all the same.
      remat: recompute activations for the gradient, to save memory.
    """

    features: int = 128
    frames: int = 8
    zoom: int = 4
    reference: bool = False
    channels: int = 3
    unit_range: bool = True
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: bool = False

    def __post_init__(self):
        check_range(self, 1, 1024, 'features')
        check_range(self, 1, 64, 'frames')
        check_range(self, 1, self.upscale, 'zoom')
        check_range(self, 1, 256, 'channels')
        if self.features % self.zoom**2:
            raise BadInput(f'features is {self.features}; it must be a multiple of zoom² = {self.zoom**2}')

    @property
    def fields(self) -> dict[str, Spatial | Number | Tokens]:
        """All fields of the condition."""
        fields: dict[str, Spatial | Number | Tokens] = {'lr': Spatial(self.channels, self.upscale)}
        if self.frames > 1:
            fields[FRAMES] = Spatial(self.channels, self.upscale, droppable=True, frames=self.frames)
        return fields


def stacked(condition: Condition, most: int) -> tuple[jax.Array, Any]:
    """The frames of a condition, and how many of them exist.

    Args:
      condition: `lr` (b, h, w, c), which is the only frame of examples without others, and possibly `frames`
        (b, h, w, T · c) with any T. A frame with a NaN does not exist.
      most: the number of frames to use at most, the first ones.
    Returns:
      (b, t, h, w, c), the existing frames first, zeros after them; and int32 (b,), at least 1. t is the lesser of T and
      `most`, or 1 without the field.
    """
    lr, values = condition['lr'], condition.get(FRAMES) if most > 1 else None
    if values is None:
        return lr[:, None], jnp.ones(len(lr), jnp.int32)
    frames = rearrange(values, 'b h w (t c) -> b t h w c', c=lr.shape[-1])
    exists = ~jnp.isnan(frames).any(axis=(2, 3, 4))
    count = jnp.minimum(exists.sum(axis=1, dtype=jnp.int32), most)
    first = jnp.argsort(~exists, axis=1, stable=True)[:, :most]
    frames = taken(jnp.where(per_frame(exists), frames, 0.0), first)
    return frames.at[:, 0].set(jnp.where(per_frame(count == 0), lr, frames[:, 0])), jnp.maximum(count, 1)


def in_turn(frames, count, number: int):
    """The first `count` frames, repeated until there are `number`: (b, t, h, w, c) → (b, number, h, w, c)."""
    return taken(frames, jnp.arange(number) % count[:, None])


def median(frames, count):
    """The median of the first `count` frames, the lower of two middle values: (b, t, h, w, c) → (b, 1, h, w, c)."""
    exists = jnp.arange(frames.shape[1]) < count[:, None]
    ranked = jnp.sort(jnp.where(per_frame(exists), frames, jnp.inf), axis=1)
    return taken(ranked, (count[:, None] - 1) // 2)


def taken(frames, index):
    """The frames at `index`, int (b, n), of each example: (b, t, h, w, c) → (b, n, h, w, c)."""
    return jnp.take_along_axis(frames, per_frame(index), axis=1)


def per_frame(values):
    """Values of each frame or example, to be broadcast over its pixels: (…,) → (…, 1, 1, 1)."""
    return values[..., None, None, None]
