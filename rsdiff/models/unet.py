"""The generator's U-Net: noisy image, timestep and condition in; prediction out.

    spatial fields (lr …) ─ RRDB encoder ─ learned upsampling ─┐
    x_t ─ space to depth ──────────────────────────────────────┴─ concat ─ down … middle … up ─ depth to space ─ prediction
                                                                  (or align: a block that joins both, added after the first conv)
    t ─ sinusoid ─ MLP ─────────────────────┐
    numbers (gsd_m …) ─ sinusoid ─ MLP ─────┴─ sum ─ scale and shift in every block
    tokens (text …) ─ linear ─ cross-attention wherever there is self-attention

The architecture is MetaEarth's (Yu et al. 2024, arXiv 2405.13570); widths, blocks and heads are not published and are ours.
Two additions: `patch` folds patch × patch pixels into channels at input and output (Hoogeboom et al. 2023, arXiv
2301.11093, §3.3), for speed, but predicts the pixels of neighbouring patches apart, which leaves a grid. `refine` adds two
convolutions at full size, which also see x_t, to remove it.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.extend
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range
from rsdiff.models.conditioning import GSD_M, Condition, Encoded, Number, Spatial, Tokens, given, or_null, position
from rsdiff.models.embeddings import EmbeddingMLP, harmonics, sinusoid
from rsdiff.models.rrdbnet import RRDBEncoder, conv3x3, lrelu, nearest_up

MOST_LEVELS = 8
MOST_PARAMETERS = 2e10


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network, and the fields of its condition by name. Level i works at 1/(patch · 2^i) of the image size with
    width · multipliers[i] channels; `channels` is the number of image channels, `refine` that of the convolutions at full size, 0
    without them. Fields are sorted by name, so that the order in
    which a config lists them decides neither the parameters nor the result."""

    width: int = 64
    multipliers: tuple[int | float, ...] = (1, 1.5, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (2,)
    head_width: int = 32
    patch: int = 1
    channels: int = 3
    spatial: dict[str, Spatial] = dataclasses.field(default_factory=lambda: {'lr': Spatial()})
    numbers: dict[str, Number] = dataclasses.field(default_factory=lambda: {'gsd_m': GSD_M})
    tokens: dict[str, Tokens] = dataclasses.field(default_factory=dict)
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: bool = False
    refine: int = 0

    def __post_init__(self):
        for kind in ('spatial', 'numbers', 'tokens'):
            object.__setattr__(self, kind, dict(sorted(getattr(self, kind).items())))
        check_range(self, 1, 4096, 'width', 'head_width')
        check_range(self, 1e-3, 64, 'multipliers')
        check_range(self, 1, 16, 'blocks', 'patch')
        check_range(self, 1, 256, 'channels')
        check_range(self, 0, 256, 'refine')
        check_range(self, 0, MOST_LEVELS - 1, 'attention_levels')
        if not 1 <= len(self.multipliers) <= MOST_LEVELS:
            raise BadInput(f'multipliers has {len(self.multipliers)} values; it must have 1 to {MOST_LEVELS}')
        if self.width * min(self.multipliers) < 1:
            raise BadInput(f'multipliers {self.multipliers} times width {self.width} leave a level without channels')
        if self.patch not in (1, 2, 4):
            raise BadInput(f'patch is {self.patch}; it must be 1, 2 or 4')
        if self.rough_parameters > MOST_PARAMETERS:
            raise BadInput(
                f'width {self.width}, multipliers, blocks and the features, growth, blocks of spatial fields make a '
                f'network of about {self.rough_parameters:.0e} parameters; at most {MOST_PARAMETERS:.0e} are allowed'
            )
        if wrong := [name for name in self.fields if not name.isidentifier()]:
            raise BadInput(f'{ascii(wrong[0])[:60]} is not a valid field name; use letters, digits and _')
        if twice := sorted(name for name in self.fields if sum(name in kind for kind in self._kinds) > 1):
            raise BadInput(f'{twice[0]} is a field of two kinds; use each name once in spatial, numbers and tokens')
        if stacks := [name for name, field in self.spatial.items() if field.frames > 1]:
            raise BadInput(f'spatial.{stacks[0]}.frames is more than 1; a U-Net takes single images')
        levels = range(len(self.multipliers))
        attending = {*self.attention_levels, levels[-1]}
        if not attending <= {*levels}:
            raise BadInput(f'attention_levels {self.attention_levels} are not all among levels 0 to {levels[-1]}')
        if any(int(self.width * self.multipliers[level]) % self.head_width for level in attending):
            raise BadInput(f'head_width {self.head_width} does not divide the width of a level with attention')

    def __hash__(self) -> int:
        return hash(repr(self))  # dicts are not hashable

    @property
    def _kinds(self):
        return self.spatial, self.numbers, self.tokens

    @property
    def fields(self) -> dict[str, Spatial | Number | Tokens]:
        """All fields of the condition."""
        return {**self.spatial, **self.numbers, **self.tokens}

    @property
    def upscale(self) -> int:
        """Resolution of the result relative to `lr`; 1 without `lr`."""
        return self.spatial['lr'].scale if 'lr' in self.spatial else 1

    @property
    def rough_parameters(self) -> float:
        """Approximate number of parameters, from the convolutions alone."""
        squares = sum((self.width * multiplier) ** 2 for multiplier in self.multipliers)
        encoders = sum(
            27 * field.blocks * (field.features + 4 * field.growth) ** 2
            for field in self.spatial.values()
            if field.encoder == 'rrdb'
        )
        return 27 * (2 * self.blocks + 3) * squares + encoders

    def features(self, field: Spatial) -> int:
        """Number of feature channels of a spatial field at the first level."""
        return field.features if field.encoder == 'rrdb' else field.channels * self.patch**2

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this, in pixels."""
        return math.lcm(
            self.patch * 2 ** (len(self.multipliers) - 1), *(field.scale for field in self.spatial.values())
        )


def zeros(*args, **kwargs):
    """Zero initialiser, for the last layer of each residual branch, so that the block starts as the identity."""
    return jax.nn.initializers.zeros(*args, **kwargs)


def group_norm(channels: int, *, dtype, rngs: nnx.Rngs):
    """Group normalisation with at most 32 groups; statistics are float32 for every dtype."""
    return nnx.GroupNorm(channels, num_groups=math.gcd(32, channels), epsilon=1e-5, dtype=dtype, rngs=rngs)


class ResBlock(nnx.Module):
    """norm, SiLU, conv, norm · (1 + scale) + shift, SiLU, conv, plus the skip: (b, h, w, c_in) → (b, h, w, c_out)."""

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
    """Multi-head self-attention over all positions, with a residual; keeps the shape of x."""

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


class CrossAttention(nnx.Module):
    """Multi-head cross-attention from all positions to tokens (b, n, width), with a residual; keeps the shape of x."""

    def __init__(self, channels: int, head_width: int, width: int, *, dtype, rngs: nnx.Rngs):
        self.head_width = head_width
        self.norm = group_norm(channels, dtype=dtype, rngs=rngs)
        self.q = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.kv = nnx.Linear(width, 2 * channels, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x, tokens, seen):
        _, height, width, _ = x.shape
        q = rearrange(self.q(self.norm(x)), 'b h w (n d) -> b (h w) n d', d=self.head_width)
        k, v = rearrange(self.kv(tokens), 'b s (two n d) -> two b s n d', two=2, d=self.head_width)
        heads = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None, None, :])
        return x + self.out(rearrange(heads, 'b (h w) n d -> b h w (n d)', h=height, w=width))


def attention_kernel(dtype) -> Literal['cudnn'] | None:
    """cuDNN's fused kernel where available (NVIDIA GPUs, half precision); None, XLA's choice, elsewhere."""
    backend = jax.extend.backend.get_backend()
    nvidia = backend.platform == 'gpu' and 'cuda' in backend.platform_version.lower()
    return 'cudnn' if nvidia and dtype in (jnp.bfloat16, jnp.float16) else None


class Stage(nnx.Module):
    """A ResBlock; self-attention if `head_width` is given, and then cross-attention if `token_width` is given too."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        head_width: int | None,
        token_width: int | None,
        *,
        dtype,
        rngs: nnx.Rngs,
    ):
        make: Any = dict(dtype=dtype, rngs=rngs)
        self.block = ResBlock(channels_in, channels_out, embedding, **make)
        self.attention = None if head_width is None else Attention(channels_out, head_width, **make)
        self.cross = (
            CrossAttention(channels_out, head_width, token_width, **make)
            if head_width is not None and token_width is not None
            else None
        )

    def __call__(self, x, embedding, tokens=None, seen=None):
        x = self.block(x, embedding)
        x = x if self.attention is None else self.attention(x)
        return x if self.cross is None else self.cross(x, tokens, seen)


