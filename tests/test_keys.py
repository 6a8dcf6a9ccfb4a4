"""Parameters are drawn from the same keys as in nnx."""

import jax
import numpy as np
from flax import nnx

from rsdiff.base.keys import Keys


def test_the_keys_are_those_of_nnx():
    ours, theirs = Keys(3), nnx.Rngs(3)
    for _ in range(4):
        np.testing.assert_array_equal(jax.random.key_data(ours.params()), jax.random.key_data(theirs.params()))


@jax.jit
def drawn(key):
    """Parameters of one layer of each kind, from our keys and from nnx's."""
    return [
        nnx.to_pure_dict(
            nnx.state(
                nnx.List(
                    [
                        nnx.Linear(2, 3, rngs=rngs),
                        nnx.Conv(3, 4, (3, 3), rngs=rngs),
                        nnx.LayerNorm(4, rngs=rngs),
                        nnx.Embed(5, 2, rngs=rngs),
                    ]
                ),
                nnx.Param,
            )
        )
        for rngs in (Keys(key), nnx.Rngs(key))
    ]


def test_layers_take_them():
    ours, theirs = map(jax.tree.leaves_with_path, drawn(jax.random.key(1)))
    for (name, one), (same, other) in zip(ours, theirs, strict=True):
        assert name == same
        np.testing.assert_array_equal(one, other)
