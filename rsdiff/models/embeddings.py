"""Embeddings of numbers: a sinusoidal encoding, then a separate MLP for each number."""

from typing import Callable

import jax.numpy as jnp
from flax import nnx


def sinusoid(values, width: int, max_period: float = 10_000.0):
    """The encoding of Vaswani et al. 2017 (arXiv 1706.03762, §3.5): (batch,) → float32 (batch, width), width even."""
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(width // 2) / (width // 2))
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def harmonics(values, width: int):
    """Encodes an angle by its first width / 2 harmonics: (batch,) in radians → float32 (batch, width), width even."""
    angles = values.astype(jnp.float32)[:, None] * jnp.arange(1, width // 2 + 1)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class EmbeddingMLP(nnx.Module):
    """Encoding → linear → SiLU → linear: (batch,) → (batch, width)."""

    def __init__(self, code_width: int, width: int, code: Callable = sinusoid, *, dtype, rngs: nnx.Rngs):
        self.code, self.code_width = code, code_width
        self.fc1 = nnx.Linear(code_width, width, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, values):
        return self.fc2(nnx.silu(self.fc1(self.code(values, self.code_width))))
