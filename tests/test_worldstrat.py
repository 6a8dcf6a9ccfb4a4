"""SRCNN and HighResNet against torch modules with WorldStrat's names, and the loading of their weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.keys import Keys
from rsdiff.methods import published
from rsdiff.models.highresnet import HighResNetConfig
from rsdiff.models.srcnn import SRCNNConfig
from rsdiff.models.super_resolution import make_network
from rsdiff.pretrained import worldstrat
from rsdiff.pretrained.foreign_pickle import read_torch

# torch says this of the published networks' mask encoder, which takes no channels
pytestmark = pytest.mark.filterwarnings('ignore:Initializing zero-element tensors')
KINDS = {'srcnn': SRCNNConfig, 'highresnet': HighResNetConfig}
HEIGHT, WIDTH = 5, 7
SMALL = dict(features=16, frames=3, unit_range=False)


def torch_network(config, seed=0):
    """The network in torch, with the layers that WorldStrat's modules register but do not use, and random weights. It takes
    exactly `config.frames` frames (b, t, c, h, w)."""
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    nn, functional = torch.nn, torch.nn.functional
    n, srcnn = config.features, config.kind == 'srcnn'

    def conv(inputs, outputs, side=3):
        return nn.Conv2d(inputs, outputs, side, padding='same', padding_mode='reflect')

    class Double(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            half = lambda inputs: [conv(inputs, outputs), nn.Identity(), nn.PReLU(), nn.Dropout(0.5)]
            self.doubleconv2d = nn.Sequential(*half(inputs), *half(outputs))

        def forward(self, x):
            return self.doubleconv2d(x)

    class Residual(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.residualblock = Double(width, width)

        def forward(self, x):
            return x + self.residualblock(x)

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.fuse = nn.Sequential(Residual(2 * n), conv(2 * n, n), nn.Identity(), nn.PReLU())

        def forward(self, x):
            first, second = x.chunk(2, dim=1)
            fused = self.fuse(torch.cat([first, second], dim=2).flatten(0, 1))
            return fused.unflatten(0, first.shape[:2])

    class Levels(nn.Module):
        def __init__(self, frames):
            super().__init__()
            pairs = Pairs()
            self.fusion = nn.Sequential(*(pairs for _ in range(int(np.ceil(np.log2(frames))))))

        def forward(self, x):
            missing = 2 ** len(self.fusion) - x.shape[1]
            return self.fusion(torch.cat([x, torch.zeros(len(x), missing, *x.shape[2:])], dim=1))

    class Upsampled(nn.Module):
        def __init__(self):
            super().__init__()
            inner = n // config.zoom**2
            first, second = conv(inner, inner, 1), conv(inner, config.channels, 1)
            act = lambda: (nn.Identity(), nn.PReLU())
            self.upsample = nn.Sequential(nn.PixelShuffle(config.zoom), first, *act(), second, *act())

        def forward(self, x):
            return self.upsample(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Double(config.channels * (2 if config.reference else 1), n)
            self.mask_encoder = nn.Sequential(nn.Identity(), Double(0, 1), nn.Sigmoid())
            self.doubleconv2d = Double(n * config.frames, n)
            self.residualblocks = nn.Sequential(*(Residual(n) for _ in range(getattr(config, 'blocks', 1))))
            joined = nn.Sequential(self.doubleconv2d, self.residualblocks)
            self.fusion = joined if srcnn else Levels(config.frames)
            self.sr = Upsampled()

        def forward(self, x):
            if config.reference:
                x = torch.cat([x, x.median(dim=1, keepdim=True).values.expand_as(x)], dim=2)
            encoded = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            x = self.sr(self.fusion(encoded.flatten(1, 2)) if srcnn else self.fusion(encoded)[:, 0])
            return functional.interpolate(x, (4 * HEIGHT, 4 * WIDTH), mode='bilinear', align_corners=False)

    torch.manual_seed(seed)
    network = Network().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return network


def answer(network, frames, unit_range=False):
    """The result of a torch network for frames (b, t, h, w, c) in [-1, 1], NHWC."""
    torch = pytest.importorskip('torch')
    frames = torch.from_numpy(np.asarray(frames)).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        made = network((frames + 1) / 2 if unit_range else frames).permute(0, 2, 3, 1).numpy()
    return 2 * made - 1 if unit_range else made


def state_of(network):
    return {name: np.array(tensor) for name, tensor in network.state_dict().items()}


def shapes_of(config):
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: make_network(config, rngs=Keys(0)))))


def converted(config, network):
    return worldstrat.params_from(config, shapes_of(config), state_of(network), 'x.pth')


def caller(config):
    """(params, condition) → the network's result, compiled."""
    graphdef = nnx.split(nnx.eval_shape(lambda: make_network(config, rngs=Keys(0))))[0]
    return jax.jit(lambda params, condition: nnx.merge(graphdef, nnx.State(params))(condition))


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, HEIGHT, WIDTH, 3)).astype(np.float32)


