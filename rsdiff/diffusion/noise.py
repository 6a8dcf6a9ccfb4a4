"""Gaussian noise as a function of position: any crop of one infinite field, without generating the rest.

The value at (y, x) depends only on the key and on (y, x), by counter-based hashing (Salmon et al. 2011, the threefry
generator of `jax.random`). Two crops therefore agree exactly where they overlap, and nothing repeats unless a period is
requested.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from rsdiff.base.seeds import seed_key

Kind = Literal['independent', 'shared', 'periodic', 'anchored']


def crop(key, y, x, height: int, width: int, channels: int = 3, *, around: Any = None, tile: int | None = None):
    """Standard normal noise in the rectangle with top-left corner (y, x), float32 (height, width, channels).

    Args:
      key: a typed JAX key; it selects the field.
      y, x: int32, traced or not, negative allowed.
      around: the circumference in columns, if the plane is a cylinder.
      tile: the period of the field, in rows and columns.
    """
    rows, columns = (start + jnp.arange(length, dtype=jnp.int32) for start, length in ((y, height), (x, width)))
    columns = columns if around is None else columns % around
    rows, columns = (index if tile is None else index % tile for index in (rows, columns))
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    pixel_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, columns)
    return jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (channels,))))(pixel_keys)


def windows(kind: Kind, key, corners, window_px: int, around: int | None = None, channels: int = 3):
    """The initial noise of each window.

    Args:
      kind: 'anchored', a crop at the window's position of one infinite field, which never repeats and on which
        overlapping windows agree; 'periodic', likewise from a field that repeats every `window_px`; 'shared', one tile
        for all windows (MetaEarth, Yu et al. 2024); 'independent', a separate tile for each window.
      corners: int32 (b, 2), the top-left corners.
      around: see `crop`; windows `around` columns apart get the same noise.
    Returns:
      float32 (b, window_px, window_px, channels).
    """

    size = window_px, window_px, channels

    def one(corner):
        y, x = corner
        if kind == 'anchored':
            return crop(key, y, x, *size, around=around)
        if kind == 'periodic':
            return crop(key, y, x, *size, around=around, tile=window_px)
        if kind == 'shared':
            return crop(key, 0, 0, *size)
        if kind == 'independent':
            own = jax.random.fold_in(jax.random.fold_in(key, y), x if around is None else x % around)
            return crop(own, 0, 0, *size)
        raise ValueError(f"noise is {kind!r}; it must be one of 'independent', 'shared', 'periodic', 'anchored'")

    return jax.vmap(one)(corners)


def at_step(key, t, corners, height: int, width: int, channels: int, around: Any = None):
    """The noise that a stochastic solver adds in the step from `t`, at each of `corners` int32 (b, 2) of the field that `key`
    selects: standard normal, float32 (b, height, width, channels). Windows agree where they overlap.

    Args:
      around: see `crop`; may be traced.
    """
    own = jax.random.fold_in(key, t)
    return jax.vmap(lambda corner: crop(own, corner[0], corner[1], height, width, channels, around=around))(corners)


def name_key(seed: int, *names: int):
    """A key for `seed` (any integer) and a path of integers such as (stage, window). The same path always gives the same
    key."""
    key = seed_key(seed)
    for name in names:
        key = jax.random.fold_in(key, name)
    return key
