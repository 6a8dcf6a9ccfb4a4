"""Training runs survive kills, damaged checkpoints and full disks."""

import dataclasses
import errno
import json
import logging
import os
import random
import resource
import shutil
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from scripts import server
from tiny import REGRESSION

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import LIGHT
from rsdiff.data.images import write_image
from rsdiff.methods.adversarial import AdversarialConfig
from rsdiff.models.discriminator import DiscriminatorConfig
from rsdiff.pretrained import weights
from rsdiff.training import checkpoint
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import Checkpoints, load_generator, release
from rsdiff.training.config import TrainConfig, from_dict, to_dict
from rsdiff.training.loop import train
from rsdiff.training.state import Trainer


def small(images):
    return from_dict(
        TrainConfig,
        {
            'method': REGRESSION,
            'data': {'source': str(images), 'size_px': 16, 'threads': 1, 'gsd_m': 10.0},
            'degradation': to_dict(LIGHT),
            'batch_size': 8,
            'total_images': 32,
            'log_images': 8,
            'checkpoint_images': 16,
            'validation': {'every_images': 10**9, 'examples': 8, 'grid': 1, 'bins': 1, 'steps': 1},
        },
    )


@pytest.fixture
def config(image_folder):
    return small(image_folder)


@pytest.fixture(scope='module')
def saved(tmp_path_factory, smooth_image):
    """(config, workdir) of a finished run with checkpoints at steps 2 and 4; tests copy it."""
    where = tmp_path_factory.mktemp('saved')
    for number in range(8):
        write_image(where / 'images' / f'{number}.png', smooth_image(32, 32, number))
    config = small(where / 'images')
    train(config, where / 'run', show=False)
    return config, where / 'run'


def until(config, images):
    return dataclasses.replace(config, total_images=images)


def leaves(workdir):
    return jax.tree.leaves(load_generator(workdir).params)


def assert_equal(a, b):
    for one, other in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def _train(config, workdir):
    os.environ['XLA_FLAGS'] = ''  # one device starts and saves faster than eight
    train(config, workdir, show=False)


def in_its_own_process(target, *arguments):
    process = server.Process(target=target, args=arguments)
    process.start()
    return process


def exit_code(target, *arguments):
    process = in_its_own_process(target, *arguments)
    process.join()
    return process.exitcode


def steps_told(workdir):
    path = workdir / 'metrics.jsonl'
    return len(path.read_text().splitlines()) if path.exists() else 0


def losses(workdir):
    rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [row['loss'] for row in rows if 'loss' in row]


def test_kills_change_nothing(config, kills, tmp_path, capsys):
    """SIGKILL at random moments, every second one while a checkpoint is being written."""
    config = until(config, 8 * 10_000)  # more than it will reach
    chance, workdir, resumed, lost = random.Random(0), tmp_path / 'killed', [0], []
    for number in range(kills):
        metrics, target = workdir / 'metrics.jsonl', resumed[-1] + chance.randint(1, 14)
        before = metrics.stat().st_ino if metrics.exists() else None
        process = in_its_own_process(_train, config, workdir)
        # on start, metrics logged after the last checkpoint are dropped, in a new file
        while process.is_alive() and (
            not metrics.exists() or metrics.stat().st_ino == before or steps_told(workdir) < target
        ):
            time.sleep(0.01)
        while process.is_alive() and number % 2 and not any((workdir / 'checkpoints').glob('*tmp*')):
            time.sleep(0.0005)
        assert process.is_alive(), 'ended by itself'
        process.kill()
        process.join()
        kept = max((int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()), default=0)
        if kept:
            assert load_generator(workdir).images_seen == 8 * kept
        lost.append(steps_told(workdir) - kept)
        resumed.append(kept)
    assert resumed == sorted(resumed) and resumed[-1] > 0
    config = until(config, 8 * (resumed[-1] + 10))
    assert exit_code(_train, config, workdir) == 0
    assert exit_code(_train, dataclasses.replace(config, checkpoint_images=10**9), tmp_path / 'whole') == 0
    with capsys.disabled():
        print(f'\n{kills} kills: resumed at steps {resumed[1:]}, lost {sum(lost)} steps in all, {max(lost)} at most')
    assert losses(workdir) == losses(tmp_path / 'whole')
    assert_equal(workdir, tmp_path / 'whole')