def as_field(frames):
    """(b, t, h, w, c) → (b, h, w, t · c)."""
    return np.concatenate(list(np.moveaxis(frames, 1, 0)), axis=-1)


def random_params(config):
    made = jax.jit(lambda: nnx.to_pure_dict(nnx.state(make_network(config, rngs=Keys(1)))))()
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), made)


CASES = [
    *(kind(**SMALL | {'frames': frames}) for kind in KINDS.values() for frames in (1, 2, 3, 5)),
    *(kind(features=16, frames=4, zoom=2, reference=True) for kind in KINDS.values()),
    SRCNNConfig(features=18, frames=2, zoom=3, blocks=3),
]


@pytest.mark.parametrize('config', CASES, ids=lambda config: f'{config.kind}-{config.frames}-{config.zoom}')
def test_a_loaded_network_is_the_torch_one(config, tmp_path, monkeypatch):
    network, frames = torch_network(config), images(2, config.frames)
    torch = pytest.importorskip('torch')
    torch.save({'params': network.state_dict()}, tmp_path / 'x.pth')
    tensors = worldstrat.tensors_of(read_torch(tmp_path / 'x.pth', 'state_dict'))
    sizes = worldstrat.sizes_of(tensors, 'x.pth')
    assert KINDS[sizes.pop('kind')](**sizes, unit_range=config.unit_range) == config
    monkeypatch.setitem(published.NETWORKS, 'small', published.Published(config, 64, 'https://example.org', 'CC0-1.0'))
    method, params = published.load('small', tmp_path / 'x.pth')
    assert method.model == config
    params = params['generator']
    made = caller(config)(params, {'lr': frames[:, 0], 'frames': as_field(frames)})
    expected = answer(network, frames, config.unit_range)
    assert made.shape == (2, 4 * HEIGHT, 4 * WIDTH, 3) and made.dtype == jnp.float32 and expected.std() > 0.02
    np.testing.assert_allclose(made, expected, atol=1e-5)


def with_missing(frames, patterns):
    """(b, t, …) with NaN in the frames that the patterns, strings of 0 and 1, do not have; of some, only one pixel is NaN."""
    frames = frames.copy()
    for row, pattern in enumerate(patterns):
        for number, digit in enumerate(pattern):
            if digit == '0':
                frames[row, number, number % HEIGHT :, :, :] = np.nan
    return frames


