"""Published RRDBNets: the same function as the originals, written here in torch, and releases like any other."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from scripts import error_line, last_line, run_script

from rsdiff.base.errors import BadInput
from rsdiff.data.fingerprints import known_of
from rsdiff.data.images import read_image, write_image
from rsdiff.methods import published
from rsdiff.methods.base import GENERATOR
from rsdiff.methods.published import Published
from rsdiff.methods.regression import Regression, RegressionConfig
from rsdiff.models.frames import in_turn, stacked
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.pretrained import weights
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.training.checkpoint import load_generator
from rsdiff.training.conversion import convert_published

SMALL = RRDBNetConfig(features=8, growth=4, blocks=2, unit_range=True)


@pytest.fixture(scope='module')
def torch():
    return pytest.importorskip('torch', reason='the reference is written in torch; pip install rsdiff-jax[parity]')


def reference(torch, config, seed=0):
    """An RRDBNet with BasicSR's names and random weights, which takes and returns pixels in [0, 1] or in [-1, 1]."""
    features, growth = config.features, config.growth
    conv = lambda width_in, width: torch.nn.Conv2d(width_in, width, 3, 1, 1)
    lrelu = lambda x: torch.nn.functional.leaky_relu(x, 0.2)
    twice = lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode='nearest')

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for n in range(5):
                self.add_module(f'conv{n + 1}', conv(features + n * growth, growth if n < 4 else features))

        def forward(self, x):
            seen = x
            for one in (self.conv1, self.conv2, self.conv3, self.conv4):
                seen = torch.cat([seen, lrelu(one(seen))], 1)
            return x + 0.2 * self.conv5(seen)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rdb1, self.rdb2, self.rdb3 = Dense(), Dense(), Dense()

        def forward(self, x):
            return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_first = conv(config.frames * config.channels, features)
            self.body = torch.nn.Sequential(*(Block() for _ in range(config.blocks)))
            self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (conv(features, features) for _ in range(4))
            self.conv_last = conv(features, config.channels)

        def forward(self, x):
            x = self.conv_first(x)
            x = x + self.conv_body(self.body(x))
            x = lrelu(self.conv_up2(twice(lrelu(self.conv_up1(twice(x))))))
            return self.conv_last(lrelu(self.conv_hr(x)))

    torch.manual_seed(seed)
    network = Network().eval()
    for parameter in network.parameters():
        # loud enough for every layer to matter
        torch.nn.init.normal_(parameter, std=1 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1)
    torch.nn.init.constant_(network.conv_last.bias, 0.5)
    return network


