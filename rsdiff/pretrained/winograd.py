"""3 × 3 convolutions with fewer multiplications (Winograd 1980; Lavin & Gray 2016, arXiv 1509.09308).

Two neighbouring outputs y of a filter with three taps g are computed from four inputs d with four multiplications
instead of six,

    y = A [(G g) ⊙ (B d)]                                                 (1)

and 2 × 2 outputs, by (1) along rows and columns, with 16 instead of 36:

    Y = A [(G g Gᵀ) ⊙ (B D Bᵀ)] Aᵀ                                        (2)

Over the channels, each of the 16 is a matrix product. On CPUs, where XLA's convolutions are as fast as its matrix
products, (2) takes slightly more than half the time of a wide convolution. GPU libraries use such methods themselves.
"""

from typing import Any, Sequence, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

B = (1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)
G = (1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)
A = (1, 1, 1, 0), (0, 1, -1, -1)


class Conv3x3(nnx.Module):
    """`conv`, computed by (2). It must have a 3 × 3 kernel, stride 1, zero padding and a bias."""

    def __init__(self, conv: nnx.Conv):
        # separate arrays: slices of a single one would be copied in every call
        self.taps = nnx.List(
            [
                nnx.List([nnx.Param(jnp.asarray(tap)) for tap in _mix(G, line)])
                for line in _mix(G, np.asarray(conv.kernel[...]))
            ]
        )
        self.bias = cast(nnx.Param, conv.bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, h, w, c) → (n, h, w, channels)."""
        height, width = x.shape[1:3]
        rows, columns = -(-height // 2), -(-width // 2)
        x = jnp.pad(x, ((0, 0), (1, 2 * rows - height + 1), (1, 2 * columns - width + 1), (0, 0)))
        lines = _mix(B, [x[:, i : i + 2 * rows - 1 : 2] for i in range(4)])
        tiles = [_mix(B, [line[:, :, j : j + 2 * columns - 1 : 2] for j in range(4)]) for line in lines]
        products = [[d @ g[...] for d, g in zip(*line)] for line in zip(tiles, self.taps)]
        y = [_mix(A, column) for column in zip(*(_mix(A, line) for line in products))]
        y = rearrange(jnp.stack([jnp.stack(column) for column in y]), 'j i n y x c -> n (y i) (x j) c')
        return y[:, :height, :width] + self.bias[...]


def _mix(matrix: Sequence[Sequence[float]], vector: Sequence[Any] | np.ndarray) -> list[Any]:
    """The product of `matrix` and `vector`."""
    return [sum(weight * x for weight, x in zip(row, vector) if weight) for row in matrix]