@pytest.mark.parametrize('reference', [False, True])
def test_each_example_of_a_batch_has_its_own_number_of_frames(reference):
    patterns = ['11111', '01111', '10110', '01001', '00010', '00000']
    config = HighResNetConfig(features=16, frames=5, reference=reference, unit_range=False)
    network = torch_network(config)
    frames, lr = images(len(patterns), 5), images(len(patterns), seed=1)
    field = as_field(with_missing(frames, patterns))
    call = caller(config)
    made = call(converted(config, network), {'lr': lr, 'frames': field})
    shared = {name: x for name, x in network.state_dict().items() if not name.startswith('doubleconv2d.')}
    for row, pattern in enumerate(patterns):
        own = frames[row][[digit == '1' for digit in pattern]] if '1' in pattern else lr[row : row + 1]
        alone = torch_network(dataclasses.replace(config, frames=len(own)), seed=1)
        alone.load_state_dict(shared, strict=False)
        np.testing.assert_allclose(made[row : row + 1], answer(alone, own[None]), atol=1e-5, err_msg=pattern)
    absent = call(converted(config, network), {'lr': lr})
    np.testing.assert_allclose(absent[-1], made[-1], atol=1e-6)
    assert np.abs(absent[0] - made[0]).max() > 1e-3


def test_srcnn_repeats_the_frames_that_it_lacks():
    patterns = ['111', '011', '101', '010', '000']
    config = SRCNNConfig(**SMALL)
    network = torch_network(config)
    frames, lr = images(5, 3), images(5, seed=1)
    made = caller(config)(converted(config, network), {'lr': lr, 'frames': as_field(with_missing(frames, patterns))})
    chosen = [(0, 1, 2), (1, 2, 1), (0, 2, 0), (1, 1, 1)]
    filled = np.stack([frames[row][list(order)] for row, order in enumerate(chosen)] + [lr[4][None].repeat(3, 0)])
    np.testing.assert_allclose(made, answer(network, filled), atol=1e-5)