def ran(torch, network, images):
    """NHWC → NHWC, both in [0, 1]."""
    with torch.no_grad():
        return network(torch.tensor(images.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)


def predicted(config, params, condition):
    """The prediction in [-1, 1] of a regression."""
    run = jax.jit(lambda params, condition: Regression(config).predict(params, {}, condition)(None, None))
    return np.asarray(run(params, condition))


@pytest.fixture
def small(monkeypatch):
    """The name of a small network, as if it were published; (its config) → …"""

    def publish(model=SMALL):
        monkeypatch.setitem(published.NETWORKS, 'small', Published(model, 64, 'https://example.org', 'CC0-1.0'))
        return 'small'

    return publish


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def saved(torch, network, path):
    torch.save({'params_ema': network.state_dict()}, path)
    return path


@pytest.mark.parametrize('unit_range', [True, False])
def test_the_network_is_the_original(torch, small, tmp_path, unit_range):
    model = dataclasses.replace(SMALL, unit_range=unit_range)
    network = reference(torch, model)
    config, params = published.load(small(model), saved(torch, network, tmp_path / 'x.pth'))
    images = pictures(2, 12, 10, 3)
    to_unit, from_unit = (lambda x: (x + 1) / 2, lambda x: 2 * x - 1) if unit_range else (lambda x: x, lambda x: x)
    lr = 2 * images - 1
    expected = from_unit(ran(torch, network, to_unit(lr)))
    assert expected.std() > 0.05 and expected.shape == (2, 48, 40, 3)
    assert np.abs(predicted(config, params, {'lr': lr}) - expected).max() < 1e-5


def test_frames_are_stacked_in_order(torch, small, tmp_path):
    model = dataclasses.replace(SMALL, frames=3)
    network = reference(torch, model)
    config, params = published.load(small(model), saved(torch, network, tmp_path / 'x.pth'))
    images = pictures(2, 8, 12, 9)
    condition = {'lr': 2 * images[..., 3:6] - 1, 'frames': 2 * images - 1}
    expected = 2 * ran(torch, network, images) - 1
    assert np.abs(predicted(config, params, condition) - expected).max() < 1e-5
    alone = ran(torch, network, np.tile(images[..., 3:6], 3))
    assert np.abs(predicted(config, params, {'lr': condition['lr']}) - (2 * alone - 1)).max() < 1e-5
    # as the samplers see it: lr is needed, frames are not
    fields = config.fields
    assert not fields['lr'].droppable and fields['frames'].droppable and fields['frames'].frames == 3


def test_missing_frames_are_repeated_from_those_that_exist():
    frames = np.zeros((4, 2, 2, 5), np.float32) + np.arange(1, 6)
    frames[1, ..., 1] = frames[1, 0, 1, 3] = np.nan  # one that does not exist, and one of which a part does not
    frames[2, ..., :4] = np.nan
    frames[3] = np.nan
    condition = {'lr': np.full((4, 2, 2, 1), 9, np.float32), 'frames': frames}
    taken = np.asarray(in_turn(*stacked(condition, 4), 4))[..., 0]
    assert (taken == taken[:, :, :1, :1]).all()
    np.testing.assert_array_equal(taken[:, :, 0, 0], [[1, 2, 3, 4], [1, 3, 5, 1], [5, 5, 5, 5], [9, 9, 9, 9]])
    np.testing.assert_array_equal(in_turn(*stacked({'lr': condition['lr']}, 2), 2), np.full((4, 2, 2, 2, 1), 9))


def test_only_differing_settings_change_a_config():
    assert {*RRDBNetConfig().fields} == {'lr'}
    with pytest.raises(BadInput, match='frames is 0'):
        RRDBNetConfig(frames=0)


def test_a_release_has_the_weights_without_loss(torch, small, tmp_path):
    network = reference(torch, SMALL)
    path = saved(torch, network, tmp_path / 'x.pth')
    told = convert_published(small(), path, tmp_path / 'out')
    trained = load_generator(tmp_path / 'out')
    assert trained.config.method == RegressionConfig(model=SMALL) and trained.config.data.size_px == 64
    tensors = weights.to_torch(trained.params[GENERATOR])
    assert {*tensors} == {*network.state_dict()}
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensors[name], tensor.numpy())
    assert told['digest'] == trained.digest and trained.images_seen is None
    assert told['parameters'] == sum(tensor.numel() for tensor in network.state_dict().values())
    assert told['files']['x.pth']['size'] == path.stat().st_size and told['licence'] == 'CC0-1.0'
    assert not known_of(tmp_path / 'out').names and 'unknown' in told['trained_on']


def test_every_form_of_checkpoint_is_read(torch, small, tmp_path):
    state, other = (reference(torch, SMALL, seed).state_dict() for seed in (0, 1))
    name = small()
    forms = {
        'both.pth': {'params': other, 'params_ema': state},
        'params.pth': {'params': state},
        'bare.pth': state,
        'training.pth': {'params_ema': state, 'iter': 7, 'optimizers': [None]},
    }
    for file, content in forms.items():
        torch.save(content, tmp_path / file)
    torch.save(forms['both.pth'], tmp_path / 'former.pth', _use_new_zipfile_serialization=False)
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    weights.write_safetensors(tmp_path / 'x.safetensors', arrays)
    for path in sorted(tmp_path.iterdir()):
        params = published.load(name, path)[1][GENERATOR]
        for key, tensor in weights.to_torch(params).items():
            np.testing.assert_array_equal(tensor, arrays[key], err_msg=path.name)


@pytest.mark.parametrize(
    'other, expected, found',
    [
        (dict(blocks=1), ('72 tensors', 'body.1.rdb1.conv1.bias (4,)'), ('42 tensors', 'absent')),
        (dict(blocks=3), ('72 tensors', 'absent'), ('102 tensors', 'body.2.rdb1.conv1.weight (4, 8, 3, 3)')),
        (dict(frames=8), ('conv_first.weight (8, 3, 3, 3)',), ('conv_first.weight (8, 24, 3, 3)',)),
        (dict(features=16), ('(4, 8, 3, 3)',), ('(4, 16, 3, 3)',)),
    ],
)
def test_another_architecture_is_refused(torch, small, tmp_path, other, expected, found):
    network = reference(torch, dataclasses.replace(SMALL, **other))
    path = saved(torch, network, tmp_path / 'x.pth')
    with pytest.raises(BadInput) as raised:
        published.load(small(), path)
    message = str(raised.value)
    assert message.startswith(f'{path}: ') and 'small' in message and '\n' not in message
    wanted, given = message.split('found')
    assert all(word in wanted for word in expected) and all(word in given for word in found), message