def test_a_kill_of_a_run_of_two_parts_changes_nothing(config, tmp_path):
    """SIGKILL, then all that a checkpoint holds, the discriminator and its buffers included, against a run without kill."""
    discriminator = DiscriminatorConfig(features=4)
    method = AdversarialConfig(model=config.method.model, discriminator=discriminator, perceptual_weight=0.0)
    config, workdir = dataclasses.replace(config, method=method, checkpoint_images=8), tmp_path / 'killed'
    process = in_its_own_process(_train, until(config, 8 * 10_000), workdir)
    while process.is_alive() and steps_told(workdir) < 4:
        time.sleep(0.01)
    assert process.is_alive(), 'ended by itself'
    process.kill()
    process.join()
    kept = load_generator(workdir).images_seen
    assert kept
    config = until(config, kept + 24)
    assert exit_code(_train, config, workdir) == 0
    assert exit_code(_train, dataclasses.replace(config, checkpoint_images=10**9), tmp_path / 'whole') == 0
    assert losses(workdir) == losses(tmp_path / 'whole')
    like = Trainer(config, meshes.make_mesh(1, jax.devices()[:1])).abstract_state()
    states = [Checkpoints(folder).restore_latest(like) for folder in (workdir, tmp_path / 'whole')]
    assert jax.tree.leaves(states[0]['buffers']['discriminator'])
    jax.tree.map(np.testing.assert_array_equal, *states)


def _train_with_little_room(config, workdir):
    # the limit would apply to the file that stderr is captured in, too
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        _train(config, workdir)
    except OSError as error:
        sys.exit(3 if 'a checkpoint could not be written' in str(error) else 4)


def test_a_checkpoint_that_can_not_be_written_costs_no_other(config, tmp_path):
    """A limit on file size simulates a disk that fills up while a checkpoint is being written."""
    assert exit_code(_train, until(config, 16), tmp_path / 'run') == 0
    assert exit_code(_train_with_little_room, config, tmp_path / 'run') == 3
    assert load_generator(tmp_path / 'run').images_seen == 16
    assert exit_code(_train, config, tmp_path / 'run') == exit_code(_train, config, tmp_path / 'whole') == 0
    assert_equal(tmp_path / 'run', tmp_path / 'whole')


