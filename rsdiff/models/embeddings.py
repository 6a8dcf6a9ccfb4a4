"""Numbers to vectors: the sinusoidal code that timestep and resolution share, each through an MLP of its own."""

import jax.numpy as jnp
from flax import nnx


def sinusoid(values, width: int, max_period: float = 10_000.0):
    """The code of Vaswani et al. 2017 (arXiv 1706.03762, §3.5): (batch,) → float32 (batch, width), width even."""
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(width // 2) / (width // 2))
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def gsd_position(gsd_m):
    """The place of a ground sampling distance on the sinusoid's axis: its logarithm, on the timestep's scale.

    Resolutions matter by their ratio, so 1 cm is put at 0, 1000 km at 1000, and each 4× step is 75 apart.

    Args:
      gsd_m: metres a pixel, positive, (batch,).
    """
    return 1000.0 * jnp.log(gsd_m / 0.01) / jnp.log(1e8)


class EmbeddingMLP(nnx.Module):
    """sinusoid → linear → SiLU → linear: (batch,) → (batch, width)."""

    def __init__(self, code_width: int, width: int, *, dtype, rngs: nnx.Rngs):
        self.code_width = code_width
        self.fc1 = nnx.Linear(code_width, width, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, values):
        return self.fc2(nnx.silu(self.fc1(sinusoid(values, self.code_width))))