def test_the_command_refuses_what_it_cannot_convert(tmp_path):
    """One line: a file of another network, a name of no package, a name with another architecture."""
    weights.write_safetensors(tmp_path / 'x.safetensors', {'fc.weight': np.zeros((2, 2), np.float32)})
    for checkpoint, architecture, words in (
        (tmp_path / 'x.safetensors', 'realesrgan-x4plus', ('702 tensors', 'found 1 tensors')),
        ('no-such', None, ('neither', 'realesrgan-x4plus')),
        ('realsr-df2k', 'satlas-esrgan-8s2', ('--architecture',)),
    ):
        flags = [f'--checkpoint={checkpoint}', f'--out={tmp_path / "out"}']
        flags += [f'--architecture={architecture}'] if architecture else []
        error = error_line(run_script('tools/convert_weights.py', *flags))
        assert all(word in error for word in words), error
    assert not (tmp_path / 'out').exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None)
    with pytest.raises(BadInput, match='baselines'):
        published.packaged('realesrgan-x4plus')
    with pytest.raises(BadInput, match='no package'):
        published.packaged('satlas-esrgan-8s2')


@pytest.fixture(scope='module')
def converted(tmp_path_factory, torch):
    """Releases of a network of one image and of one of two, with random weights."""
    base, found = tmp_path_factory.mktemp('converted'), {}
    with pytest.MonkeyPatch.context() as patch:
        for frames in (1, 2):
            model = dataclasses.replace(SMALL, frames=frames)
            patch.setitem(published.NETWORKS, 'small', Published(model, 64, 'https://example.org', 'CC0-1.0'))
            found[frames] = reference(torch, model)
            path = saved(torch, found[frames], base / f'{frames}.pth')
            convert_published('small', path, base / str(frames))
    return base, found


@pytest.mark.parametrize('frames', [1, 2])
def test_a_folder_is_enlarged_by_the_network(torch, converted, tmp_path, smooth_image, frames):
    base, networks = converted
    image = smooth_image(20, 16, 3)
    write_image(tmp_path / 'lr' / 'a.png', image)
    flags = f'--checkpoint={base / str(frames)}', f'--condition={tmp_path / "lr"}', '--gsd_m=10', '--noconsistency'
    told = last_line(run_script('sample.py', *flags, f'--out={tmp_path / "out"}', env={'XLA_FLAGS': ''}))
    assert told['images'] == 1
    unit = np.pad(np.float32(image) / 255, ((0, 12), (0, 0), (0, 0)), mode='reflect')  # a multiple of a window
    expected = np.clip(ran(torch, networks[frames], np.tile(unit, frames)[None])[0, :80], 0, 1)
    assert expected.std() > 0.01
    assert np.abs(read_image(tmp_path / 'out' / 'a-0.png') / 255 - expected).max() <= 0.5 / 255 + 1e-4


def test_inside_its_windows_a_mosaic_is_the_network(torch, converted, tmp_path, smooth_image):
    base, networks = converted
    image, scale = smooth_image(48, 40, 4), SMALL.upscale
    write_image(tmp_path / 'lr.png', image)
    flags = f'--checkpoint={base / "1"}', f'--condition={tmp_path / "lr.png"}', '--gsd_m=10', '--noconsistency'
    told = last_line(run_script('sample.py', *flags, '--tiles', f'--out={tmp_path / "out"}', env={'XLA_FLAGS': ''}))
    made = read_image(tmp_path / 'out' / 'stage_1.png')
    assert made.shape == (192, 160, 3) and told['network_evaluations_per_pixel']['last_stage'] > 1
    (phase,) = make_plan('fast', 64, timesteps=1).phases
    first, edge = phase.stride_px, phase.crop_px + phase.ramp_px  # of the second window; where its weight is not 1
    window = image[first // scale : (first + 64) // scale, first // scale : (first + 64) // scale]
    expected = np.clip(ran(torch, networks[1], np.float32(window)[None] / 255)[0], 0, 1)[edge:-edge, edge:-edge]
    found = made[first + edge : first + 64 - edge, first + edge : first + 64 - edge]
    assert expected.std() > 0.01 and np.abs(found / 255 - expected).max() <= 0.5 / 255 + 1e-4


def test_a_one_step_network_is_evaluated_with_the_default_number_of_steps(converted, tmp_path, smooth_image):
    for number in range(2):
        write_image(tmp_path / 'real' / f'{number}.png', smooth_image(64, 60, number))
    flags = f'--checkpoint=x={converted[0] / "1"}', f'--pairs={tmp_path / "real"}', '--gsd_m=1', '--metrics=psnr'
    told = last_line(
        run_script('tools/evaluate.py', *flags, '--features=', f'--out={tmp_path / "out"}', env={'XLA_FLAGS': ''})
    )
    assert told['images'] == 2 and 'x' in told['rows']
