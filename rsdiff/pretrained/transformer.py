"""The pre-norm transformer of CLIP's and SigLIP's towers (Vaswani et al. 2017, Dosovitskiy et al. 2021).

A layer with heads h of width d takes tokens x, (length, width):

    a_h = softmax(q_h k_hᵀ / √d) v_h,    q, k, v = W_q LN(x), W_k LN(x), W_v LN(x)                (1)
    x ← x + W_o [a_1 … a_H]                                                                    (2)
    x ← x + W_2 σ(W_1 LN(x))                                                                    (3)

The modules are named as in the Hugging Face checkpoints (`layers.0.self_attn.q_proj`), so that weights map by name.
"""

import dataclasses
import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.errors import BadInput

ACTIVATIONS = {
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'gelu_pytorch_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


# limits above the largest existing towers, yet small enough to set up quickly
LARGEST = {
    'hidden_size': 16_384,
    'intermediate_size': 65_536,
    'num_hidden_layers': 256,
    'num_attention_heads': 1024,
    'image_size': 8192,
    'patch_size': 1024,
    'num_channels': 64,
    'vocab_size': 10_000_000,
    'max_position_embeddings': 1_000_000,
    'projection_size': 65_536,
}
MOST_PARAMETERS = 2e10


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """The fields that both towers share, with Hugging Face's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float

    def __post_init__(self):
        name = type(self).__name__
        for field, most in LARGEST.items():
            if not 1 <= getattr(self, field, 1) <= most:
                raise BadInput(f'{name}: {field} is {getattr(self, field)}; it must be from 1 to {most}')
        if not 0 < self.layer_norm_eps < 1:
            raise BadInput(f'{name}: layer_norm_eps is {self.layer_norm_eps}; it must be between 0 and 1')
        if self.hidden_act not in ACTIVATIONS:
            raise BadInput(f'{name}: hidden_act is {ascii(self.hidden_act)[:60]}; supported are {sorted(ACTIVATIONS)}')
        if self.hidden_size % self.num_attention_heads:
            raise BadInput(
                f'{name}: hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} attention heads'
            )
        layer = self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)
        if self.num_hidden_layers * layer > MOST_PARAMETERS:
            raise BadInput(
                f'{name}: {self.num_hidden_layers} layers of hidden_size {self.hidden_size} have more than '
                f'{MOST_PARAMETERS:.0e} parameters'
            )


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """An image tower; sizes in pixels."""

    image_size: int
    patch_size: int
    num_channels: int = 3

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.patch_size <= self.image_size:
            raise BadInput(f'{type(self).__name__}: patch_size {self.patch_size} exceeds image_size {self.image_size}')

    @property
    def patches(self) -> int:
        """Number of patches per image. Partial patches at the far edges are ignored."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    """A text tower."""

    vocab_size: int
    max_position_embeddings: int


class Attention(nnx.Module):
    """Equation (1) and W_o of (2): (batch, length, width) → the same."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        width, layers = config.hidden_size, config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.q_proj = linear(width, width, (2 * layers * width) ** -0.5, rngs)
        self.k_proj = linear(width, width, (2 * layers * width) ** -0.5, rngs)
        self.v_proj = linear(width, width, (2 * layers * width) ** -0.5, rngs)
        self.out_proj = linear(width, width, width**-0.5, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        q, k, v = (
            einops.rearrange(project(x), 'b t (h d) -> b t h d', h=self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(einops.rearrange(jax.nn.dot_product_attention(q, k, v, mask=mask), 'b t h d -> b t (h d)'))


class MLP(nnx.Module):
    """W_2 σ(W_1 x) of (3): (batch, length, width) → the same."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        width, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        self.activation = config.hidden_act
        self.fc1 = linear(width, hidden, (2 * width) ** -0.5, rngs)
        self.fc2 = linear(hidden, width, (2 * layers * width) ** -0.5, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class EncoderLayer(nnx.Module):
    """Equations (1) to (3)."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        self.layer_norm1 = layer_norm(config, rngs)
        self.self_attn = Attention(config, rngs)
        self.layer_norm2 = layer_norm(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The layers of a tower. `mask`: True if query t may attend to key s, broadcastable to (batch, heads, t, s)."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        self.layers = nnx.List([EncoderLayer(config, rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class PatchEmbedding(nnx.Module):
    """Images (batch, size, size, channels) → (batch, patches, width): a convolution with stride equal to kernel size,
    computed as a matrix product.

    Its kernel keeps the convolution's layout (patch, patch, channels, width).
    """

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, use_bias: bool):
        shape = (config.patch_size, config.patch_size, config.num_channels, config.hidden_size)
        self.image_shape = (config.image_size, config.image_size, config.num_channels)
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(config.hidden_size)) if use_bias else None

    def __call__(self, images: jax.Array) -> jax.Array:
        if images.shape[1:] != self.image_shape:
            raise BadInput(f'images are {images.shape[1:]}; this tower takes {self.image_shape}')
        kernel = self.kernel[...]
        patch = len(kernel)
        used = images.shape[1] // patch * patch
        patches = einops.rearrange(images[:, :used, :used], 'b (h p) (w q) c -> b (h w) (p q c)', p=patch, q=patch)
        embedded = patches @ kernel.reshape(-1, kernel.shape[-1])
        return embedded if self.bias is None else embedded + self.bias[...]


class TextEmbeddings(nnx.Module):
    """Token ids (batch, length) → token embeddings with positions added, (batch, length, width)."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.token_embedding = embedding(config.vocab_size, config.hidden_size, rngs)
        self.position_embedding = embedding(config.max_position_embeddings, config.hidden_size, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        positions = self.position_embedding.embedding[...]
        if ids.shape[1] > len(positions):
            raise BadInput(f'texts of {ids.shape[1]} tokens; this tower takes {len(positions)}')
        return self.token_embedding(ids) + positions[: ids.shape[1]]


def linear(width_in: int, width_out: int, std: float, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    return nnx.Linear(width_in, width_out, use_bias=use_bias, kernel_init=nnx.initializers.normal(std), rngs=rngs)


def embedding(entries: int, width: int, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(entries, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)


def layer_norm(config: TowerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # E[x²] − E[x]² loses precision in float32 if a few channels are large, as in trained CLIP towers.
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)


def known_fields(kind: type, section: Any) -> dict[str, Any]:
    """The fields of dataclass `kind` that are in `section`, an object of a config.json.

    Raises:
      BadInput: `section` is not an object, or a field has the wrong type or is a negative integer.
    """
    if not isinstance(section, dict):
        raise BadInput(f'{kind.__name__} is {ascii(section)[:60]}; it must be an object')
    fields: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {name: section[name] for name in fields if name in section}
    for name, value in values.items():
        accepted = (int, float) if fields[name] is float else fields[name]
        if not isinstance(value, accepted) or isinstance(value, bool) or (accepted is int and value < 0):
            raise BadInput(
                f'{kind.__name__}: {name} is {ascii(value)[:60]}; it must be {fields[name].__name__}, not negative'
            )
    return values
