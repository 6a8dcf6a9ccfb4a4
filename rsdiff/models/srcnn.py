"""SRCNN for several images of one place (Dong et al. 2014, arXiv 1501.00092), as WorldStrat (Cornebise et al. 2022, arXiv
2207.06418) and satlas-super-resolution (Wolters et al. 2023, arXiv 2311.18082) define it.

With frames x_1 … x_T, every convolution 3×3 with reflected borders unless stated otherwise, and D = PReLU ∘ conv ∘ PReLU ∘
conv,

    e_i = D(x_i), or D([x_i, median(x_1, …, x_T)])          encoder, the same for every frame    (1)
    u   = r_B ∘ … ∘ r_1 ∘ D'([e_1, …, e_T]),  r(v) = v + D''(v)                      fusion      (2)
    y   = resize(PReLU ∘ conv1×1 ∘ PReLU ∘ conv1×1 ∘ shuffle(u))                     rendering   (3)

where shuffle moves zoom² channels into zoom × zoom pixels, and resize is bilinear interpolation to 4×. The channels of (2)
are those of exactly T frames. An example with fewer gets its own again, in turn: WorldStrat, too, can replace an unusable
frame by a usable one.

Parameters have WorldStrat's names. Its modules train with a dropout of 0.5 after every PReLU of D; here there is none.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rsdiff.base.ranges import check_range
from rsdiff.models.conditioning import Condition
from rsdiff.models.frames import FramesConfig, in_turn, median, stacked

# PyTorch's default: uniform in ±1/√fan_in
INIT = jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def conv(features_in: int, features_out: int, side_px: int = 3, *, dtype, rngs: nnx.Rngs):
    """A convolution that reflects the image at its borders."""
    return nnx.Conv(
        features_in, features_out, (side_px, side_px), padding='REFLECT', kernel_init=INIT, dtype=dtype, rngs=rngs
    )


def chain(layers: Any, x):
    """Applies layers in turn. None stands for one without effect that the published names count, such as a dropout."""
    for layer in layers:
        x = x if layer is None else layer(x)
    return x


class PReLU(nnx.Module):
    """max(x, 0) + weight · min(x, 0)."""

    def __init__(self):
        self.weight = nnx.Param(jnp.full((1,), 0.25, jnp.float32))

    def __call__(self, x):
        return jnp.where(x >= 0, x, self.weight[...].astype(x.dtype) * x)


class DoubleConv2d(nnx.Module):
    """D of (1): (…, h, w, features_in) → (…, h, w, features_out)."""

    def __init__(self, features_in: int, features_out: int, *, dtype, rngs: nnx.Rngs):
        first = conv(features_in, features_out, dtype=dtype, rngs=rngs)
        second = conv(features_out, features_out, dtype=dtype, rngs=rngs)
        self.doubleconv2d = nnx.List([first, None, PReLU(), None, second, None, PReLU()])

    def __call__(self, x):
        return chain(self.doubleconv2d, x)


class ResidualBlock(nnx.Module):
    """r of (2)."""

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs):
        self.residualblock = DoubleConv2d(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return x + self.residualblock(x)


class PixelShuffleBlock(nnx.Module):
    """(3) without the resize: (b, h, w, features) → (b, zoom · h, zoom · w, channels)."""

    def __init__(self, features: int, channels: int, zoom: int, *, dtype, rngs: nnx.Rngs):
        self.zoom, inner = zoom, features // zoom**2
        first = conv(inner, inner, 1, dtype=dtype, rngs=rngs)
        second = conv(inner, channels, 1, dtype=dtype, rngs=rngs)
        self.upsample = nnx.List([None, first, None, PReLU(), second, None, PReLU()])

    def __call__(self, x):
        return chain(self.upsample, rearrange(x, 'b h w (c i j) -> b (h i) (w j) c', i=self.zoom, j=self.zoom))


class FramesNetwork(nnx.Module):
    """(1) and (3), with a fusion between them that subclasses define."""

    def __init__(self, config: FramesConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs, dtype = config.channels * (2 if config.reference else 1), jnp.dtype(config.dtype)
        self.encoder = DoubleConv2d(inputs, config.features, dtype=dtype, rngs=rngs)
        self.sr = PixelShuffleBlock(config.features, config.channels, config.zoom, dtype=dtype, rngs=rngs)

    def __call__(self, condition: Condition):
        """A condition with `lr` (b, h, w, channels), and possibly `frames`, as for `stacked` → float32 (b, 4h, 4w,
        channels)."""
        frames, count = stacked(condition, self.config.frames)
        if self.config.unit_range:
            frames = (frames + 1) / 2
        if self.config.reference:
            frames = jnp.concatenate([frames, jnp.broadcast_to(median(frames, count), frames.shape)], axis=-1)
        x = self.sr(self.fused(self.run(self.encoder, frames), count)).astype(jnp.float32)
        batch, height, width, channels = x.shape
        scale = self.config.upscale / self.config.zoom
        x = jax.image.resize(x, (batch, round(scale * height), round(scale * width), channels), 'bilinear')
        return 2 * x - 1 if self.config.unit_range else x

    def fused(self, encodings, count):
        """The encodings (b, t, h, w, f) of `stacked` frames, of which the first `count`, int (b,), exist → (b, h, w, f)."""
        raise NotImplementedError

    def run(self, block: Any, *inputs):
        """Applies a block, with remat if the config says so."""
        return nnx.remat(type(block).__call__)(block, *inputs) if self.config.remat else block(*inputs)


@dataclasses.dataclass(frozen=True)
class SRCNNConfig(FramesConfig):
    """Settings of an `SRCNN`; `blocks` is B of (2). The default has 1,773,803 parameters."""

    kind: Literal['srcnn'] = 'srcnn'
    blocks: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_range(self, 0, 64, 'blocks')


class SRCNN(FramesNetwork):
    """The network (1) to (3)."""

    def __init__(self, config: SRCNNConfig = SRCNNConfig(), *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        features, dtype = config.features, jnp.dtype(config.dtype)
        joined = DoubleConv2d(config.frames * features, features, dtype=dtype, rngs=rngs)
        blocks = [ResidualBlock(features, dtype=dtype, rngs=rngs) for _ in range(config.blocks)]
        self.fusion: Any = nnx.List([joined, nnx.List(blocks)])

    def fused(self, encodings, count):
        x = rearrange(in_turn(encodings, count, self.config.frames), 'b t h w f -> b h w (t f)')
        joined, blocks = self.fusion
        x = self.run(joined, x)
        for block in blocks:
            x = self.run(block, x)
        return x
