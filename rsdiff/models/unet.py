"""The generator's U-Net: noisy image, timestep, low-resolution condition and resolution in; prediction out.

    lr ─ RRDB encoder ─ learned upsampling ─┐
    x_t ─ space to depth ───────────────────┴─ concat ─ down … middle … up ─ depth to space ─ prediction
    t ─ sinusoid ─ MLP ─┐
    gsd ─ sinusoid ─ MLP ┴─ sum ─ scale and shift in every block

The wiring is MetaEarth's (Yu et al. 2024, arXiv 2405.13570); widths, blocks and heads are not published and are ours.
One choice beside it: `patch` folds patch × patch pixels into channels at both ends (Hoogeboom et al. 2023, arXiv
2301.11093, §3.3), which buys speed.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.extend
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range
from rsdiff.models.embeddings import EmbeddingMLP, gsd_position
from rsdiff.models.rrdbnet import RRDBEncoder, conv3x3, lrelu, nearest_up

MOST_LEVELS = 8
MOST_PARAMETERS = 2e10


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network. Level i works at 1/(patch · 2^i) of the image size with width · multipliers[i] channels."""

    width: int = 64
    multipliers: tuple[int | float, ...] = (1, 1.5, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (2,)
    head_width: int = 32
    patch: int = 1
    upscale: int = 4
    rrdb_features: int = 32
    rrdb_growth: int = 16
    rrdb_blocks: int = 2
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: bool = False

    def __post_init__(self):
        check_range(self, 1, 4096, 'width', 'head_width')
        check_range(self, 1e-3, 64, 'multipliers')
        check_range(self, 1, 16, 'blocks', 'patch', 'upscale')
        check_range(self, 0, MOST_LEVELS - 1, 'attention_levels')
        check_range(self, 1, 1024, 'rrdb_features', 'rrdb_growth')
        check_range(self, 0, 64, 'rrdb_blocks')
        if not 1 <= len(self.multipliers) <= MOST_LEVELS:
            raise BadInput(f'multipliers are {len(self.multipliers)}; there must be 1 to {MOST_LEVELS}')
        if self.width * min(self.multipliers) < 1:
            raise BadInput(f'multipliers {self.multipliers} of width {self.width} leave a level without channels')
        if len(self.attention_levels) > MOST_LEVELS:
            raise BadInput(f'attention_levels are {len(self.attention_levels)}; there must be {MOST_LEVELS} at most')
        if self.rough_parameters > MOST_PARAMETERS:
            raise BadInput(
                f'width {self.width}, multipliers, blocks and rrdb_features, rrdb_growth, rrdb_blocks make a network '
                f'of some {self.rough_parameters:.0e} parameters; there must be {MOST_PARAMETERS:.0e} at most'
            )

    @property
    def rough_parameters(self) -> float:
        """About as many as the network has, from its convolutions alone."""
        squares = sum((self.width * multiplier) ** 2 for multiplier in self.multipliers)
        encoder = 27 * self.rrdb_blocks * (self.rrdb_features + 4 * self.rrdb_growth) ** 2
        return 27 * (2 * self.blocks + 3) * squares + encoder

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this many pixels."""
        return math.lcm(self.patch * 2 ** (len(self.multipliers) - 1), self.upscale)


def zeros(*args, **kwargs):
    """An initialiser: the last convolution of each residual branch starts at zero, so the block starts as identity."""
    return jax.nn.initializers.zeros(*args, **kwargs)


def group_norm(channels: int, *, dtype, rngs: nnx.Rngs):
    """Group normalisation with at most 32 groups; statistics are float32 whatever the dtype."""
    return nnx.GroupNorm(channels, num_groups=math.gcd(32, channels), epsilon=1e-5, dtype=dtype, rngs=rngs)


class ResBlock(nnx.Module):
    """norm, SiLU, conv, norm · (1 + scale) + shift, SiLU, conv, and the skip: (b, h, w, c_in) → (b, h, w, c_out)."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, *, dtype, rngs: nnx.Rngs):
        self.norm1 = group_norm(channels_in, dtype=dtype, rngs=rngs)
        self.conv1 = nnx.Conv(channels_in, channels_out, (3, 3), dtype=dtype, rngs=rngs)
        self.modulation = nnx.Linear(embedding, 2 * channels_out, dtype=dtype, rngs=rngs)
        self.norm2 = group_norm(channels_out, dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(channels_out, channels_out, (3, 3), kernel_init=zeros, dtype=dtype, rngs=rngs)
        same = channels_in == channels_out
        self.skip = None if same else nnx.Conv(channels_in, channels_out, (1, 1), dtype=dtype, rngs=rngs)

    def __call__(self, x, embedding):
        h = self.conv1(nnx.silu(self.norm1(x)))
        scale, shift = jnp.split(self.modulation(embedding)[:, None, None], 2, axis=-1)
        h = self.conv2(nnx.silu(self.norm2(h) * (1 + scale) + shift))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nnx.Module):
    """Multi-head self-attention over all positions, with a residual: the shape of x is kept."""

    def __init__(self, channels: int, head_width: int, *, dtype, rngs: nnx.Rngs):
        self.head_width = head_width
        self.norm = group_norm(channels, dtype=dtype, rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        _, height, width, _ = x.shape
        q, k, v = rearrange(
            self.qkv(self.norm(x)), 'b h w (three n d) -> three b (h w) n d', three=3, d=self.head_width
        )
        heads = jax.nn.dot_product_attention(q, k, v, implementation=attention_kernel(q.dtype))
        return x + self.out(rearrange(heads, 'b (h w) n d -> b h w (n d)', h=height, w=width))


def attention_kernel(dtype) -> str | None:
    """cuDNN's fused kernel where there is one, on NVIDIA GPUs for half precision; elsewhere XLA's choice."""
    backend = jax.extend.backend.get_backend()
    nvidia = backend.platform == 'gpu' and 'cuda' in backend.platform_version.lower()
    return 'cudnn' if nvidia and dtype in (jnp.bfloat16, jnp.float16) else None


class Stage(nnx.Module):
    """A ResBlock, and attention where the level has it."""

    def __init__(
        self, channels_in: int, channels_out: int, embedding: int, head_width: int | None, *, dtype, rngs: nnx.Rngs
    ):
        self.block = ResBlock(channels_in, channels_out, embedding, dtype=dtype, rngs=rngs)
        self.attention = None if head_width is None else Attention(channels_out, head_width, dtype=dtype, rngs=rngs)

    def __call__(self, x, embedding):
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x)


class UNet(nnx.Module):
    """See the module's docstring. Construct inside `jit` or `eval_shape`; use through `rsdiff.methods.diffusion`."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        make = dict(dtype=dtype, rngs=rngs)
        widths = [int(config.width * m) for m in config.multipliers]
        embedding = 4 * config.width

        self.time_mlp = EmbeddingMLP(config.width, embedding, **make)
        self.gsd_mlp = EmbeddingMLP(config.width, embedding, **make)
        self.encoder = RRDBEncoder(config.rrdb_features, config.rrdb_growth, config.rrdb_blocks, **make)
        doublings = int(math.log2(config.upscale // config.patch))
        self.enlarge = nnx.List([conv3x3(config.rrdb_features, config.rrdb_features, **make) for _ in range(doublings)])

        pixels = 3 * config.patch**2
        self.conv_in = nnx.Conv(pixels + config.rrdb_features, widths[0], (3, 3), **make)

        def stage(level, channels_in):
            attends = level in config.attention_levels
            return Stage(channels_in, widths[level], embedding, config.head_width if attends else None, **make)

        levels = range(len(widths))
        skips = [widths[0]]
        down, downsample, up, upsample = [], [], [], []
        channels = widths[0]
        for level in levels:
            for _ in range(config.blocks):
                down.append(stage(level, channels))
                channels = widths[level]
                skips.append(channels)
            if level != levels[-1]:
                downsample.append(nnx.Conv(channels, channels, (3, 3), strides=2, **make))
                skips.append(channels)
        self.middle1 = Stage(channels, channels, embedding, config.head_width, **make)
        self.middle2 = Stage(channels, channels, embedding, None, **make)
        for level in reversed(levels):
            for _ in range(config.blocks + 1):
                up.append(stage(level, channels + skips.pop()))
                channels = widths[level]
            if level != 0:
                upsample.append(nnx.Conv(channels, channels, (3, 3), **make))
        self.down, self.downsample = nnx.List(down), nnx.List(downsample)
        self.up, self.upsample = nnx.List(up), nnx.List(upsample)

        self.norm_out = group_norm(channels, dtype=dtype, rngs=rngs)
        self.conv_out = nnx.Conv(channels, pixels, (3, 3), kernel_init=zeros, **make)

    def condition_features(self, lr):
        """The condition at the first level's size: (b, h, w, 3) → (b, h·upscale/patch, w·upscale/patch, features)."""
        x = self.encoder(lr)
        for conv in self.enlarge:
            x = lrelu(conv(nearest_up(x, 2)))
        return x

    def __call__(self, xt, t, lr, gsd_m):
        """Predicts from a noisy image.

        Args:
          xt: float32 (b, h, w, 3); h and w multiples of `config.stride`.
          t: int32 (b,) in [1, T].
          lr: float32 (b, h / upscale, w / upscale, 3) in [-1, 1], the condition.
          gsd_m: float32 (b,), metres a pixel of xt.
        Returns:
          float32, the shape of xt.
        """
        config = self.config
        embedding = nnx.silu(self.time_mlp(t) + self.gsd_mlp(gsd_position(gsd_m)))
        folded = rearrange(xt, 'b (h p) (w q) c -> b h w (p q c)', p=config.patch, q=config.patch)
        x = self.conv_in(jnp.concatenate([folded, self.condition_features(lr)], axis=-1))

        run = nnx.remat(Stage.__call__) if config.remat else Stage.__call__
        skips = [x]
        down, up, upsample = iter(self.down), iter(self.up), iter(self.upsample)
        for level in range(len(config.multipliers)):
            for _ in range(config.blocks):
                x = run(next(down), x, embedding)
                skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
                skips.append(x)
        x = run(self.middle2, run(self.middle1, x, embedding), embedding)
        for level in reversed(range(len(config.multipliers))):
            for _ in range(config.blocks + 1):
                x = run(next(up), jnp.concatenate([x, skips.pop()], axis=-1), embedding)
            if level != 0:
                x = next(upsample)(nearest_up(x, 2))

        out = self.conv_out(nnx.silu(self.norm_out(x))).astype(jnp.float32)
        return rearrange(out, 'b h w (p q c) -> b (h p) (w q) c', p=config.patch, q=config.patch)
