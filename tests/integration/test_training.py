"""The loop, its state and its checkpoints, on networks of a few thousand parameters: a regressor where the method does not
matter."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from tiny import MODEL, REGRESSION

from rsdiff.base.errors import BadInput
from rsdiff.base.shipped import ROOT
from rsdiff.data.degradation import LIGHT
from rsdiff.data.fingerprints import FILE, known_of
from rsdiff.data.images import write_image
from rsdiff.data.pipeline import batch_indices, make_source
from rsdiff.evaluation.fidelity import psnr
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import Checkpoints, load_generator, release
from rsdiff.training.config import EMAConfig, OptimizerConfig, TrainConfig, from_dict, to_dict
from rsdiff.training.loop import train
from rsdiff.training.state import Trainer, ema_decay, make_optimizer


@pytest.fixture(scope='module')
def config(tmp_path_factory, write_image_folder):
    return from_dict(
        TrainConfig,
        {
            'method': REGRESSION,
            'data': {'source': str(write_image_folder(tmp_path_factory.mktemp('training'))), 'size_px': 16},
            'batch_size': 8,
            'degradation': to_dict(LIGHT),
            'optimizer': {'learning_rate': 1e-3, 'warmup_images': 16},
            'total_images': 32,
            'log_images': 8,
            'checkpoint_images': 1000,
            'validation': {'every_images': 1000, 'examples': 8, 'bins': 2, 'steps': 2},
        },
    )


@pytest.fixture(scope='module')
def diffusion(config):
    return from_dict(TrainConfig, to_dict(config) | {'method': {'model': MODEL}})


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
    """The folder of a run of one step, and its summary."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    return folder, train(until(config, 8), folder, show=False)


@pytest.fixture
def one_step(finished, tmp_path):
    """A copy of the run of one step, which a test may change."""
    return Path(shutil.copytree(finished[0], tmp_path / 'run'))


def until(config, images):
    return dataclasses.replace(config, total_images=images)


def leaves(path):
    return jax.tree.leaves(load_generator(path).params)


@pytest.mark.bytes
def test_four_steps_are_two_and_a_restore_and_two(diffusion, tmp_path):
    config = diffusion
    assert config.optimizer.final_fraction == 1  # a decaying rate would fall faster in the shorter run
    whole = train(config, tmp_path / 'whole', show=False)
    half = train(until(config, 16), tmp_path / 'parts', show=False)
    rest = train(config, tmp_path / 'parts', show=False)
    assert (half['images_seen'], rest['images_seen'], whole['images_seen']) == (16, 32, 32)
    for a, b in zip(leaves(tmp_path / 'whole'), leaves(tmp_path / 'parts')):
        np.testing.assert_array_equal(a, b)
    assert whole['loss'] == rest['loss']


def test_a_finished_run_is_left_alone(config, finished):
    folder, summary = finished
    before = leaves(folder)
    assert train(until(config, 8), folder, show=False) == summary
    for a, b in zip(before, leaves(folder)):
        np.testing.assert_array_equal(a, b)


def test_a_run_leaves_metrics_samples_and_a_summary(diffusion, tmp_path):
    summary = train(diffusion, tmp_path / 'run', show=False)
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [row['images_seen'] for row in rows if 'loss' in row] == [8, 16, 24, 32]
    assert all(np.isfinite(row['loss']) and row['images_skipped'] == 0 for row in rows if 'loss' in row)
    (validation,) = (row for row in rows if 'validation_loss' in row)
    assert validation['images_seen'] == 32 and len(validation['validation_loss_by_t']) == 2
    assert validation['validation_loss'] == pytest.approx(np.mean(validation['validation_loss_by_t']), abs=1e-4)
    assert summary['finished'] and summary['parameters'] > 1000
    with Image.open(tmp_path / 'run' / 'samples' / '000000032.png') as grid:
        assert grid.size == (3 * 16, 6 * 16)


def test_validation_rows_tell_what_a_judge_says_of_the_samples_that_are_shown(config, tmp_path):
    config = dataclasses.replace(config, total_images=8, validation=dataclasses.replace(config.validation, samples=6))
    judge = lambda samples, truths, conditions: {
        'psnr': psnr(samples, truths),
        'side': [conditions.shape[1]] * len(samples),
    }
    summary = train(config, tmp_path / 'run', show=False, judge=judge)
    with Image.open(tmp_path / 'run' / 'samples' / '000000008.png') as grid:
        _, samples, truths = np.moveaxis(np.asarray(grid).reshape(6, 16, 3, 16, 3), 2, 0)
    assert (
        summary['validation_psnr'] == pytest.approx(np.mean(psnr(samples, truths))) and summary['validation_side'] == 4
    )


