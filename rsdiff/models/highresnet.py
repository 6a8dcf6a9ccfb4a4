"""HighRes-net (Deudon et al. 2020, arXiv 2002.06460): fusion of any number of images of one place, in pairs.

This is WorldStrat's form (Cornebise et al. 2022, arXiv 2207.06418), which satlas-super-resolution uses too. It shares the
encoder and the rendering, (1) and (3), with `rsdiff.models.srcnn`. The T encodings e_i are padded with zeros to a power of
two, e_i = 0 for T < i ≤ 2^L, L = ⌈log₂ T⌉. Then L levels with the same weights halve their number,

    e_i ← F([e_i, e_{i + n/2}]),  i ≤ n/2,      n = 2^L, 2^(L-1), …, 2                           (1)
    F(v) = PReLU ∘ conv(v + D(v))                                                                (2)

and the last one is rendered. The order of the frames counts, in (1) but not in their median. A batch may mix examples of
different T: one with fewer frames skips the first levels.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from rsdiff.models.frames import FramesConfig, per_frame
from rsdiff.models.srcnn import FramesNetwork, PReLU, ResidualBlock, chain, conv


class FusionBlock(nnx.Module):
    """F of (2): encodings (…, h, w, f) and their partners → (…, h, w, f)."""

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs):
        residual = ResidualBlock(2 * features, dtype=dtype, rngs=rngs)
        joined = conv(2 * features, features, dtype=dtype, rngs=rngs)
        self.fuse = nnx.List([residual, joined, None, PReLU()])

    def __call__(self, first, second):
        return chain(self.fuse, jnp.concatenate([first, second], axis=-1))


class RecursiveFusion(nnx.Module):
    """The block of all levels of (1); none if there is only one frame."""

    def __init__(self, features: int, frames: int, *, dtype, rngs: nnx.Rngs):
        blocks = [FusionBlock(features, dtype=dtype, rngs=rngs)] if frames > 1 else []
        self.fusion = nnx.List(blocks)


@dataclasses.dataclass(frozen=True)
class HighResNetConfig(FramesConfig):
    """Settings of a `HighResNet`. With more than one frame, the parameters do not depend on the number; the default has
    1,626,474."""

    kind: Literal['highresnet'] = 'highresnet'


class HighResNet(FramesNetwork):
    """The network."""

    def __init__(self, config: HighResNetConfig = HighResNetConfig(), *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.fusion = RecursiveFusion(config.features, config.frames, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def fused(self, encodings, count):
        frames = encodings.shape[1]
        exists = jnp.arange(frames) < count[:, None]
        missing = (1 << (frames - 1).bit_length()) - frames
        x = jnp.pad(jnp.where(per_frame(exists), encodings, 0.0), ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)))
        while (half := x.shape[1] // 2) > 0:
            first, second = x[:, :half], x[:, half:]
            fused = self.run(self.fusion.fusion[0], first, second)
            x = jnp.where(per_frame(count > half)[:, None], fused, first)
        return x[:, 0]
