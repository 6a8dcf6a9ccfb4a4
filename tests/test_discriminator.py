"""The discriminator against the published network, written in torch, and its spectral norm against a decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rsdiff.base.keys import Keys
from rsdiff.models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    bilinear_up,
    first_vectors,
    spectrally_normalised,
)

CHANNELS = 6
NORMALISED = [f'conv{number}' for number in range(1, 9)]


def made(config):
    discriminator = Discriminator(config, CHANNELS, rngs=Keys(0))
    graphdef, state = nnx.split(discriminator)
    return graphdef, nnx.to_pure_dict(state), first_vectors(config, jax.random.key(1))


def torch_copy(config, params, vectors):
    """Real-ESRGAN's UNetDiscriminatorSN with our parameters: (images (b, c, h, w)) → logits, and its layers by name."""
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    F, norm = torch.nn.functional, torch.nn.utils.spectral_norm
    layers = {}
    for name, layer in params.items():
        kernel = torch.from_numpy(np.array(layer['kernel'])).permute(3, 2, 0, 1).contiguous()
        bias, stride = 'bias' in layer, 2 if name in ('conv1', 'conv2', 'conv3') else 1
        conv = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], stride, 1, bias=bias)
        conv.weight.data = kernel
        if bias:
            conv.bias.data = torch.from_numpy(np.array(layer['bias']))
        layers[name] = norm(conv) if name in NORMALISED else conv
        if name in NORMALISED:
            conv.weight_u.copy_(torch.from_numpy(np.array(vectors[name])))
    run = lambda number, x: layers[f'conv{number}'](x)
    active = lambda x: F.leaky_relu(x, 0.2)
    up = lambda x: F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)

    def forward(x):
        x0 = active(run(0, x))
        x1 = active(run(1, x0))
        x2 = active(run(2, x1))
        y = active(run(4, up(active(run(3, x2)))))
        y = active(run(5, up(y + x2 if config.skip else y)))
        y = active(run(6, up(y + x1 if config.skip else y)))
        return run(9, active(run(8, active(run(7, y + x0 if config.skip else y)))))

    return forward, layers


@pytest.mark.parametrize('skip', [True, False])
def test_logits_gradients_and_vectors_are_those_of_the_published_network(skip):
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    config = DiscriminatorConfig(features=8, skip=skip, low_res=True)
    graphdef, params, vectors = made(config)
    images = np.random.default_rng(0).uniform(0, 1, (2, 16, 24, CHANNELS)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(2, 16, 24, 1)).astype(np.float32)

    @jax.jit
    def ours(params):
        logits, new = nnx.merge(graphdef, nnx.State(params))(images, vectors)
        return jnp.mean(logits * weights), (logits, new)

    (_, (logits, new)), gradients = jax.value_and_grad(ours, has_aux=True)(params)
    forward, layers = torch_copy(config, params, vectors)
    theirs = forward(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (theirs * torch.from_numpy(weights)).mean().backward()
    assert np.abs(logits).max() > 1e-3
    np.testing.assert_allclose(logits, theirs.detach(), atol=1e-5)
    for name, layer in layers.items():
        weight = layer.weight_orig if name in NORMALISED else layer.weight
        expected = weight.grad.permute(2, 3, 1, 0).numpy()
        np.testing.assert_allclose(gradients[name]['kernel'], expected, atol=1e-5 * np.abs(expected).max() + 1e-8)
        if name in NORMALISED:
            np.testing.assert_allclose(new[name], layer.weight_u, atol=1e-5)


def test_sigma_is_the_largest_singular_value():
    linalg = pytest.importorskip('scipy.linalg', reason='the reference is scipy')
    kernel = np.random.default_rng(0).normal(size=(3, 3, 5, 7)).astype(np.float32)
    u = jnp.ones(7) / np.sqrt(7)
    step = jax.jit(spectrally_normalised)
    assert linalg.svdvals(np.reshape(step(kernel, u)[0], (-1, 7)))[0] > 1.001  # one step is not enough from anywhere
    for _ in range(300):
        normalised, u = step(kernel, u)
    left, values, _ = linalg.svd(np.reshape(kernel, (-1, 7)).T)
    np.testing.assert_allclose(kernel / normalised, values[0], rtol=1e-5)
    assert abs(left[:, 0] @ np.asarray(u)) == pytest.approx(1, abs=1e-4)


def test_no_gradient_flows_into_the_vectors():
    config = DiscriminatorConfig(features=4)
    graphdef, params, vectors = made(config)
    images = jnp.ones((1, 8, 8, CHANNELS))
    mean = lambda vectors: jnp.mean(nnx.merge(graphdef, nnx.State(params))(images, vectors)[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(mean)(vectors)))
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    u = jnp.array([0.5, 0.5, 0.5, 0.5])
    new = lambda kernel: jnp.sum(spectrally_normalised(kernel, u)[1])
    assert not np.any(jax.grad(new)(kernel))


def test_enlargement_is_bilinear():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 2))
    np.testing.assert_allclose(bilinear_up(x), jax.image.resize(x, (2, 6, 10, 2), 'bilinear'), atol=1e-6)


def test_it_has_the_published_number_of_parameters():
    for channels, expected in ((3, 4_376_897), (6, 4_378_625)):
        make = lambda channels=channels: Discriminator(DiscriminatorConfig(), channels, rngs=Keys(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make)))) == expected
