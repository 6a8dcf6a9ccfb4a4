"""The perceptual loss against VGG16 in torch, layer by layer."""

import jax
import numpy as np
import pytest
from flax import nnx

from rsdiff.base.keys import Keys
from rsdiff.pretrained import lpips, perceptual, weights

SIZES = [(32, 32), (24, 40)]


@pytest.fixture(scope='module')
def params():
    """Random weights that keep activations from vanishing or exploding."""
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.normal(0, 0.1 if len(shape) == 1 else (2 / np.prod(shape[:-1])) ** 0.5, shape)
    return jax.tree.map(lambda leaf: np.float32(draw(leaf.shape)), perceptual.parameter_shapes())


def images(height, width, seed):
    return np.random.default_rng(seed).uniform(-1.1, 1.1, (2, height, width, 3)).astype(np.float32)


def torch_maps(params, x):
    """The last convolution's output in each of VGG16's five stages, for images in [-1, 1]."""
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    F = torch.nn.functional
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((torch.from_numpy(x).permute(0, 3, 1, 2) + 1) / 2 - mean) / deviation
    found, number = [], 0
    for depth in (2, 2, 3, 3, 3):
        x = F.max_pool2d(x, 2) if number else x
        for _ in range(depth):
            layer = params['convs'][number]
            kernel = torch.from_numpy(np.array(layer['kernel'])).permute(3, 2, 0, 1)
            before = F.conv2d(x, kernel, torch.from_numpy(np.array(layer['bias'])), padding=1)
            x, number = F.relu(before), number + 1
        found.append(before.permute(0, 2, 3, 1).numpy())
    return found


@pytest.mark.parametrize('height, width', SIZES)
def test_maps_are_those_of_torch_before_the_relu(params, height, width):
    x = images(height, width, 0)
    ours = jax.jit(perceptual.maps)(params, x)
    theirs = torch_maps(params, x)
    assert len(ours) == len(theirs) == len(perceptual.LAYERS)
    for a, b in zip(ours, theirs):
        assert a.min() < 0  # a ReLU would have removed these
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_the_distance_is_the_weighted_sum_of_the_layers(params):
    a, b = images(32, 32, 0), images(32, 32, 1)
    weights = 0.1, 0.2, 1.0, 2.0, 3.0
    means = [np.abs(x - y).mean((1, 2, 3)) for x, y in zip(torch_maps(params, a), torch_maps(params, b))]
    distance = jax.jit(lambda a, b: perceptual.distance(params, a, b, weights))
    np.testing.assert_allclose(distance(a, b), np.dot(weights, np.array(means)), rtol=1e-4)
    assert not np.any(distance(a, a))


def test_its_features_are_those_of_lpips_before_the_relu(params):
    x = images(32, 32, 0)
    shapes = lpips.parameter_shapes('vgg16')
    heads = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes['heads'])
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: lpips.Distance('vgg16', rngs=Keys(0))))
    net = nnx.merge(graphdef, nnx.State({'convs': params['convs'], 'heads': heads}))
    for before, after in zip(perceptual.maps(params, x), net.features(x)):
        np.testing.assert_allclose(np.maximum(before, 0), after, atol=1e-4)


def test_published_weights_are_those_of_lpips(monkeypatch):
    made = {'convs': {0: 'convolutions'}, 'heads': {}}
    monkeypatch.setattr(lpips, 'load_params', {'vgg16': made}.__getitem__)
    assert perceptual.load_params() == {'convs': {0: 'convolutions'}}
    shapes = {**weights.flatten(lpips.parameter_shapes('vgg16'))}
    assert {*weights.flatten(perceptual.parameter_shapes())} == {name for name in shapes if name.startswith('convs')}