def test_tensorboard_is_told_what_the_rows_say(config, tmp_path):
    pytest.importorskip('tensorboardX', reason='needs the `tensorboard` extra')
    train(until(config, 8), tmp_path / 'run', show=False)
    content = b''.join(path.read_bytes() for path in (tmp_path / 'run' / 'tensorboard').iterdir())
    assert all(tag in content for tag in (b'grad_norm', b'validation_loss_by_t/0', b'samples'))


def losses_and_params(config, fsdp, devices, source, steps=2):
    mesh = meshes.make_mesh(fsdp, jax.devices()[:devices])
    trainer = Trainer(config, mesh)
    state = trainer.init(jax.random.key(0))
    values = []
    for number in range(steps):
        state, metrics = trainer.step(state, meshes.put_batch(mesh, source(number)))
        values.append(float(metrics['loss']))
    return values, [np.asarray(x) for x in jax.tree.leaves(state['params'])], state


def test_sharded_training_is_replicated_training(config, monkeypatch):
    monkeypatch.setattr(meshes, 'MIN_SHARDED_SIZE', 64)
    rng = np.random.default_rng(0)
    data = [
        {'image': rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8), 'gsd_m': np.full(8, 10, np.float32)}
        for _ in range(2)
    ]
    one, params_one, _ = losses_and_params(config, 1, 1, lambda n: data[n])
    for fsdp in (1, 2, 8):
        many, params_many, state = losses_and_params(config, fsdp, 8, lambda n: data[n])
        np.testing.assert_allclose(one, many, rtol=1e-5)
        for a, b in zip(params_one, params_many):
            np.testing.assert_allclose(a, b, atol=2e-4)
        split = [leaf for leaf in jax.tree.leaves(state['opt']) if not leaf.sharding.is_fully_replicated]
        assert bool(split) == (fsdp > 1)


def test_accumulation_averages_the_gradients_of_its_parts(config):
    """The reported gradient norm against the gradients of the parts, averaged by hand."""
    data = {
        'image': np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
        'gsd_m': np.full(8, 10, np.float32),
    }
    mesh = meshes.make_mesh(1, jax.devices()[:1])
    trainer = Trainer(dataclasses.replace(config, accumulation=2), mesh)
    state = trainer.init(jax.random.key(0))

    def part_gradient(number, part):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), number)
        key_degrade, key_loss = jax.random.split(key)
        prepared = trainer.method.prepare(part, key_degrade)
        return jax.grad(lambda p: trainer.method.loss('generator', p, {'generator': {}}, {}, prepared, key_loss)[0])(
            state['params']
        )

    part_gradient = jax.jit(part_gradient)
    parts = [part_gradient(number, {name: values[number::2] for name, values in data.items()}) for number in (0, 1)]
    expected = float(optax.global_norm(jax.tree.map(lambda a, b: (a + b) / 2, *parts)))
    _, metrics = trainer.step(state, meshes.put_batch(mesh, data))
    assert float(metrics['grad_norm']) == pytest.approx(expected, rel=1e-4)


def test_another_config_in_the_same_workdir_is_refused(config, one_step):
    with pytest.raises(BadInput, match=r'seed \(0 → 1\).*--allow_config_change'):
        train(dataclasses.replace(config, seed=1), one_step, show=False)
    with pytest.raises(BadInput, match=r'batch_size \(8 → 16\); use another --workdir$'):
        train(dataclasses.replace(config, batch_size=16), one_step, allow_config_change=True, show=False)
    falling = dataclasses.replace(config.optimizer, final_fraction=0.1)
    with pytest.raises(BadInput, match=r'total_images \(8 → 32\)'):
        train(dataclasses.replace(config, optimizer=falling), one_step, show=False)
    assert load_generator(one_step).config == until(config, 8)


def test_nothing_that_is_not_finite_is_ever_saved(config, tmp_path, monkeypatch):
    def poisoned(self, state, batch, frozen, step=Trainer._step):
        spoilt = jnp.where(state['step'] == 2, jnp.nan, 1.0)
        return step(self, state | {'params': jax.tree.map(lambda p: p * spoilt, state['params'])}, batch, frozen)

    monkeypatch.setattr(Trainer, '_step', poisoned)
    with pytest.raises(FloatingPointError, match='step 3'):
        train(dataclasses.replace(config, checkpoint_images=8), tmp_path / 'run', show=False)
    kept = load_generator(tmp_path / 'run')
    assert kept.images_seen == 16
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))


