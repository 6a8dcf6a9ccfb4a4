"""A small text tower, and a projection of image features into its embedding space.

    text     v = unit(mean over its tokens of w_token)                         (1)
    image    u = unit(V f + c),  f the features from an image tower            (2)
    logits   exp(logit_scale) · u · vᵀ                                         (3)

(3) is CLIP's (Radford et al. 2021, section 2.3). The rest is designed for a few thousand short captions, not for 400 million:
on so few, a transformer learns no more than a mean of word vectors does, as in Iyyer et al. 2015 ("Deep unordered composition
rivals syntactic methods"). The norm of a word's vector is the word's weight; word order is ignored. Padding, unknown words
and words dropped in training are excluded by the mask.

The module only defines the computation: the functions below take a `Config` and a nested dict of arrays, `params`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.keys import Keys
from rsdiff.base.ranges import check_range

LARGEST_LOGIT_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the towers. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      vocabulary: number of tokens.
      length: maximum number of tokens per text.
      features: width of the image features.
      dim: width of the shared embedding space.
    """

    vocabulary: int
    length: int = 64
    features: int = 1280
    dim: int = 512

    def __post_init__(self):
        check_range(self, 1, 1_000_000, 'vocabulary', 'length')
        check_range(self, 1, 65_536, 'features', 'dim')
        if not all(type(value) is int for value in dataclasses.astuple(self)):
            raise BadInput(f'sizes of a text tower must be integers, not {ascii(dataclasses.astuple(self))[:60]}')


class Towers(nnx.Module):
    """Parameters of (1) and (2) and the temperature; the image tower is not included."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.words = nnx.Embed(config.vocabulary, config.dim, rngs=rngs)
        self.image_projection = nnx.Linear(config.features, config.dim, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def texts(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        mask = mask.astype(jnp.float32)
        return jnp.einsum('ntd,nt->nd', self.words(ids), mask) / mask.sum(1, keepdims=True)


def init_params(config: Config, key: jax.Array) -> dict[str, Any]:
    """Random float32 parameters."""
    return nnx.to_pure_dict(nnx.state(Towers(config, Keys(key))))


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
    return nnx.split(nnx.eval_shape(lambda: Towers(config, Keys(0))))


def _module(config: Config, params: dict[str, Any]) -> Towers:
    return nnx.merge(_recipe(config)[0], params)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