def test_the_order_of_frames_counts_in_the_fusion_and_not_in_the_reference():
    config = HighResNetConfig(features=16, frames=4, reference=True)
    params, frames, call = random_params(config), images(1, 4), caller(config)
    at = lambda params, order: call(params, {'lr': frames[:, 0], 'frames': as_field(frames[:, order])})
    assert np.abs(at(params, [0, 1, 2, 3]) - at(params, [1, 0, 2, 3])).max() > 1e-3
    # an encoder that only sees the reference
    kernel = params['encoder']['doubleconv2d'][0]['kernel']
    params['encoder']['doubleconv2d'][0]['kernel'] = kernel.at[:, :, :3].set(0)
    np.testing.assert_array_equal(at(params, [0, 1, 2, 3]), at(params, [3, 1, 0, 2]))
    changed = frames.copy()
    changed[0, 2] += 0.5
    other = call(params, {'lr': frames[:, 0], 'frames': as_field(changed)})
    assert np.abs(other - at(params, [0, 1, 2, 3])).max() > 1e-3


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_gradients_do_not_see_what_is_missing(kind):
    """Finite, and for two of four frames those of a network that was given the two."""
    config = kind(**SMALL | {'frames': 4}, reference=True, remat=True)
    plain = dataclasses.replace(config, remat=False)
    params, frames, lr = random_params(config), images(2, 4), images(2, seed=1)
    field, own = as_field(with_missing(frames, ['0101', '1010'])), np.stack([frames[0, 1::2], frames[1, ::2]])

    def gradients(config, frames):
        loss = lambda params, lr: jnp.mean(caller(config)(params, {'lr': lr, 'frames': frames}) ** 2)
        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(params, lr))

    for a, b in zip(gradients(config, field), gradients(plain, as_field(own))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    for leaf in gradients(config, as_field(with_missing(frames, ['0000', '0111']))):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_half_precision_is_close_and_more_frames_than_asked_for_are_left_out(kind):
    config = kind(**SMALL)
    params, frames = random_params(config), images(2, 5)
    condition = {'lr': frames[:, 0], 'frames': as_field(frames)}
    made = caller(config)(params, condition)
    np.testing.assert_allclose(made, caller(config)(params, condition | {'frames': as_field(frames[:, :3])}), atol=1e-6)
    half = caller(dataclasses.replace(config, dtype='bfloat16'))(params, condition)
    assert half.dtype == jnp.float32 and 0 < np.abs(half - made).max() < 0.1 * np.abs(made).max()


def test_files_of_trainers_hold_the_network_somewhere_inside():
    plain = {'a': np.zeros(1)}
    wrapped = {'backbone.a': plain['a'], 'baseline.b': np.ones(1)}
    for tree in (plain, {'params': plain}, {'params_ema': plain, 'params': {'a': np.ones(1)}}, {'state_dict': wrapped}):
        assert worldstrat.tensors_of(tree) == plain
    assert worldstrat.tensors_of({'module.a': plain['a']}) == plain


def test_weights_of_another_network_are_refused():
    srcnn, highresnet = (kind(**SMALL) for kind in KINDS.values())
    states = {config: state_of(torch_network(config)) for config in (srcnn, highresnet)}

    def refused(config, tensors, match):
        with pytest.raises(BadInput, match=match):
            worldstrat.params_from(config, shapes_of(config), tensors, 'x.pth')

    refused(highresnet, states[srcnn], 'x.pth: expected kind highresnet.*; found kind srcnn')
    refused(srcnn, states[highresnet], 'x.pth: expected kind srcnn.*; found kind highresnet')
    refused(
        dataclasses.replace(srcnn, frames=5), states[srcnn], 'expected kind srcnn, frames 5; found kind srcnn, frames 3'
    )
    refused(dataclasses.replace(srcnn, blocks=2), states[srcnn], 'blocks 2; found .*blocks 1')
    refused(dataclasses.replace(srcnn, reference=True), states[srcnn], 'reference True; found .*reference False')
    refused(srcnn, {'conv_first.weight': np.zeros((16, 3, 3, 3))}, 'expected SRCNN or HighResNet; found .*conv_first')
    refused(srcnn, {name: x for name, x in states[srcnn].items() if name != 'sr.upsample.3.weight'}, 'missing')
    refused(srcnn, states[srcnn] | {'registration.weight': np.zeros(1)}, 'registration.weight unexpected')
    bent = dict(states[highresnet])
    bent['fusion.fusion.1.fuse.1.bias'] = bent['fusion.fusion.1.fuse.1.bias'] + 1
    refused(highresnet, bent, 'fusion.fusion.1.fuse.1.bias differs from level 0')


def test_a_highresnet_takes_any_number_of_frames():
    stored = HighResNetConfig(**SMALL | {'frames': 9})
    tensors, frames = state_of(torch_network(stored)), images(2, 3)
    config = dataclasses.replace(stored, frames=3)
    params = worldstrat.params_from(config, shapes_of(config), tensors, 'x.pth')
    made = caller(config)(params, {'lr': frames[:, 0], 'frames': as_field(frames)})
    given = worldstrat.params_from(stored, shapes_of(stored), tensors, 'x.pth')
    missing = np.full_like(as_field(images(2, 6)), np.nan)
    same = caller(stored)(given, {'lr': frames[:, 0], 'frames': np.concatenate([as_field(frames), missing], axis=-1)})
    np.testing.assert_allclose(made, same, atol=1e-5)
    single = dataclasses.replace(stored, frames=1)
    with pytest.raises(BadInput, match='expected kind highresnet, frames 1; found kind highresnet, frames 9'):
        worldstrat.params_from(single, shapes_of(single), tensors, 'x.pth')


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(BadInput, match='features is 24; it must be a multiple of zoom² = 16'):
        SRCNNConfig(features=24)
    with pytest.raises(BadInput, match='^zoom is 5'):
        HighResNetConfig(zoom=5)
    with pytest.raises(BadInput, match='^blocks is 65'):
        SRCNNConfig(blocks=65)
    assert {*SRCNNConfig(frames=1).fields} == {'lr'} and SRCNNConfig().fields['frames'].frames == 8
