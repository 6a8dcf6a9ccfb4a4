"""The random keys for the initial parameters of a network."""

from typing import TYPE_CHECKING

import jax
from flax import nnx

# nnx's layers are annotated to take an Rngs, but accept any object that draws keys in the same way
Base = nnx.Rngs if TYPE_CHECKING else object


class Keys(Base):
    """A replacement for `nnx.Rngs(key)` that draws the same keys, but counts them in Python.

    nnx counts in an array. While a program is traced, that array is a tracer, and nnx asks for the sharding of each new
    count. To find that it has none, JAX searches all counts before it, so the time grows with the square of the number of
    layers.
    """

    def __init__(self, key: jax.Array | int):
        self.key, self.drawn = jax.random.key(key) if isinstance(key, int) else key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)