class Alignment(nnx.Module):
    """Adds features of a condition to those of the noisy image, x, by a block that sees both; at the start it adds nothing.
    Keeps the shape of x."""

    def __init__(self, channels: int, features: int, embedding: int, *, dtype, rngs: nnx.Rngs):
        self.block = ResBlock(channels + features, channels, embedding, dtype=dtype, rngs=rngs)
        self.out = nnx.Conv(channels, channels, (1, 1), kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x, features, embedding):
        return x + self.out(self.block(jnp.concatenate([x, features], axis=-1), embedding))


def folded(image, patch: int):
    """Folds patch × patch pixels into channels: (b, h, w, c) → (b, h / patch, w / patch, patch² · c)."""
    return rearrange(image, 'b (h p) (w q) c -> b h w (p q c)', p=patch, q=patch)


def _prefix(name: str) -> str:
    """Prefix of a spatial field's parameter names. `lr` and `gsd_m` keep the names used in the earliest checkpoints."""
    return '' if name == 'lr' else f'{name}_'


def _number_mlp(name: str) -> str:
    return 'gsd_mlp' if name == 'gsd_m' else f'{name}_number'


class UNet(nnx.Module):
    """See the module's docstring. Construct inside `jit` or `eval_shape`; use through `rsdiff.methods.diffusion`."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        make: Any = dict(dtype=dtype, rngs=rngs)
        widths = [int(config.width * m) for m in config.multipliers]
        embedding = 4 * config.width

        self.time_mlp = EmbeddingMLP(config.width, embedding, **make)
        for name, number in config.numbers.items():
            code = harmonics if number.code == 'cyclic' else sinusoid
            setattr(self, _number_mlp(name), EmbeddingMLP(config.width, embedding, code, **make))
        for name, field in config.spatial.items():
            if field.encoder == 'enlarged':
                continue
            channels = field.channels * max(1, config.patch // field.scale) ** 2
            sizes = field.features, field.growth, field.blocks
            setattr(self, f'{_prefix(name)}encoder', RRDBEncoder(*sizes, channels=channels, **make))
            doublings = int(math.log2(max(1, field.scale // config.patch)))
            convs = [conv3x3(field.features, field.features, **make) for _ in range(doublings)]
            setattr(self, f'{_prefix(name)}enlarge', nnx.List(convs))
        for name, field in config.tokens.items():
            setattr(self, f'{name}_tokens', nnx.Linear(field.width, embedding, **make))
        for name, field in config.fields.items():
            width = config.features(field) if isinstance(field, Spatial) else embedding
            if field.droppable:
                setattr(self, f'{name}_null', nnx.Param(jnp.zeros(width)))

        pixels = config.channels * config.patch**2
        features = sum(config.features(field) for field in config.spatial.values() if field.join == 'concatenate')
        self.conv_in = nnx.Conv(pixels + features, widths[0], (3, 3), **make)
        for name, field in config.spatial.items():
            if field.join == 'align':
                setattr(self, f'{name}_align', Alignment(widths[0], config.features(field), embedding, **make))
        token_width = embedding if config.tokens else None

        def stage(level, channels_in):
            head_width = config.head_width if level in config.attention_levels else None
            return Stage(channels_in, widths[level], embedding, head_width, token_width, **make)

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
        self.middle1 = Stage(channels, channels, embedding, config.head_width, token_width, **make)
        self.middle2 = Stage(channels, channels, embedding, None, None, **make)
        for level in reversed(levels):
            for _ in range(config.blocks + 1):
                up.append(stage(level, channels + skips.pop()))
                channels = widths[level]
            if level != 0:
                upsample.append(nnx.Conv(channels, channels, (3, 3), **make))
        self.down, self.downsample = nnx.List(down), nnx.List(downsample)
        self.up, self.upsample = nnx.List(up), nnx.List(upsample)

        self.norm_out = group_norm(channels, dtype=dtype, rngs=rngs)
        if config.refine:
            self.conv_out = nnx.Conv(channels, config.refine * config.patch**2, (3, 3), **make)
            self.refine1 = nnx.Conv(config.refine + config.channels, config.refine, (3, 3), **make)
            self.refine2 = nnx.Conv(config.refine, config.channels, (3, 3), kernel_init=zeros, **make)
        else:
            self.conv_out = nnx.Conv(channels, pixels, (3, 3), kernel_init=zeros, **make)

    def encode(self, condition: Condition) -> Encoded:
        """Encodes a condition, once for all steps.

        Args:
          condition: by the names of `config.fields`: spatial fields float32 (b, h / scale, w / scale, channels), images in
            [-1, 1]; numbers float32 (b,), such as `gsd_m`, metres per pixel of the result; tokens float32 (b, n, width).
        Raises:
          ValueError: a required field is absent, or the network does not take one of the fields.
        """
        config = self.config
        if strange := sorted({*condition} - {*config.fields}):
            raise ValueError(f'the condition has {strange[0]!r}; the network takes {", ".join(config.fields)}')

        def encoded(name, field, encode, *rest):
            return or_null(given(name, field, condition), encode, getattr(self, f'{name}_null', None), *rest)

        features = [
            encoded(name, field, functools.partial(self._features, name, field), 4)
            for name, field in config.spatial.items()
        ]
        numbers = [
            encoded(name, field, functools.partial(self._number, name, field), 2, field.low)
            for name, field in config.numbers.items()
        ]
        tokens, seen = [], []
        for name, field in config.tokens.items():
            values, null = given(name, field, condition), getattr(self, f'{name}_null', None)
            if values is not None:
                there = ~jnp.isnan(values).any(-1)
                tokens.append(getattr(self, f'{name}_tokens')(jnp.where(there[..., None], values, 0.0)))
                seen.append(there)
            if null is not None:  # one more token, attended to only if no other token is
                tokens.append(null[None, None])
                seen.append(jnp.ones((1, 1), bool) if values is None else ~there.any(-1, keepdims=True))
        return Encoded(tuple(features), sum(numbers[1:], numbers[0]) if numbers else None, tuple(tokens), tuple(seen))

    def _features(self, name: str, field: Spatial, image):
        """An image's features at the first level's size: upsampled by convolutions, or folded like the noisy image."""
        if field.encoder == 'enlarged':
            batch, height, width, channels = image.shape
            size = batch, height * field.scale, width * field.scale, channels
            return folded(jax.image.resize(image, size, 'bicubic'), self.config.patch)
        fold = max(1, self.config.patch // field.scale)
        x = getattr(self, f'{_prefix(name)}encoder')(folded(image, fold))
        for conv in getattr(self, f'{_prefix(name)}enlarge'):
            x = lrelu(conv(nearest_up(x, 2)))
        return x

    def _number(self, name: str, field: Number, values):
        return getattr(self, _number_mlp(name))(position(field, values))

    def __call__(self, xt, t, encoded: Encoded):
        """Predicts from a noisy image.

        Args:
          xt: float32 (b, h, w, channels); h and w multiples of `config.stride`.
          t: (b,), the timestep in [1, T] or another measure of the noise level in that range.
          encoded: the condition, from `encode`.
        Returns:
          float32, the shape of xt.
        """
        config = self.config
        time = self.time_mlp(t)
        embedding = nnx.silu(time if encoded.numbers is None else time + encoded.numbers)
        noisy = folded(xt, config.patch)
        features = [jnp.broadcast_to(x, (*noisy.shape[:3], x.shape[-1])) for x in encoded.features]
        named = list(zip(config.spatial.items(), features))
        beside = [x for (_, field), x in named if field.join == 'concatenate']
        x = self.conv_in(jnp.concatenate([noisy, *beside], axis=-1))
        for (name, field), own in named:
            if field.join == 'align':
                x = getattr(self, f'{name}_align')(x, own, embedding)
        attended = ()
        if encoded.tokens:
            tokens = [jnp.broadcast_to(some, (len(xt), *some.shape[1:])) for some in encoded.tokens]
            seen = [jnp.broadcast_to(some, (len(xt), *some.shape[1:])) for some in encoded.seen]
            attended = jnp.concatenate(tokens, 1), jnp.concatenate(seen, 1)

        run = nnx.remat(Stage.__call__) if config.remat else Stage.__call__
        skips = [x]
        down, up, upsample = iter(self.down), iter(self.up), iter(self.upsample)
        for level in range(len(config.multipliers)):
            for _ in range(config.blocks):
                x = run(next(down), x, embedding, *attended)
                skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
                skips.append(x)
        x = run(self.middle2, run(self.middle1, x, embedding, *attended), embedding)
        for level in reversed(range(len(config.multipliers))):
            for _ in range(config.blocks + 1):
                x = run(next(up), jnp.concatenate([x, skips.pop()], axis=-1), embedding, *attended)
            if level != 0:
                x = next(upsample)(nearest_up(x, 2))

        out = self.conv_out(nnx.silu(self.norm_out(x)))
        out = rearrange(out, 'b h w (p q c) -> b (h p) (w q) c', p=config.patch, q=config.patch)
        if config.refine:
            seen = jnp.concatenate([out, xt.astype(out.dtype)], axis=-1)
            out = self.refine2(nnx.silu(self.refine1(seen)))
        return out.astype(jnp.float32)