def test_a_full_disk_is_said_before_anything_is_written(config, tmp_path, monkeypatch):
    train(until(config, 16), tmp_path / 'run', show=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=100_000))
    with pytest.raises(
        OSError, match=r'takes \d.* and 0.1 MB are free.*Free some space and run the same command again'
    ):
        train(config, tmp_path / 'run', show=False)
    assert [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['2']


def cut(folder):
    """Truncates every data file to half its size; some hold data no longer in use."""
    for path in folder.rglob('d/*'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    """Flips one bit in the middle of every data file."""
    for path in folder.rglob('d/*'):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


def alter(folder):
    """Replaces the parameters by intact ones of another step: only the fingerprint differs."""
    shutil.rmtree(folder / 'params')
    shutil.copytree(folder.parent / '2' / 'params', folder / 'params')


@pytest.mark.parametrize(
    'damage',
    [
        cut,
        flip,
        alter,
        lambda folder: shutil.rmtree(folder / 'opt'),
        lambda folder: shutil.rmtree(folder / 'fingerprints'),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(saved, tmp_path, damage, caplog):
    config, whole = saved[0], leaves(saved[1])
    shutil.copytree(saved[1], tmp_path / 'run')
    damage(tmp_path / 'run' / 'checkpoints' / '4')
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / 'run', show=False)
    assert f'{tmp_path}/run/checkpoints/4 is damaged' in caplog.text
    assert (tmp_path / 'run' / 'damaged' / '4').is_dir()
    for one, other in zip(whole, leaves(tmp_path / 'run'), strict=True):
        np.testing.assert_array_equal(one, other)


def proc_mem(folder):
    """Reading this file fails with EIO, as on a disk with a temporary failure."""
    path = next(path for path in (folder / 'params').rglob('d/*'))
    path.unlink()
    path.symlink_to('/proc/self/mem')


def stale(folder):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))


def wrapped(folder):
    """Raises a TensorStore bucket error the way Orbax does."""
    raise Exception('Encountered error while reading array index') from ValueError('UNAVAILABLE: try again later')


@pytest.mark.parametrize(
    'failure, message',
    [
        (proc_mem, '(?i)input/output error|EIO'),
        (stale, 'Stale'),
        (wrapped, 'Encountered'),
        (
            lambda folder: (_ for _ in ()).throw(OSError(errno.EACCES, 'Permission denied', str(folder))),
            'Permission denied',
        ),
    ],
)
def test_what_can_not_be_read_now_is_named_and_not_moved(saved, tmp_path, monkeypatch, failure, message):
    run = tmp_path / 'run'
    shutil.copytree(saved[1], run)
    if failure is proc_mem:
        proc_mem(run / 'checkpoints' / '4')
    else:
        monkeypatch.setattr(
            ocp.CheckpointManager, 'restore', lambda self, step, **_: failure(self.directory / str(step))
        )
    for attempt in (lambda: train(saved[0], run, show=False), lambda: load_generator(run)):
        with pytest.raises(OSError, match=message) as raised:
            attempt()
        assert f'{run}/checkpoints/4' in str(raised.value) and '\n' not in str(raised.value)
    assert not (run / 'damaged').exists() and {path.name for path in (run / 'checkpoints').iterdir()} == {'2', '4'}


def test_what_another_host_calls_damaged_or_unreadable_is_so_for_all(saved, monkeypatch):
    verdicts = iter([checkpoint.DAMAGED, checkpoint.WHOLE, checkpoint.WHOLE])
    monkeypatch.setattr(checkpoint.hosts, 'all_agree_on', lambda own: max(own, next(verdicts)))
    assert load_generator(saved[1]).images_seen == 16
    monkeypatch.setattr(checkpoint.hosts, 'all_agree_on', lambda own: checkpoint.UNREADABLE)
    with pytest.raises(OSError, match='another process'):
        load_generator(saved[1])


def test_a_step_that_the_first_host_does_not_see_is_not_restored(saved, monkeypatch):
    monkeypatch.setattr(checkpoint.hosts, 'first_says', lambda own: min(own, 2))
    assert load_generator(saved[1]).images_seen == 16


def test_weights_that_are_not_finite_are_refused(saved, tmp_path):
    release(load_generator(saved[1]), tmp_path)
    flat = weights.read_safetensors(tmp_path / 'model.safetensors')
    name = sorted(flat)[0]
    for value in np.nan, -np.inf:
        spoilt = np.array(flat[name])
        spoilt.flat[-1] = value
        weights.write_safetensors(tmp_path / 'model.safetensors', flat | {name: spoilt}, {})
        with pytest.raises(BadInput, match='not finite') as raised:
            load_generator(tmp_path)
        assert name in str(raised.value)


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'{"seed":',
        b'[]',
        b'\xff\xfe',
        b'{"data": {"gsd_m": NaN}}',
        b'{"data": {"gsd_m": -1}}',
        b'{"data": {"gsd_m": 1e999}}',
        b'{"seed": ' + b'9' * 5000 + b'}',
        b'[' * 100_000,
    ],
)
def test_a_spoilt_config_is_bad_input(saved, tmp_path, content):
    shutil.copytree(saved[1], tmp_path / 'run')
    (tmp_path / 'run' / 'config.json').write_bytes(content)
    with pytest.raises(BadInput, match='config.json') as raised:
        load_generator(tmp_path / 'run')
    assert '\n' not in str(raised.value)


def test_a_run_with_nothing_but_damage_does_not_start_over(saved, tmp_path):
    config, run = saved
    shutil.copytree(run, tmp_path / 'run')
    for step in (2, 4):
        cut(tmp_path / 'run' / 'checkpoints' / str(step))
    with pytest.raises(BadInput, match='no checkpoint can be read'):
        train(config, tmp_path / 'run', show=False)


def test_a_second_run_in_one_workdir_is_refused(config, tmp_path):
    process = in_its_own_process(_train, until(config, 8 * 10_000), tmp_path / 'run')
    while process.is_alive() and not steps_told(tmp_path / 'run'):
        time.sleep(0.05)
    try:
        with pytest.raises(BadInput, match='in use by another process'):
            train(until(config, 8 * 10_000), tmp_path / 'run', show=False)
    finally:
        process.kill()
        process.join()
    train(until(config, 16), tmp_path / 'other', show=False)  # a killed run keeps no lock
    train(until(config, 8 * (steps_told(tmp_path / 'run') + 1)), tmp_path / 'run', show=False)
