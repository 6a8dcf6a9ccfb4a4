"""The keys that a network's first parameters are drawn from."""

from typing import TYPE_CHECKING

import jax
from flax import nnx

# nnx's layers ask for an Rngs by name, and take whatever draws keys as it does
Base = nnx.Rngs if TYPE_CHECKING else object


class Keys(Base):
    """The keys of `nnx.Rngs(key)`, and in its place, but counted in Python.

    nnx counts in an array. While a program is traced that array is a tracer, and nnx asks each new count for its sharding; to
    say that it has none, JAX looks through all counts before it. The time grows with the square of the number of layers.
    """

    def __init__(self, key: jax.Array | int):
        self.key, self.drawn = jax.random.key(key) if isinstance(key, int) else key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)
