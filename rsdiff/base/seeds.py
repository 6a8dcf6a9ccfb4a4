"""Seeds of any size. JAX, grain and the older parts of NumPy use only 32 bits of a seed: 2³² would act like 0.

A seed that fits in 32 bits is used unchanged. Any other integer, larger or negative, is hashed, so that different seeds
stay different.
"""

import hashlib

import jax
import numpy as np

BITS = 32


def seed_key(seed: int):
    """The typed JAX key of `seed`; for a 32-bit seed, `jax.random.key(seed)`."""
    if 0 <= seed < 2**BITS:
        return jax.random.key(seed)
    first, *more = (int(word) for word in np.frombuffer(_digest(seed)[:16], '<u4'))
    key = jax.random.key(first)
    for word in more:
        key = jax.random.fold_in(key, word)
    return key


def short_seed(seed: int) -> int:
    """`seed` reduced to 32 bits; a 32-bit seed is returned unchanged."""
    return seed if 0 <= seed < 2**BITS else int.from_bytes(_digest(seed)[:4], 'little')


def written_seed(seed: int) -> int | str:
    """`seed` for our JSON files, which hold no integers beyond 64 bits: those become hexadecimal text."""
    return seed if -(2**63) <= seed < 2**64 else hex(seed)


def _digest(seed: int) -> bytes:
    return hashlib.sha256(hex(seed).encode()).digest()
