"""Properties that every method has, and those of each method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import UNET, drawn

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import LIGHT, degrade
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image
from rsdiff.data.sharpening import sharpened
from rsdiff.diffusion.constraints import Projection, keep_known, project, projected, smooth_up
from rsdiff.diffusion.guidance import guided
from rsdiff.diffusion.objective import ObjectiveConfig
from rsdiff.methods.adversarial import AdversarialConfig
from rsdiff.methods.base import Drop, prepared_batch
from rsdiff.methods.codec import ResidualConfig
from rsdiff.methods.diffusion import Diffusion, DiffusionConfig
from rsdiff.methods.kinds import make_method
from rsdiff.methods.regression import RegressionConfig
from rsdiff.methods.sampling import predictor, sample
from rsdiff.models.conditioning import GSD_M, Spatial
from rsdiff.models.discriminator import DiscriminatorConfig
from rsdiff.models.highresnet import HighResNetConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.models.srcnn import SRCNNConfig
from rsdiff.sampling.binding import bind_images
from rsdiff.sampling.images import FolderSettings, sample_folder
from rsdiff.training import mesh as meshes
from rsdiff.training.config import OptimizerConfig, TrainConfig, ValidationConfig
from rsdiff.training.state import Trainer
from rsdiff.training.validation import Validation

METHODS = {
    'diffusion': make_method(
        DiffusionConfig(model=UNET, objective=ObjectiveConfig('x0', 'x0'), codec=ResidualConfig(scale=0.5)), LIGHT
    ),
    'regression': make_method(RegressionConfig(model=RRDBNetConfig(features=8, growth=4, blocks=1)), LIGHT),
    'adversarial': make_method(
        AdversarialConfig(
            model=RRDBNetConfig(features=8, growth=4, blocks=1),
            discriminator=DiscriminatorConfig(features=4),
            perceptual_weight=0.0,
            gan_weight=0.01,
        ),
        LIGHT,
    ),
}
BATCH = {
    'image': np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
    'gsd_m': np.full(4, 10, np.float32),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def test_every_method_learns_and_samples_by_the_same_calls(method):
    config = TrainConfig(method=method.config, degradation=LIGHT, batch_size=4)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, size_px=16))
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=3e-3, warmup_images=1)
    )
    mesh = meshes.make_mesh(1, jax.devices()[:1])
    trainer = Trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    prepared, key = method.prepare(BATCH, jax.random.key(7)), jax.random.key(8)
    buffers = method.init_buffers(jax.random.key(9))
    loss = jax.jit(lambda params: method.loss('generator', params, buffers, {}, prepared, key)[0])
    before = float(loss(state['params']))
    for _ in range(30):
        state, _ = trainer.step(state, meshes.put_batch(mesh, BATCH))
    assert float(loss(state['params'])) < 0.9 * before
    steps = min(3, method.schedule.timesteps)
    condition = method.prepare(BATCH, jax.random.key(1))['condition']
    noise = jax.random.normal(jax.random.key(2), (4, 16, 16, 3))
    made = sample(method, trainer.average(state), condition, noise, steps)
    assert made.shape == noise.shape and np.isfinite(made).all() and np.abs(made).max() <= 1


@pytest.mark.parametrize('model', [SRCNNConfig(16, frames=3), HighResNetConfig(16, frames=3)], ids=lambda m: m.kind)
def test_a_network_of_frames_learns_from_any_number_of_them_and_samples_without(model, image_folder, tmp_path):
    config = TrainConfig(method=RegressionConfig(model=model), degradation=LIGHT, batch_size=4)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, size_px=16))
    config = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_images=1))
    mesh = meshes.make_mesh(1, jax.devices()[:1])
    trainer = Trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    frames = np.random.default_rng(2).uniform(-1, 1, (4, 4, 4, 9)).astype(np.float32)
    frames[0, ..., 6:], frames[1, ..., :3], frames[2] = np.nan, np.nan, np.nan
    batch, losses = BATCH | {'lr': BATCH['image'][:, ::4, ::4], 'frames': frames}, []
    for _ in range(30):
        state, metrics = trainer.step(state, meshes.put_batch(mesh, batch))
        losses.append(float(metrics['loss']))
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < 0.9 * losses[0]

    sampler = bind_images(trainer.method, trainer.average(state), 1, mesh, projection=None)
    entries, settings = read_folder(image_folder)[:2], FolderSettings(1, 16, 1, batch_size=2)
    sample_folder(sampler, LIGHT, entries, tmp_path / 'out', settings, {}, show=False)
    lr = np.stack([read_image(entry.path) for entry in entries]) / np.float32(127.5) - 1
    expected = trainer.method.predict(trainer.average(state), {}, {'lr': lr})(None, None)
    for entry, image in zip(read_folder(tmp_path / 'out'), expected):
        np.testing.assert_allclose(read_image(entry.path) / 127.5 - 1, jnp.clip(image, -1, 1), atol=0.01)


def test_the_loss_is_a_function_of_its_key():
    method = METHODS['diffusion']
    params, prepared = drawn(method), method.prepare(BATCH, jax.random.key(1))
    value = jax.jit(lambda key: method.loss('generator', params, {'generator': {}}, {}, prepared, key)[0])
    assert value(jax.random.key(0)) == value(jax.random.key(0)) != value(jax.random.key(1))


def test_a_regressor_may_aim_at_sharpened_targets():
    method = make_method(dataclasses.replace(METHODS['regression'].config, usm=True), LIGHT)
    params, prepared = drawn(method), method.prepare(BATCH, jax.random.key(1))
    x0 = prepared['targets']['image']
    made, sharp = method.predict(params, {}, prepared['condition'])(None, None), jax.jit(sharpened)(x0)
    loss, _ = method.loss('generator', params, {'generator': {}}, {}, prepared, jax.random.key(3))
    assert float(loss) == pytest.approx(float(jnp.abs(made - sharp).mean()), rel=1e-5)
    assert abs(float(loss) - float(jnp.abs(made - x0).mean())) > 1e-3


def test_a_regressor_ignores_noise_and_time():
    method = METHODS['regression']
    params = drawn(method)
    prepared = method.prepare(BATCH, jax.random.key(1))
    made = [
        sample(method, params, prepared['condition'], jax.random.normal(jax.random.key(seed), (4, 16, 16, 3)), 1, None)
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*made)
    predicted = method.predict(params, {}, prepared['condition'])(None, None)
    np.testing.assert_allclose(made[0], jnp.clip(predicted, -1, 1), atol=1e-6)
    loss, _ = method.loss('generator', params, {'generator': {}}, {}, prepared, jax.random.key(3))
    assert float(loss) == pytest.approx(float(jnp.abs(predicted - prepared['targets']['image']).mean()))


def test_a_batch_is_prepared_as_its_fields_are(method):
    key = jax.random.key(5)
    prepared = method.prepare(BATCH, key)
    x0 = BATCH['image'] / np.float32(127.5) - 1
    np.testing.assert_allclose(prepared['targets']['image'], x0, atol=1e-6)
    np.testing.assert_allclose(prepared['condition']['lr'], degrade(x0, jax.random.split(key, 4), LIGHT), atol=1e-5)
    assert {*prepared['condition']} == {*method.fields}
    given = np.random.default_rng(1).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    own = method.prepare(BATCH | {'lr': given}, key)['condition']['lr']
    np.testing.assert_allclose(own, given / np.float32(127.5) - 1, atol=1e-6)  # a given condition is not degraded


def test_what_is_dropped_is_dropped_together_and_as_often_as_said():
    fields = {'lr': Spatial(droppable=True), 'gsd_m': dataclasses.replace(GSD_M, droppable=True)}
    n = 2000
    batch = {'image': np.zeros((n, 4, 4, 3), np.uint8), 'gsd_m': np.ones(n, np.float32)}
    batch['lr'] = np.zeros((n, 1, 1, 3), np.uint8)
    drops = Drop(('gsd_m',), 0.1), Drop(('lr', 'gsd_m'), 0.2)
    condition = prepared_batch(fields, LIGHT, drops, batch, jax.random.key(0))['condition']
    lr, gsd_m = (np.isnan(condition[name]).reshape(n, -1).all(1) for name in ('lr', 'gsd_m'))
    assert lr.mean() == pytest.approx(0.2, abs=0.03) and gsd_m.mean() == pytest.approx(0.3, abs=0.03)
    assert not (lr & ~gsd_m).any()
    plain = prepared_batch(fields, LIGHT, (), batch, jax.random.key(0))['condition']
    assert np.isfinite(plain['gsd_m']).all()


class Pictures:
    """A source of the images of `BATCH`."""

    skipped = set()

    def __len__(self):
        return 4

    def example(self, index, rng, size_px):
        return {name: values[index] for name, values in BATCH.items()}


def test_validation_sees_the_complete_condition():
    number, lr = dataclasses.replace(GSD_M, droppable=True), dataclasses.replace(UNET.spatial['lr'], droppable=True)
    model = dataclasses.replace(UNET, spatial={'lr': lr}, numbers={'gsd_m': number})
    method = DiffusionConfig(model=model, drops=(Drop(('lr', 'gsd_m'), 1.0),))
    config = TrainConfig(method=method, degradation=LIGHT, validation=ValidationConfig(examples=4, samples=4, grid=4))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, size_px=16, threads=1))
    trainer = Trainer(config, meshes.make_mesh(1, jax.devices()[:1]))
    dropped = trainer.method.prepare(BATCH, jax.random.key(0))['condition']
    assert all(np.isnan(values).all() for values in dropped.values())
    validation = Validation(trainer, Pictures())
    assert {*validation.prepared['condition']} == {'lr', 'gsd_m'}
    assert all(np.isfinite(values).all() for values in validation.prepared['condition'].values())


def test_the_codec_of_a_residual_takes_out_what_the_condition_shows():
    lr = jax.random.uniform(jax.random.key(0), (1, 4, 4, 3), minval=-1, maxval=1)
    codec = ResidualConfig(scale=0.5)
    np.testing.assert_allclose(codec.encode({'image': smooth_up(lr, 4)}, {'lr': lr}), 0, atol=1e-5)
    np.testing.assert_allclose(codec.decode(jnp.ones((1, 16, 16, 3)), {'lr': lr})['image'], smooth_up(lr, 4) + 0.5)


def test_guidance_goes_as_far_as_its_weights():
    predictions = [lambda x, t, c=c: c * x for c in (1.0, 2.0, 4.0)]
    at = lambda *weights: float(guided(predictions[: len(weights) + 1], weights)(jnp.float32(1), None))
    assert at() == 1 and at(1.0) == 2 and at(0.0) == 1 and at(3.0) == 4
    assert at(1.0, 1.0) == 4 and at(1.0, 2.0) == 6 and at(0.0, 1.0) == 3
    with pytest.raises(ValueError, match='one weight fewer'):
        guided(predictions, (1.0,))


def test_what_is_known_is_kept_and_a_projection_ends():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    mask = jnp.zeros((2, 8, 8, 1), bool).at[:, :4].set(True)
    kept = keep_known(lambda xt, t: xt, jnp.ones_like(x), mask)(x, jnp.array([5, 5]))
    np.testing.assert_array_equal(kept[:, :4], 1)
    np.testing.assert_array_equal(kept[:, 4:], x[:, 4:])
    y = jnp.zeros((2, 2, 2, 3))
    held = projected(lambda xt, t: xt, y, Projection(end=10))(x, jnp.array([11, 10]))
    np.testing.assert_allclose(held[0], project(x[:1], y[:1])[0], atol=1e-6)
    np.testing.assert_array_equal(held[1], x[1])


def test_a_constraint_holds_in_every_prediction():
    """Inpainting by any method: the known half of every predicted image equals the given one."""
    method = METHODS['diffusion']
    params = drawn(method)
    prepared = method.prepare(BATCH, jax.random.key(1))
    condition, real = prepared['condition'], prepared['targets']['image']
    mask = jnp.zeros((4, 16, 16, 1), bool).at[:, :8].set(True)
    predict = predictor(method, params, condition, constrain=lambda predict, condition: keep_known(predict, real, mask))
    z0 = predict(jax.random.normal(jax.random.key(2), (4, 16, 16, 3)), jnp.full(4, 500))
    made = method.codec.decode(z0, condition)['image']
    np.testing.assert_allclose(made[:, :8], real[:, :8], atol=1e-5)
    assert float(jnp.abs(made[:, 8:] - real[:, 8:]).max()) > 0.1


@dataclasses.dataclass(frozen=True)
class Two:
    """A method of two parts: each is pulled towards `by` (a frozen number) times the other, and adds up the values it saw."""

    parts = 'generator', 'critic'
    dtype = jnp.float32
    teacher = None

    def init(self, key):
        return {'generator': {'w': jnp.float32(1.0)}, 'critic': {'w': jnp.float32(3.0)}}

    def init_buffers(self, key):
        return {'generator': {}, 'critic': {'seen': jnp.float32(0)}}

    def load_frozen(self, training=False):
        return {'by': np.float32(2)}

    def prepare(self, batch, key, drop=True):
        return batch

    def loss(self, part, params, buffers, frozen, prepared, key):
        other = params['critic' if part == 'generator' else 'generator']['w']
        seen = buffers['critic']['seen']
        new = {'seen': seen + other} if part == 'critic' else buffers[part]
        return (params[part]['w'] - frozen['by'] * other) ** 2, ({'other': other, 'seen': seen}, new)


def test_parts_are_updated_from_what_all_were_before(monkeypatch):
    monkeypatch.setattr('rsdiff.training.state.make_method', lambda *_: Two())
    monkeypatch.setattr('rsdiff.training.state.make_optimizer', lambda config, *_: optax.sgd(config.learning_rate))
    config = dataclasses.replace(
        TrainConfig(), batch_size=2, accumulation=2, optimizers={'critic': OptimizerConfig(learning_rate=0.1)}
    )
    config = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=0.2))
    mesh = meshes.make_mesh(1, jax.devices()[:1])
    trainer = Trainer(config, mesh)
    state, metrics = trainer.step(trainer.init(jax.random.key(0)), {'image': jnp.zeros((2, 1))})
    # d/dw (w - 2 other)² = 2 (w - 2 other), with the other's value before the step, in any order of updates
    assert float(state['params']['generator']['w']) == pytest.approx(1 - 0.2 * 2 * (1 - 6))
    assert float(state['params']['critic']['w']) == pytest.approx(3 - 0.1 * 2 * (3 - 2))
    assert float(metrics['other']) == 3 and float(metrics['critic_other']) == 1
    # the critic's buffer is carried from one accumulation step to the next; the generator sees it as before the step
    assert float(state['buffers']['critic']['seen']) == 2
    assert float(metrics['seen']) == 0 and float(metrics['critic_seen']) == 0.5
    assert {*state['ema']} == {'generator'}  # the generator only
    _, metrics = trainer.step(state, {'image': jnp.zeros((2, 1))})
    assert float(metrics['seen']) == 2
    wrong = dataclasses.replace(config, optimizers={'judge': OptimizerConfig()})
    with pytest.raises(BadInput, match="optimizers has 'judge'; the parts of this method are generator, critic"):
        Trainer(wrong, mesh)


@pytest.mark.parametrize('name', [*METHODS, 'srcnn', 'highresnet'])
def test_parameters_have_a_type_of_their_own(name):
    """A weakly typed one gets another type in the first update, and the training step would be compiled twice."""
    networks = {'srcnn': SRCNNConfig(16), 'highresnet': HighResNetConfig(16)}
    made = METHODS[name] if name in METHODS else make_method(RegressionConfig(model=networks[name]))
    leaves = jax.tree.leaves(jax.eval_shape(made.init, jax.random.key(0)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')} and not any(leaf.weak_type for leaf in leaves)


def test_a_method_is_made_of_its_config():
    assert isinstance(make_method(DiffusionConfig()), Diffusion)
    assert make_method(RegressionConfig()).schedule.timesteps == 1
    assert make_method(AdversarialConfig()).parts == ('generator', 'discriminator')
