import jax
import numpy as np
import pytest
from flax import nnx
from scipy.signal import convolve

from rsdiff.pretrained.winograd import Conv3x3


@pytest.mark.parametrize('height, width', [(8, 8), (7, 10), (9, 5), (2, 1), (1, 1)])
def test_it_is_the_convolution_of_xla(height, width):
    conv = nnx.Conv(5, 6, (3, 3), padding=1, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, height, width, 5)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(Conv3x3(conv))(x), conv(x), atol=1e-5)


def test_it_is_as_exact_as_xla_beside_float64():
    conv = nnx.Conv(64, 8, (3, 3), padding=1, rngs=nnx.Rngs(0))
    x, kernel = np.random.default_rng(0).normal(size=(16, 16, 64)).astype(np.float32), np.asarray(conv.kernel[...])
    exact = np.stack(
        [
            convolve(np.pad(x.astype(float), ((1, 1), (1, 1), (0, 0))), kernel[::-1, ::-1, ::-1, k], 'valid')[..., 0]
            for k in range(8)
        ],
        -1,
    )
    error = lambda y: np.abs(np.asarray(y[0]) - exact).max()
    assert error(jax.jit(Conv3x3(conv))(x[None])) < 10 * error(jax.jit(conv)(x[None])) < 1e-4
