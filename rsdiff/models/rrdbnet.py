"""RRDBNet, the residual-in-residual dense network of ESRGAN (Wang et al. 2018, arXiv 1809.00219).

Parameter names are those of the Real-ESRGAN checkpoints. `RRDBNet` is the full generator; `RRDBEncoder`, its part up to
the upsampler, encodes the low-resolution condition.

Published networks take and return pixels in [0, 1] instead of [-1, 1]. With their zero padding, the two are not the same
up to a change of weights: a border of zeros is black in [0, 1] and grey in [-1, 1]. So `unit_range` converts the pixels,
not the weights.

A network with n `frames` takes n images of a place as n · channels input channels (Wolters et al. 2023, arXiv 2311.18082).
"""

import dataclasses
from typing import Any, Literal

import jax
from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from rsdiff.base.ranges import check_range
from rsdiff.models.conditioning import Condition, Number, Spatial, Tokens
from rsdiff.models.frames import FRAMES, FourTimes, in_turn, stacked


def conv3x3(features_in: int, features_out: int, *, dtype, rngs: nnx.Rngs, scale: float = 1.0):
    """A 3×3 convolution with He initialisation times `scale`, which is below 1 in ESRGAN's dense blocks."""
    init = jax.nn.initializers.variance_scaling(2.0 * scale**2, 'fan_in', 'normal')
    return nnx.Conv(features_in, features_out, (3, 3), kernel_init=init, dtype=dtype, rngs=rngs)


def lrelu(x):
    """LeakyReLU with slope 0.2."""
    return jax.nn.leaky_relu(x, 0.2)


def nearest_up(x, factor: int):
    """Repeats each pixel: (b, h, w, c) → (b, h·factor, w·factor, c)."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


class ResidualDenseBlock(nnx.Module):
    """Five densely connected convolutions; the residual is scaled by 0.2."""

    def __init__(self, features: int, growth: int, *, dtype, rngs: nnx.Rngs):
        make = lambda n, out: conv3x3(features + n * growth, out, dtype=dtype, rngs=rngs, scale=0.1)
        self.conv1, self.conv2, self.conv3, self.conv4 = (make(n, growth) for n in range(4))
        self.conv5 = make(4, features)

    def __call__(self, x):
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = jnp.concatenate([seen, lrelu(conv(seen))], axis=-1)
        return x + 0.2 * self.conv5(seen)


class RRDB(nnx.Module):
    """Three dense blocks with an outer residual connection, again scaled by 0.2."""

    def __init__(self, features: int, growth: int, *, dtype, rngs: nnx.Rngs):
        make = lambda: ResidualDenseBlock(features, growth, dtype=dtype, rngs=rngs)
        self.rdb1, self.rdb2, self.rdb3 = make(), make(), make()

    def __call__(self, x):
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBEncoder(nnx.Module):
    """RRDBNet up to its upsampler: (b, h, w, channels) → (b, h, w, features)."""

    def __init__(
        self,
        features: int,
        growth: int,
        blocks: int,
        *,
        channels: int = 3,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.conv_first = conv3x3(channels, features, dtype=dtype, rngs=rngs)
        self.body = nnx.List([RRDB(features, growth, dtype=dtype, rngs=rngs) for _ in range(blocks)])
        self.conv_body = conv3x3(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, lr):
        first = self.conv_first(lr)
        x = first
        run = nnx.remat(RRDB.__call__) if self.remat else RRDB.__call__
        for block in self.body:
            x = run(block, x)
        return first + self.conv_body(x)


@dataclasses.dataclass(frozen=True)
class RRDBNetConfig(FourTimes):
    """Sizes of an `RRDBNet`. The defaults (64 features, growth 32, 23 blocks) are Real-ESRGAN's: 16,697,987 parameters.

    `unit_range`: the layers work on pixels in [0, 1]; what the network takes and returns is in [-1, 1] all the same.
    `frames`: the number of images of a place that the network takes.
    """

    kind: Literal['rrdbnet'] = 'rrdbnet'
    features: int = 64
    growth: int = 32
    blocks: int = 23
    channels: int = 3
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: bool = False
    unit_range: bool = False
    frames: int = 1

    def __post_init__(self):
        check_range(self, 1, 1024, 'features', 'growth')
        check_range(self, 1, 64, 'blocks', 'frames')
        check_range(self, 1, 256, 'channels')

    @property
    def fields(self) -> dict[str, Spatial | Number | Tokens]:
        """All fields of the condition."""
        lr = Spatial(self.channels, self.upscale, self.features, self.growth, self.blocks)
        stack = dataclasses.replace(lr, droppable=True, frames=self.frames)
        return {'lr': lr} if self.frames == 1 else {'lr': lr, FRAMES: stack}


class RRDBNet(RRDBEncoder):
    """The complete 4× network: a condition with `lr` (b, h, w, channels) → float32 (b, 4h, 4w, channels). Of the field `frames`
    it takes the first images, repeated if there are fewer."""

    def __init__(self, config: RRDBNetConfig = RRDBNetConfig(), *, rngs: nnx.Rngs):
        make: Any = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
        features, taken = config.features, config.frames * config.channels
        super().__init__(features, config.growth, config.blocks, channels=taken, remat=config.remat, **make)
        self.unit_range, self.frames = config.unit_range, config.frames
        self.conv_up1 = conv3x3(features, features, **make)
        self.conv_up2 = conv3x3(features, features, **make)
        self.conv_hr = conv3x3(features, features, **make)
        self.conv_last = conv3x3(features, config.channels, **make)

    def __call__(self, condition: Condition):
        x = condition['lr']
        if self.frames > 1:
            x = rearrange(in_turn(*stacked(condition, self.frames), self.frames), 'b t h w c -> b h w (t c)')
        x = super().__call__((x + 1) / 2 if self.unit_range else x)
        x = lrelu(self.conv_up1(nearest_up(x, 2)))
        x = lrelu(self.conv_up2(nearest_up(x, 2)))
        image = self.conv_last(lrelu(self.conv_hr(x))).astype(jnp.float32)
        return 2 * image - 1 if self.unit_range else image
