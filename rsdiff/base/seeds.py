"""Any whole number as a seed. JAX knows 32 bits of one, and so do grain and NumPy's older parts: 2³² would be 0.

A seed of 32 bits means what it always did. Any other, larger or negative, is hashed, so that different ones differ.
"""

import hashlib

import jax
import numpy as np

BITS = 32


def seed_key(seed: int):
    """The typed JAX key of `seed`; of one of 32 bits it is `jax.random.key(seed)`."""
    if 0 <= seed < 2**BITS:
        return jax.random.key(seed)
    first, *more = (int(word) for word in np.frombuffer(_digest(seed)[:16], '<u4'))
    key = jax.random.key(first)
    for word in more:
        key = jax.random.fold_in(key, word)
    return key


def short_seed(seed: int) -> int:
    """`seed` as 32 bits, for what takes no more; of one of 32 bits it is itself."""
    return seed if 0 <= seed < 2**BITS else int.from_bytes(_digest(seed)[:4], 'little')


def written_seed(seed: int) -> int | str:
    """`seed` as our JSON keeps it, which has no numbers beyond 64 bits: those as text."""
    return seed if -(2**63) <= seed < 2**64 else hex(seed)


def _digest(seed: int) -> bytes:
    return hashlib.sha256(hex(seed).encode()).digest()
