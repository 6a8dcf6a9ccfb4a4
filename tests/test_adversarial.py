"""Adversarial training: its losses written out, and which part learns from what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import LIGHT
from rsdiff.data.pipeline import DataConfig
from rsdiff.data.sharpening import sharpened
from rsdiff.methods.adversarial import AdversarialConfig
from rsdiff.methods.codec import ResidualConfig
from rsdiff.methods.image_loss import low_res, low_res_channels
from rsdiff.methods.kinds import make_method
from rsdiff.methods.regression import RegressionConfig
from rsdiff.models.conditioning import Spatial
from rsdiff.models.discriminator import DiscriminatorConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.pretrained import efficientnet, perceptual
from rsdiff.training import mesh as meshes
from rsdiff.training.config import OptimizerConfig, TrainConfig
from rsdiff.training.state import Trainer

CONFIG = AdversarialConfig(
    model=RRDBNetConfig(features=4, growth=2, blocks=1),
    discriminator=DiscriminatorConfig(features=4),
    perceptual_weight=0.0,
)
SHARP = dataclasses.replace(CONFIG, l1_weight=2.0, gan_weight=0.3, codec=ResidualConfig(scale=0.5))
BATCH = {
    'image': np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
    'gsd_m': np.full(4, 10, np.float32),
}
PARTS = 'generator', 'discriminator'
PREPARED, KEY = jax.random.key(7), jax.random.key(8)


RATE = 1e-2


def trainer(method=CONFIG, moving=PARTS):
    """A trainer of 16 px images on one device, in which only the parts `moving` have a learning rate above 0."""
    adam = lambda rate: OptimizerConfig(learning_rate=rate, warmup_images=0, weight_decay=0.0, clip_norm=1e9)
    config = TrainConfig(
        method=method,
        degradation=LIGHT,
        data=DataConfig(size_px=16),
        batch_size=4,
        optimizers={part: adam(RATE if part in moving else 0.0) for part in PARTS},
    )
    return Trainer(config, meshes.make_mesh(1, jax.devices()[:1]))


@pytest.fixture(scope='module')
def trainers():
    """Trainers in which both parts move, or only one."""
    return {'both': trainer(), **{part: trainer(moving=(part,)) for part in PARTS}}


def states(trainer, steps, batch=BATCH):
    """The states before and after each step, as NumPy arrays, and the metrics of each step. The very first step has learning
    rate 0 and is left out."""
    state, _ = trainer.step(trainer.init(jax.random.key(0)), meshes.put_batch(trainer.mesh, batch))
    found, rows = [jax.device_get(state)], []
    for _ in range(steps):
        state, metrics = trainer.step(state, meshes.put_batch(trainer.mesh, batch))
        found.append(jax.device_get(state))
        rows.append({name: float(value) for name, value in metrics.items()})
    return found, rows


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def started(config):
    """The method, its first parameters and buffers, and `BATCH` as prepared."""
    method = make_method(config, LIGHT)
    begin = lambda key: (method.init(key), method.init_buffers(key), method.prepare(BATCH, PREPARED))
    return method, *jax.jit(begin)(jax.random.key(0))


def loss(method, part, *arguments):
    """The loss of a part, its metrics, and the part's new buffers."""
    value, (metrics, buffers) = jax.jit(functools.partial(method.loss, part))(*arguments, KEY)
    return float(value), jax.tree.map(float, metrics), buffers


def predicted(method, params, condition):
    predict = lambda params: method.codec.decode(method.predict(params, {}, condition)(None, None), condition)['image']
    return np.asarray(jax.jit(predict)(params))


def judged(method, params, buffers, images):
    """The discriminator's logits for images in [-1, 1]."""
    discriminator = nnx.merge(method.image_loss._discriminator, nnx.State(params['discriminator']))
    return np.asarray(jax.jit(lambda images: discriminator((images + 1) / 2, buffers['discriminator'])[0])(images))


def softplus(x):
    return np.logaddexp(0, np.asarray(x, np.float64))