def test_a_loss_that_is_not_finite_names_its_examples(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Trainer,
        '_step',
        lambda self, state, batch, frozen: (
            state | {'step': state['step'] + 1},
            {'loss': jnp.where(state['step'] == 1, jnp.inf, 1.0), 'grad_norm': 1.0},
        ),
    )
    with pytest.raises(FloatingPointError, match='nonfinite.json'):
        train(config, tmp_path / 'run', show=False)
    told = json.loads((tmp_path / 'run' / 'nonfinite.json').read_text())
    assert told['step'] == 2 and told['loss'] == 'inf'
    assert told['indices'] == batch_indices(make_source(config.data), config.seed, 8, 1)
    assert all(name.endswith('.png') for name in told['names'])


def test_a_run_starts_from_the_average_of_another(config, finished, tmp_path):
    first, _ = finished
    still = dataclasses.replace(config.optimizer, learning_rate=0.0)
    start = dataclasses.replace(config, init_from=str(first), optimizer=still, seed=1)
    train(until(start, 8), tmp_path / 'second', show=False)
    for a, b in zip(leaves(first), leaves(tmp_path / 'second')):
        np.testing.assert_array_equal(a, b)
    other = from_dict(
        TrainConfig, to_dict(start) | {'method': {**REGRESSION, 'model': REGRESSION['model'] | {'blocks': 2}}}
    )
    with pytest.raises(BadInput, match=r'init_from .* is another generator: model.blocks \(0 → 2\)'):
        train(other, tmp_path / 'third', show=False)


def test_another_method_is_named_in_one_word(diffusion, one_step):
    with pytest.raises(BadInput, match=r"settings: method.kind \('regression' → 'diffusion'\); use another --workdir$"):
        train(diffusion, one_step, show=False)


def adversarial(config, images=8, **changes):
    """A run of one step with the network of `config`, a discriminator and no pretrained network."""
    method = REGRESSION | {'kind': 'adversarial', 'discriminator': {'features': 4}, 'perceptual_weight': 0.0} | changes
    return until(from_dict(TrainConfig, to_dict(config) | {'method': method}), images)


def test_a_gan_starts_from_a_network_that_learned_the_mean_error(config, finished, tmp_path):
    regressed, _ = finished
    gan = dataclasses.replace(adversarial(config), init_from=str(regressed))
    still = dataclasses.replace(gan, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.0))
    train(still, tmp_path / 'gan', show=False)
    for a, b in zip(leaves(regressed), leaves(tmp_path / 'gan'), strict=True):
        np.testing.assert_array_equal(a, b)
    # and the other way round, and from a release
    release(load_generator(tmp_path / 'gan'), tmp_path / 'release')
    train(until(dataclasses.replace(config, init_from=str(tmp_path / 'release')), 8), tmp_path / 'back', show=False)


@pytest.mark.parametrize(
    'method, message',
    [
        ({'model': REGRESSION['model'] | {'blocks': 2}}, r'another generator: model.blocks \(0 → 2\)$'),
        ({'codec': {'kind': 'residual'}}, r"another generator: codec.kind \('identity' → 'residual'\)$"),
    ],
)
def test_a_gan_does_not_start_from_another_network(config, finished, tmp_path, method, message):
    gan = dataclasses.replace(adversarial(config, **method), init_from=str(finished[0]))
    with pytest.raises(BadInput, match=message):
        train(gan, tmp_path / 'gan', show=False)


def test_diffusion_and_one_pass_methods_do_not_start_from_each_other(config, diffusion, finished, tmp_path):
    diffused = ROOT / 'weights' / 'earth'
    for other in (config, adversarial(config)):
        kind = other.method.kind
        with pytest.raises(BadInput, match=f'is of the method diffusion, not {kind}$'):
            train(dataclasses.replace(other, init_from=str(diffused)), tmp_path / kind, show=False)
    other = dataclasses.replace(until(diffusion, 8), init_from=str(finished[0]))
    with pytest.raises(BadInput, match='is of the method regression, not diffusion$'):
        train(other, tmp_path / 'diffusion', show=False)


def whole_state(config, workdir):
    return Checkpoints(workdir).restore_latest(Trainer(config, meshes.make_mesh(1, jax.devices()[:1])).abstract_state())


