"""RRDBNet, the residual-in-residual dense network of ESRGAN (Wang et al. 2018, arXiv 1809.00219).

Parameter names are those of the Real-ESRGAN checkpoints. As a generator it ends in an enlarged RGB image; here
`features` serves as the encoder of the low-resolution condition.
"""

from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp


def conv3x3(features_in: int, features_out: int, *, dtype, rngs: nnx.Rngs, scale: float = 1.0):
    """A 3×3 convolution, He-initialised, `scale` times smaller as ESRGAN starts its dense blocks."""
    init = jax.nn.initializers.variance_scaling(2.0 * scale**2, 'fan_in', 'normal')
    return nnx.Conv(features_in, features_out, (3, 3), kernel_init=init, dtype=dtype, rngs=rngs)


def lrelu(x):
    """LeakyReLU with slope 0.2."""
    return jax.nn.leaky_relu(x, 0.2)


def nearest_up(x, factor: int):
    """Repeats each pixel: (b, h, w, c) → (b, h·factor, w·factor, c)."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


class ResidualDenseBlock(nnx.Module):
    """Five densely connected convolutions; the residual is added at 0.2."""

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
    """Three dense blocks in a residual of their own, again at 0.2."""

    def __init__(self, features: int, growth: int, *, dtype, rngs: nnx.Rngs):
        make = lambda: ResidualDenseBlock(features, growth, dtype=dtype, rngs=rngs)
        self.rdb1, self.rdb2, self.rdb3 = make(), make(), make()

    def __call__(self, x):
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBEncoder(nnx.Module):
    """RRDBNet up to its upsampler: (b, h, w, channels) → (b, h, w, features)."""

    def __init__(
        self, features: int, growth: int, blocks: int, *, channels: int = 3, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        self.conv_first = conv3x3(channels, features, dtype=dtype, rngs=rngs)
        self.body = nnx.List([RRDB(features, growth, dtype=dtype, rngs=rngs) for _ in range(blocks)])
        self.conv_body = conv3x3(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, lr):
        first = self.conv_first(lr)
        x = first
        for block in self.body:
            x = block(x)
        return first + self.conv_body(x)


class RRDBNet(RRDBEncoder):
    """The whole 4× network: (b, h, w, 3) → (b, 4h, 4w, 3). 64 features, growth 32, 23 blocks: 16,697,987 parameters."""

    def __init__(self, features: int = 64, growth: int = 32, blocks: int = 23, *, dtype=jnp.float32, rngs: nnx.Rngs):
        super().__init__(features, growth, blocks, dtype=dtype, rngs=rngs)
        self.conv_up1 = conv3x3(features, features, dtype=dtype, rngs=rngs)
        self.conv_up2 = conv3x3(features, features, dtype=dtype, rngs=rngs)
        self.conv_hr = conv3x3(features, features, dtype=dtype, rngs=rngs)
        self.conv_last = conv3x3(features, 3, dtype=dtype, rngs=rngs)

    def __call__(self, lr):
        x = super().__call__(lr)
        x = lrelu(self.conv_up1(nearest_up(x, 2)))
        x = lrelu(self.conv_up2(nearest_up(x, 2)))
        return self.conv_last(lrelu(self.conv_hr(x)))