@pytest.mark.parametrize('config', [CONFIG, SHARP, dataclasses.replace(CONFIG, usm=False)])
def test_losses_are_what_they_are_written_to_be(config):
    method, params, buffers, prepared = started(config)
    real, condition = np.asarray(prepared['targets']['image']), prepared['condition']
    fake = predicted(method, params, condition)
    real_logits, fake_logits = (judged(method, params, buffers, images) for images in (real, fake))
    target = np.asarray(jax.jit(sharpened)(real)) if config.usm else real
    l1, gan = np.abs(fake - target).mean() / 2, softplus(-fake_logits).mean()
    value, metrics, new = loss(method, 'generator', params, buffers, {}, prepared)
    assert value == pytest.approx(config.l1_weight * l1 + config.gan_weight * gan, rel=1e-4)
    assert metrics == pytest.approx({'l1': l1, 'gan': gan}, rel=1e-4) and new == {}
    value, metrics, new = loss(method, 'discriminator', params, buffers, {}, prepared)
    assert value == pytest.approx(softplus(-real_logits).mean() + softplus(fake_logits).mean(), rel=1e-4)
    means = {'logit_real': real_logits.mean(), 'logit_fake': fake_logits.mean()}
    assert metrics == pytest.approx(means, rel=1e-4)
    assert not any(np.array_equal(new[name], u) for name, u in buffers['discriminator'].items())


def test_the_discriminator_says_nothing_of_the_generator():
    method, params, buffers, prepared = started(CONFIG)
    gradients = {
        part: jax.jit(jax.grad(lambda params, part=part: method.loss(part, params, buffers, {}, prepared, KEY)[0]))(
            params
        )
        for part in PARTS
    }
    moved = lambda tree: any(np.any(leaf) for leaf in jax.tree.leaves(tree))
    assert moved(gradients['generator']['generator']) and moved(gradients['discriminator']['discriminator'])
    assert not moved(gradients['discriminator']['generator'])


def test_the_update_of_one_part_leaves_the_bytes_of_the_other_alone(trainers):
    for moving, still in (PARTS, PARTS[::-1]):
        (before, after), _ = states(trainers[moving], 1)
        assert equal(before['params'][still], after['params'][still])
        assert not equal(before['params'][moving], after['params'][moving])
        # the vectors of the power iteration change with every step, whether the discriminator learns or not
        assert not equal(before['buffers']['discriminator'], after['buffers']['discriminator'])


def test_each_part_learns_from_the_other_as_it_was_before_the_step(trainers):
    """Whether the other part moves in the same step changes nothing; whether it moved in the step before does."""
    both, _ = states(trainers['both'], 2)
    for part in PARTS:
        alone, _ = states(trainers[part], 2)
        equals = [equal(a['params'][part], b['params'][part]) for a, b in zip(both, alone)]
        assert equals == [True, True, False]


def test_the_discriminator_tells_easy_images_apart(trainers):
    white = BATCH | {'image': np.full_like(BATCH['image'], 255)}
    _, rows = states(trainers['discriminator'], 40, white)
    assert rows[-1]['discriminator_loss'] < 0.5 * rows[0]['discriminator_loss']
    assert rows[-1]['discriminator_logit_real'] > 0.5 > -0.5 > rows[-1]['discriminator_logit_fake']


def test_metrics_name_their_terms(trainers):
    _, (metrics,) = states(trainers['both'], 1)
    generator = {'loss', 'grad_norm', 'l1', 'gan'}
    discriminator = {'loss', 'grad_norm', 'logit_real', 'logit_fake'}
    assert {*metrics} == generator | {f'discriminator_{name}' for name in discriminator}


def test_the_validation_loss_is_that_of_regression():
    method, params, _, prepared = started(SHARP)
    regression = make_method(RegressionConfig(model=SHARP.model, codec=SHARP.codec), LIGHT)
    alone = {'generator': params['generator']}
    terms = lambda method: jax.jit(lambda params: method.terms(params, {}, prepared, KEY, None))(alone)
    np.testing.assert_array_equal(terms(method), terms(regression))


def random_vgg():
    draw = lambda leaf: np.random.default_rng(0).normal(0, 0.05, leaf.shape).astype(np.float32)
    return jax.tree.map(draw, perceptual.parameter_shapes())


@pytest.fixture
def networks(monkeypatch):
    """Stand-ins for the pretrained networks."""
    monkeypatch.setattr(perceptual, 'load_params', random_vgg)
    monkeypatch.setattr(efficientnet, 'load_params', lambda: {'w': np.float32([[1, 0], [0, 2], [1, 1]])})
    forward = lambda params, inputs: (inputs.mean((1, 2)) @ params['w'], None)
    monkeypatch.setattr(efficientnet, 'forward', forward)