def test_a_run_of_two_parts_continues_with_its_buffers(config, tmp_path):
    config = adversarial(config, 32)
    train(config, tmp_path / 'whole', show=False)
    train(until(config, 16), tmp_path / 'parts', show=False)
    halfway = whole_state(config, tmp_path / 'parts')
    train(config, tmp_path / 'parts', show=False)
    whole, parts = (whole_state(config, tmp_path / name) for name in ('whole', 'parts'))
    assert {*whole['buffers']['discriminator']} == {f'conv{number}' for number in range(1, 9)}
    assert {*whole['ema']} == {'generator'} and {*whole['opt']} == {'generator', 'discriminator'}
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    # all of it was still changing
    for item in ('params', 'buffers'):
        assert not np.array_equal(*(jax.tree.leaves(state[item]['discriminator'])[0] for state in (halfway, whole)))


def test_a_release_names_no_folder_of_this_machine(config, tmp_path):
    config = adversarial(config, clip_encoder='/some/where/clip')
    train(config, tmp_path / 'run', show=False)
    release(load_generator(tmp_path / 'run'), tmp_path / 'release')
    released = json.loads((tmp_path / 'release' / 'config.json').read_text())
    assert released['method']['clip_encoder'] == 'clip' and '/' not in json.dumps(released)


def lengthened(config, *lengths):
    return dataclasses.replace(config, ema=dataclasses.replace(config.ema, lengths=lengths, snapshot_images=8))


