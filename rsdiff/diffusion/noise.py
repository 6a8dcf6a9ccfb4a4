"""Gaussian noise as a function of position: any crop of one infinite field, without making the rest.

The value at (y, x) depends on the key and on (y, x) alone, by counter-based hashing (Salmon et al. 2011, the threefry
generator of `jax.random`), so two crops agree exactly wherever they overlap, and nothing repeats.
"""

import jax
import jax.numpy as jnp


def crop(key, y, x, height: int, width: int, channels: int = 3):
    """Standard normal noise of the rectangle with top-left corner (y, x), float32 (height, width, channels).

    Args:
      key: a typed JAX key; it names the field.
      y, x: int32, traced or not, negative allowed.
    """
    rows = y + jnp.arange(height, dtype=jnp.int32)
    columns = x + jnp.arange(width, dtype=jnp.int32)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    pixel_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, columns)
    return jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (channels,))))(pixel_keys)


def name_key(seed: int, *names: int):
    """A key for `seed` and a path of integers such as (stage, window); the same path always gives the same key."""
    key = jax.random.key(seed)
    for name in names:
        key = jax.random.fold_in(key, name)
    return key