def test_frozen_networks_are_arguments_and_in_no_checkpoint(networks):
    config = dataclasses.replace(CONFIG, perceptual_weight=0.5, clip_weight=3.0)
    method, params, buffers, prepared = started(config)
    frozen = method.load_frozen(training=True)
    assert {*frozen} == {'perceptual', 'clip'} and method.load_frozen() == {}
    value, metrics, _ = loss(method, 'generator', params, buffers, frozen, prepared)
    target, fake = jax.jit(sharpened)(prepared['targets']['image']), predicted(method, params, prepared['condition'])
    distance = jax.jit(lambda a, b: perceptual.distance(frozen['perceptual'], a, b, config.perceptual_layers).mean())
    assert metrics['perceptual'] == pytest.approx(float(distance(fake, target)), rel=1e-4)
    embed = lambda x: (
        efficientnet.forward(frozen['clip'], jnp.repeat(jnp.repeat(x, 14, 1), 14, 2) * 127.5 + 0.5)[0] / 128
    )
    assert metrics['clip'] == pytest.approx(float(jnp.abs(embed(fake) - embed(target)).mean()), rel=1e-3)
    weights = {'l1': 1.0, 'perceptual': 0.5, 'gan': 0.1, 'clip': 3.0}
    assert value == pytest.approx(sum(weight * metrics[name] for name, weight in weights.items()), rel=1e-5)
    # the state, which is what is saved, is that of a run without these networks
    with_networks, without = trainer(config), trainer()
    assert jax.tree.map(lambda leaf: leaf.shape, with_networks.shapes) == jax.tree.map(
        lambda leaf: leaf.shape, without.shapes
    )


def test_the_loss_weighs_nothing_that_is_off(monkeypatch):
    def fail(*_):
        raise AssertionError('loaded')

    monkeypatch.setattr(perceptual, 'load_params', fail)
    monkeypatch.setattr(efficientnet, 'load_params', fail)
    assert make_method(CONFIG).load_frozen(training=True) == {}
    config = dataclasses.replace(CONFIG, gan_weight=0.0)
    method, params, buffers, prepared = started(config)
    value, metrics, _ = loss(method, 'generator', params, buffers, {}, prepared)
    assert metrics == {'l1': value}


def test_the_discriminator_sees_the_low_resolution_images_enlarged():
    config = dataclasses.replace(CONFIG, discriminator=DiscriminatorConfig(features=4, low_res=True))
    method, params, buffers, prepared = started(config)
    assert params['discriminator']['conv0']['kernel'].shape == (3, 3, 6, 4)
    real, lr = prepared['targets']['image'], np.asarray(prepared['condition']['lr'])
    seen = np.concatenate([real, np.kron(lr, np.ones((1, 4, 4, 1)))], axis=-1)
    _, metrics, _ = loss(method, 'discriminator', params, buffers, {}, prepared)
    assert metrics['logit_real'] == pytest.approx(judged(method, params, buffers, seen).mean(), rel=1e-4)


def test_of_several_images_the_missing_are_black_and_the_reference_stands_in_for_all():
    fields = {'lr': Spatial(), 'frames': Spatial(frames=3, droppable=True)}
    assert low_res_channels(fields) == 9 and low_res_channels({'lr': Spatial()}) == 3
    lr, frames = np.full((2, 4, 4, 3), 0.25, np.float32), np.full((2, 4, 4, 9), 0.5, np.float32)
    frames[0, ..., 6:] = np.nan  # two images
    frames[1] = np.nan  # none
    found = low_res(fields, {'lr': lr, 'frames': frames})
    np.testing.assert_array_equal(found[0, 0, 0], [0.5] * 6 + [-1] * 3)
    np.testing.assert_array_equal(found[1, 0, 0], [0.25] * 3 + [-1] * 6)
    np.testing.assert_array_equal(low_res(fields, {'lr': lr})[0, 0, 0], [0.25] * 3 + [-1] * 6)
    np.testing.assert_array_equal(low_res({'lr': Spatial()}, {'lr': lr}), lr)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'gan_weight': -1.0}, 'gan_weight is -1'),
        ({'perceptual_layers': (0.0, 0.0, 0.0, 0.0, float('nan'))}, 'perceptual_layers is'),
        (
            {'model': RRDBNetConfig(channels=4), 'perceptual_weight': 1.0},
            'perceptual_weight needs images of 3 channels',
        ),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(CONFIG, **change)


def test_an_encoder_that_does_not_exist_is_named_when_training_starts():
    method = make_method(dataclasses.replace(CONFIG, clip_weight=1.0, clip_encoder='/nowhere'))
    with pytest.raises(BadInput, match='/nowhere'):
        method.load_frozen(training=True)
    assert method.load_frozen() == {}