def test_an_average_of_any_length_is_made_after_training(config, finished, tmp_path):
    config, run = lengthened(config, 0.05, 0.1), tmp_path / 'run'
    train(until(config, 16), run, show=False)
    train(config, run, show=False)
    assert {path.name for path in (run / 'averages').iterdir()} == {'1', '2', '3', '4'}
    kept = whole_state(config, run)['ema']['generator']
    for length, name in ((0.05, 'length_0_05'), (0.1, 'length_0_1')):
        made = load_generator(run, length)
        assert made.images_seen == 32
        for one, other in zip(jax.tree.leaves(kept[name]), jax.tree.leaves(made.params), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    between = jax.tree.leaves(load_generator(run, 0.07).params)
    ends = (jax.tree.leaves(load_generator(run, length).params) for length in (0.05, 0.1))
    assert all(np.abs(middle - (a + b) / 2).max() <= np.abs(a - b).max() for middle, a, b in zip(between, *ends))

    with pytest.raises(BadInput, match=r'length 0.3: it must be above 0 and at most 0.289'):
        load_generator(run, 0.3)
    with pytest.raises(BadInput, match=r'has no snapshots of averages; train with config.ema.lengths'):
        load_generator(finished[0], 0.1)
    with pytest.raises(BadInput, match=r'ema.lengths \(\[0.05, 0.1\] → \[0.1\]\); use another --workdir$'):
        train(lengthened(config, 0.1), run, allow_config_change=True, show=False)
    for path in (run / 'averages/2').rglob('d/*'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=r'averages/2 is damaged .*; remove it and run the same command again'):
        load_generator(run, 0.1)
    shutil.rmtree(run / 'averages/2')
    assert load_generator(run, 0.1).images_seen == 32


def names_known(workdir):
    return {name.split('/')[-1] for name in known_of(workdir).names}


def unshared(config, **data):
    """`config` without a validation share, so that it trains on every image."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, validation_share=0, **data))


def test_changed_training_data_are_named_and_take_a_flag(config, tmp_path, smooth_image):
    config = unshared(config)
    folder, run = Path(config.data.source), tmp_path / 'run'
    train(until(config, 8), run, show=False)
    assert len(known_of(run).names) == 8 and known_of(run).unknown == ()
    copy = dataclasses.replace(config.data, source=str(shutil.copytree(folder, tmp_path / 'copy')))
    # a copy differs in its path only
    train(until(dataclasses.replace(config, data=copy), 8), run, allow_config_change=True, show=False)
    train(until(dataclasses.replace(config, data=copy), 8), run, show=False)
    write_image(Path(copy.source) / 'a/a0.png', smooth_image(32, 32, 99))
    shutil.copy(folder / 'b/b1.png', tmp_path / 'copy' / 'new.png')
    lines = (tmp_path / 'copy' / 'metadata.jsonl').read_text().splitlines()
    (tmp_path / 'copy' / 'metadata.jsonl').write_text(
        '\n'.join([*lines[:6], '{"file_name": "new.png", "split": "train", "gsd_m": 10}', *lines[8:]])
    )
    changed = until(dataclasses.replace(config, data=copy), 8)
    with pytest.raises(
        BadInput,
        match=r'1 file added \(new.png\), 2 files removed \(.*…\), 1 file changed \(a/a0.png\)'
        '.*--allow_config_change',
    ):
        train(changed, run, show=False)
    train(changed, run, allow_config_change=True, show=False)
    train(changed, run, show=False)
    # every image that the run has ever seen; new.png is b1.png
    assert len(known_of(run).names) == 9 and known_of(run).unknown == ()


def test_a_run_from_before_digests_continues_and_its_past_is_unknown(config, tmp_path):
    config = unshared(config)
    train(until(config, 8), tmp_path, show=False)
    (tmp_path / 'training_data.json').unlink()
    (tmp_path / FILE).unlink()
    train(until(config, 16), tmp_path, show=False)
    assert len(known_of(tmp_path).names) == 8 and 'before' in known_of(tmp_path).unknown[0]
    (tmp_path / 'training_data.json').write_text('{"files": [')
    with pytest.raises(BadInput, match='training_data.json'):
        train(until(config, 16), tmp_path, show=False)


def test_what_init_from_was_trained_on_is_added(config, tmp_path):
    train(until(unshared(config, split='train'), 8), tmp_path / 'first', show=False)
    second = until(dataclasses.replace(unshared(config, split='test'), init_from=str(tmp_path / 'first')), 8)
    train(second, tmp_path / 'second', show=False)
    assert len(names_known(tmp_path / 'first')) == 8 and len(names_known(tmp_path / 'second')) == 12
    (tmp_path / 'first' / FILE).unlink()
    train(second, tmp_path / 'third', show=False)
    assert len(names_known(tmp_path / 'third')) == 4 and known_of(tmp_path / 'third').unknown == (
        'what first was trained on',
    )


def test_released_weights_are_the_average_in_bfloat16(config, finished, tmp_path):
    trained = load_generator(finished[0])
    release(trained, tmp_path / 'release')
    again = load_generator(tmp_path / 'release')
    source = Path(config.data.source)
    assert source.is_absolute() and again.images_seen == 8 and again.digest != trained.digest
    # the entire config except the local path of the images
    assert again.config == dataclasses.replace(
        trained.config, data=dataclasses.replace(config.data, source=source.name)
    )
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(again.params)):
        np.testing.assert_allclose(a, b, rtol=1 / 128)


@pytest.mark.parametrize(
    'break_it, message',
    [
        (lambda run: shutil.rmtree(run), 'not a checkpoint'),
        (lambda run: (run / 'config.json').unlink(), 'not a checkpoint'),
        (lambda run: (run / 'config.json').write_text('{'), 'not JSON'),
        (lambda run: shutil.rmtree(run / 'checkpoints' / '1'), 'no checkpoint has been saved'),
        (
            lambda run: [f.write_bytes(b'') for f in (run / 'checkpoints/1/ema').rglob('*') if f.is_file()],
            'no checkpoint can be read',
        ),
        (
            lambda run: (run / 'config.json').write_text(
                (run / 'config.json').read_text().replace('"features": 16', '"features": 32')
            ),
            'belong to another config',
        ),
    ],
)
def test_what_is_no_checkpoint_is_bad_input(one_step, break_it, message):
    break_it(one_step)
    with pytest.raises(BadInput, match=message):
        load_generator(one_step)


def test_a_batch_that_the_devices_can_not_share_is_refused(config, tmp_path):
    with pytest.raises(BadInput, match='multiple of 8 devices'):
        train(dataclasses.replace(config, batch_size=12), tmp_path / 'run', show=False)


def test_the_average_has_its_half_life_once_warmed_up():
    config = EMAConfig(half_life_images=1000, rampup=0.05)
    assert float(ema_decay(config, 1e6, 10)) ** 100 == pytest.approx(0.5, rel=1e-3)
    assert float(ema_decay(config, 2000, 10)) ** 10 == pytest.approx(0.5, rel=1e-3)
    assert float(ema_decay(config, 10, 10)) < 1e-3


def test_the_learning_rate_warms_up_and_falls():
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=1.0, warmup_images=100, final_fraction=0.1, clip_norm=1e9, weight_decay=0.0),
        10,
        1000,
    )
    params = {'w': np.zeros(1, np.float32)}
    state, rates = optimizer.init(params), []
    for _ in range(100):
        update, state = optimizer.update({'w': np.ones(1, np.float32)}, state, params)
        rates.append(-float(update['w'][0]))
    assert rates[0] == 0 and max(rates) == pytest.approx(1, rel=1e-3) and np.argmax(rates) == 10
    assert rates[-1] == pytest.approx(0.1, rel=0.05)
