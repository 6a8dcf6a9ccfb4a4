"""Students: their timesteps are the teacher's, and what they learn is what the teacher samples. Losses of noisy images."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import UNET, drawn

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import LIGHT
from rsdiff.data.fingerprints import TrainedOn, add_fingerprints, known_of
from rsdiff.data.pipeline import DataConfig
from rsdiff.diffusion import solvers
from rsdiff.diffusion.objective import ObjectiveConfig, stratified_timesteps
from rsdiff.diffusion.schedule import ScheduleConfig, to_x0
from rsdiff.methods.base import TEACHER
from rsdiff.methods.codec import ResidualConfig
from rsdiff.methods.diffusion import DiffusionConfig, NoisyImageLossConfig
from rsdiff.methods.distillation import DistillationConfig
from rsdiff.methods.kinds import make_method
from rsdiff.models.discriminator import DiscriminatorConfig
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import Trained, load_generator, release
from rsdiff.training.config import OptimizerConfig, TrainConfig, ValidationConfig
from rsdiff.training.loop import train
from rsdiff.training.state import Trainer

SAME = dict(model=UNET, objective=ObjectiveConfig('x0', 'x0'), codec=ResidualConfig(scale=0.5))
TEACHES = make_method(DiffusionConfig(**SAME), LIGHT)
STUDENT = DistillationConfig(**SAME, steps=3, teacher_steps=4)
BATCH = {
    'image': np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
    'gsd_m': np.full(4, 10, np.float32),
}
KEY = jax.random.key(8)


@pytest.fixture(scope='module')
def params():
    """Random parameters, small enough that predictions stay within the range of images."""
    return jax.tree.map(lambda leaf: 0.7 * leaf, drawn(TEACHES))


@pytest.fixture(scope='module')
def prepared():
    return jax.jit(TEACHES.prepare)(BATCH, jax.random.key(7))


@pytest.fixture(scope='module')
def teacher(params, tmp_path_factory):
    """The teacher as a release, trained on one known image."""
    folder = tmp_path_factory.mktemp('teacher')
    release(Trained(TEACHES, params, TrainConfig(method=TEACHES.config, data=DataConfig(size_px=16)), '', 8), folder)
    add_fingerprints(folder, TrainedOn(unknown=('what the teacher saw',)))
    return folder


def student_config(teacher, folder, **changes):
    """Settings of a run of a student of `teacher` on the images in `folder`."""
    return TrainConfig(
        method=dataclasses.replace(STUDENT, teacher=str(teacher), **changes),
        data=DataConfig(source=str(folder), size_px=16),
        degradation=LIGHT,
        batch_size=8,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_images=1),
        validation=ValidationConfig(examples=4, samples=2, grid=2, steps=3, bins=3),
        total_images=16,
    )


@pytest.mark.parametrize('time', ['t', 'alpha'])
def test_a_student_is_its_teacher_at_a_few_of_its_timesteps(params, prepared, time):
    student, teaches = (
        make_method(dataclasses.replace(config, time=time), LIGHT) for config in (STUDENT, TEACHES.config)
    )
    grid = solvers.timestep_grid(1000, 3)[::-1]
    assert student.schedule.timesteps == student.sampler.steps == 3
    np.testing.assert_array_equal(student.schedule.alpha_squared, teaches.schedule.alpha_squared[grid])
    zt = jax.random.normal(KEY, (4, 16, 16, 3))
    k = jnp.array([1, 2, 3, 3])
    predicted = jax.jit(lambda: student.predict(params, {}, prepared['condition'])(zt, k))()
    np.testing.assert_array_equal(
        predicted, jax.jit(lambda: teaches.predict(params, {}, prepared['condition'])(zt, jnp.asarray(grid)[k]))()
    )


def test_what_is_taught_is_the_teachers_own_sample_from_each_noisy_image(params, prepared):
    student = make_method(STUDENT, LIGHT)
    zt, k = jax.random.normal(KEY, (4, 16, 16, 3)), jnp.array([3, 1, 2, 3])
    condition = prepared['condition']
    taught = jax.jit(lambda: student.taught({TEACHER: params}, condition, zt, k))()
    predict = TEACHES.predict(params, {}, condition)
    for start in (1, 2, 3):
        t = int(student.grid[start])
        alone = jax.jit(lambda t=t: solvers.sample(predict, TEACHES.schedule, 'x0', zt, 4, solver='dpm++2m', start=t))()
        np.testing.assert_allclose(taught[k == start], alone[k == start], atol=1e-5)


def test_the_loss_is_the_distance_to_what_is_taught_and_falls(params, prepared, teacher):
    config = student_config(teacher, 'unused', teacher_weight=2.0)
    trainer = Trainer(config, meshes.make_mesh(1, jax.devices()[:1]))
    method, frozen = trainer.method, trainer.frozen
    np.testing.assert_allclose(
        frozen[TEACHER]['generator']['conv_in']['kernel'], params['generator']['conv_in']['kernel'], rtol=0.01
    )
    own = drawn(method, seed=1)
    loss = jax.jit(lambda params: method.loss('generator', params, {'generator': {}}, frozen, prepared, KEY))
    value, (metrics, _) = loss(own)
    _, key_eps = jax.random.split(KEY)
    k = jnp.array([1, 1, 2, 3])
    assert metrics == {} and value > 0
    noisy = method.noised(prepared, key_eps, k)
    prediction = method.predict(own, frozen, prepared['condition'])(noisy.zt, k)
    errors = method.errors(frozen, prepared['condition'], noisy, prediction)
    wanted = method.taught(frozen, prepared['condition'], noisy.zt, k)
    np.testing.assert_allclose(errors, 2 * np.mean((prediction - wanted) ** 2, (1, 2, 3)), rtol=1e-5)
    # the same images, noise and timesteps, after some steps
    state = trainer.init(jax.random.key(0))
    before = float(loss(state['params'])[0])
    for _ in range(30):
        state, _ = trainer.step(state, meshes.put_batch(trainer.mesh, BATCH))
    assert float(loss(state['params'])[0]) < 0.9 * before


def test_without_a_teacher_only_real_images_teach(prepared):
    shown = NoisyImageLossConfig(l1_weight=2.0, least_snr=0.0)
    method = make_method(dataclasses.replace(STUDENT, teacher_weight=0.0, image_loss=shown), LIGHT)
    assert method.teacher is None and make_method(dataclasses.replace(STUDENT, teacher='t')).teacher.path == 't'
    loss = jax.jit(lambda params: method.loss('generator', params, {'generator': {}}, {}, prepared, KEY))
    value, (metrics, _) = loss(drawn(method))
    assert float(metrics['error']) == 0 and float(value) == pytest.approx(2 * float(metrics['l1']), rel=1e-6)


def test_a_run_of_a_student_starts_from_its_teacher_and_is_sampled_in_its_steps(teacher, image_folder, tmp_path):
    config = dataclasses.replace(student_config(teacher, image_folder), init_from=str(teacher))
    summary = train(config, tmp_path / 'run', show=False)
    assert summary['finished'] and np.isfinite(summary['validation_loss'])
    trained = load_generator(tmp_path / 'run')
    assert trained.method.sampler.steps == 3
    assert 'what the teacher saw' in str(known_of(tmp_path / 'run'))

    # it goes on with a copy of its teacher elsewhere, if that is said, but not with another
    longer = dataclasses.replace(config, total_images=24)
    at = lambda path: dataclasses.replace(longer, method=dataclasses.replace(longer.method, teacher=str(path)))
    shutil.copytree(teacher, tmp_path / 'moved')
    with pytest.raises(BadInput, match='method.teacher'):
        train(at(tmp_path / 'moved'), tmp_path / 'run', show=False)
    assert train(at(tmp_path / 'moved'), tmp_path / 'run', allow_config_change=True, show=False)['finished']
    other = jax.tree.map(lambda leaf: 2 * leaf, load_generator(teacher).params)
    release(dataclasses.replace(load_generator(teacher), params=other), tmp_path / 'moved')
    with pytest.raises(BadInput, match="other parameters than the run's teacher had"):
        train(at(tmp_path / 'moved'), tmp_path / 'run', show=False)
    student = at(tmp_path / 'run')
    with pytest.raises(BadInput, match='is of the method distillation, not diffusion'):
        train(student, tmp_path / 'second', show=False)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'teacher': ''}, 'config.method.teacher is not set'),
        ({'teacher': '/nowhere'}, '/nowhere: not a checkpoint'),
        ({'schedule': ScheduleConfig(timesteps=500)}, r'another generator: schedule.timesteps \(1000 → 500\)'),
        ({'codec': ResidualConfig(scale=0.25)}, r'another generator: codec.scale'),
    ],
)
def test_a_student_without_the_right_teacher_leaves_nothing_behind(teacher, image_folder, tmp_path, changes, message):
    config = student_config(teacher, image_folder)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, **changes))
    with pytest.raises(BadInput, match=message):
        train(config, tmp_path / 'run', show=False)
    assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'steps': 5}, 'steps is 5'),
        ({'teacher_steps': 0}, 'teacher_steps is 0'),
        ({'teacher_weight': -1.0}, 'teacher_weight is -1'),
        ({'teacher_weight': 0.0}, 'the student would learn nothing'),
        (
            {'schedule': ScheduleConfig(timesteps=30)},
            'schedule.timesteps is 30, too few for steps 3 and teacher_steps 4',
        ),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(STUDENT, **changes)


def test_images_have_losses_only_where_there_is_little_noise(params, prepared):
    shown = NoisyImageLossConfig(l1_weight=3.0, gan_weight=0.1, discriminator=DiscriminatorConfig(features=4))
    plain, method = TEACHES, make_method(dataclasses.replace(TEACHES.config, image_loss=shown), LIGHT)
    assert method.parts == ('generator', 'discriminator') and plain.parts == ('generator',)
    params = params | {'discriminator': drawn(method)['discriminator']}
    buffers = jax.jit(method.init_buffers)(KEY)
    loss = lambda method, part: jax.jit(lambda params: method.loss(part, params, buffers, {}, prepared, KEY))(params)
    value, (metrics, _) = loss(method, 'generator')
    error, _ = loss(plain, 'generator')
    np.testing.assert_allclose(metrics['error'], error, rtol=1e-5)
    # the absolute error of the images with SNR ≥ 1 alone
    key_t, key_eps = jax.random.split(KEY)
    t = stratified_timesteps(key_t, 4, 1000)
    noisy = plain.noised(prepared, key_eps, t)
    made = plain.codec.decode(
        to_x0(plain.schedule, 'x0', plain.denoiser(params, prepared['condition'])(noisy.zt, t), noisy.zt, t),
        prepared['condition'],
    )['image']
    each = np.abs(made - prepared['targets']['image']).mean((1, 2, 3)) / 2
    low = plain.schedule.alpha_squared[t] >= plain.schedule.sigma_squared[t]
    assert 0 < low.sum() < len(low)
    expected = error + np.mean(low) * (3.0 * metrics['l1'] + 0.1 * metrics['gan'])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert float(metrics['l1']) == pytest.approx(np.mean(each[low]), rel=1e-4)
    _, (told, new) = loss(method, 'discriminator')
    assert {*told} == {'logit_real', 'logit_fake'} and {*new} == {*buffers['discriminator']}


def test_a_generator_can_go_on_with_other_losses():
    """What decides whether parameters can be exchanged is what they mean, not how they were trained."""
    other = dataclasses.replace(
        TEACHES.config, image_loss=NoisyImageLossConfig(l1_weight=1.0), objective=ObjectiveConfig('x0', 'v', 1.0, 0.5)
    )
    assert other.generator == TEACHES.config.generator == STUDENT.generator
    assert dataclasses.replace(other, objective=ObjectiveConfig('v', 'v')).generator != other.generator
