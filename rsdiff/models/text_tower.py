"""A small text tower, and what brings features of images into its space.

    tokens   e_t = embedding[id_t] + position_t
    block    x ← x + attention(norm x),  x ← x + mlp(norm x)                  every token sees every other
    text     v = unit(W · mean over tokens of norm x)                         (1)
    image    u = unit(V f + c),  f the features that an image tower made      (2)
    logits   exp(logit_scale) · u · vᵀ                                        (3)

(3) is CLIP's (Radford et al. 2021, section 2.3); the rest is for a few thousand captions, not for 400 million: the mean
instead of an end token, no mask but that of padding, and nothing learned before the features. A token that the mask leaves
out is not there: that is how padding, unknown words and words dropped in training are told.

The module is only ever a recipe: the functions below take a `Config` and a nested dict of arrays, `params`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

LARGEST_LOGIT_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hashable, so it may be a static argument of `jax.jit`.

    Attributes:
      vocabulary: number of tokens.
      length: the most tokens of a text.
      width, layers, heads: of the text tower.
      features: width of the image features.
      dim: width of the common space.
    """

    vocabulary: int
    length: int = 32
    width: int = 128
    layers: int = 2
    heads: int = 4
    features: int = 1280
    dim: int = 256


class Block(nnx.Module):
    """A pre-norm transformer block, (n, length, width) → the same."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(config.width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(config.heads, config.width, decode=False, rngs=rngs)
        self.fc1 = nnx.Linear(config.width, 4 * config.width, rngs=rngs)
        self.fc2 = nnx.Linear(4 * config.width, config.width, rngs=rngs)

    def __call__(self, x: jax.Array, visible: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x), mask=visible)
        return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x))))


class Towers(nnx.Module):
    """(1), (2) without the image tower, and the temperature."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.token = nnx.Embed(config.vocabulary, config.width, embedding_init=small, rngs=rngs)
        self.position = nnx.Embed(config.length, config.width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.text_projection = nnx.Linear(config.width, config.dim, use_bias=False, rngs=rngs)
        self.image_projection = nnx.Linear(config.features, config.dim, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def texts(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        mask = mask.astype(bool)
        x = self.token(ids) + self.position.embedding[:ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        x = jnp.where(mask[..., None], self.norm(x), 0).sum(1) / mask.sum(1, keepdims=True)
        return self.text_projection(x)


def init_params(config: Config, key: jax.Array) -> dict[str, Any]:
    """Random float32 parameters."""
    return nnx.to_pure_dict(nnx.state(Towers(config, nnx.Rngs(key))))


def parameter_shapes(config: Config) -> dict[str, Any]:
    """Shapes and dtypes of the parameters, a nested dict; allocates nothing."""
    return nnx.to_pure_dict(_recipe(config)[1])


def encode_features(config: Config, params: dict[str, Any], features: jax.Array) -> jax.Array:
    """(2): features (n, config.features) → unit vectors (n, dim)."""
    return _unit(_module(config, params).image_projection(features))


def encode_texts(config: Config, params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """(1): ids and mask (n, length ≤ config.length), each row with at least one token → unit vectors (n, dim)."""
    if ids.shape[1] > config.length:
        raise ValueError(f'texts of {ids.shape[1]} tokens; this tower takes {config.length}')
    return _unit(_module(config, params).texts(ids, mask))


def logits(params: dict[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
    """(3) of unit vectors (n, dim) and (m, dim): (n, m)."""
    return jnp.exp(jnp.minimum(params['logit_scale'], LARGEST_LOGIT_SCALE)) * images @ texts.T


@functools.lru_cache
def _recipe(config: Config) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Towers(config, nnx.Rngs(0))))


def _module(config: Config, params: dict[str, Any]) -> Towers:
    return nnx.merge(_recipe(config)[0], params)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
