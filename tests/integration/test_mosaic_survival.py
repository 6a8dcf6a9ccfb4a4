"""Mosaics have the same bytes after killed workers, any order of work, and full disks."""

import os
import random
import resource
import sys
import time

import jax
import pytest
from scripts import server

from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule
from rsdiff.diffusion.solvers import integrate, solver_steps
from rsdiff.sampling.mosaic.cascade import MosaicSettings, sample_mosaic
from rsdiff.sampling.mosaic.field import WindowSampler
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.store import StageArray

WINDOW, BATCH = 32, 4
PLAN = make_plan('fast', WINDOW, steps=4)
SETTINGS = MosaicSettings(gsd_m=160.0, stages=2, plan=PLAN, supertile_px=48)
WORKERS = 2
# the name of a shard while it is being written; it is renamed when complete
PARTIAL = 'mosaic.zarr/stage_*/c/*/*/*.__lock'


def predict(lr):
    """x_0 depends on the entire window, as a network's does."""
    enlarged = jax.numpy.repeat(jax.numpy.repeat(lr, 4, 1), 4, 2)
    return lambda x, t: 0.6 * enlarged + 0.3 * jax.numpy.tanh(x - x.mean((1, 2), keepdims=True))


ADVANCE = jax.jit(lambda condition, x, x0, steps, *_: integrate(predict(condition['lr']), steps, x, x0))


def make(condition, out, log=None, seconds=0.0, batch=BATCH):
    """Makes the mosaic. Each call of the network takes `seconds` and appends a byte to `log`."""

    def advance(*arguments):
        time.sleep(seconds)
        if log:
            with open(log, 'ab') as file:
                file.write(b'.')
        return ADVANCE(*arguments)

    steps = solver_steps(PLAN.solver, make_schedule(ScheduleConfig()), PLAN.steps)
    sampler = WindowSampler(advance, lambda condition, x: x, steps, batch)
    return sample_mosaic(lambda gsd_m: sampler, condition, out, SETTINGS, {}, show=False, formats=['zarr'])


def stored(out):
    """Every byte of the mosaic."""
    return {path.relative_to(out): path.read_bytes() for path in (out / 'mosaic.zarr').rglob('*') if path.is_file()}


def shards(out):
    return {path.relative_to(out): path.read_bytes() for path in out.glob('mosaic.zarr/stage_*/c/*/*/0')}


def _alone(target, *arguments):
    os.environ['XLA_FLAGS'] = ''  # one device starts faster than eight
    target(*arguments)


def start(target, *arguments):
    process = server.Process(target=_alone, args=(target, *arguments))
    process.start()
    return process


def test_kills_change_nothing_and_cost_a_supertile_each(smooth_image, kills, tmp_path, capsys):
    """SIGKILL to two workers at random moments, every second time while a shard is being written."""
    condition, chance = smooth_image(6, 12 * kills), random.Random(0)
    made = make(condition, tmp_path / 'whole', tmp_path / 'whole.log')
    whole, out, log, there, writing = stored(tmp_path / 'whole'), tmp_path / 'killed', tmp_path / 'killed.log', [0], 0
    for number in range(kills):
        workers = [start(make, condition, out, log, 0.01) for _ in range(WORKERS)]
        alive, target = lambda: any(worker.is_alive() for worker in workers), there[-1] + chance.randint(1, 4)
        while alive() and len(shards(out)) < target:
            time.sleep(0.01)
        if number % 2:
            while alive() and not any(out.glob(PARTIAL)):
                time.sleep(0.0005)
        else:
            time.sleep(chance.uniform(0, 0.2))
        assert alive(), 'ended by themselves'
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
        writing += any(out.glob(PARTIAL))
        assert shards(out).items() <= whole.items()
        there.append(len(shards(out)))
    rest = make(condition, out, log)
    assert stored(out) == whole and rest['sampled_now'] == made['supertiles'] - there[-1]
    again = log.stat().st_size - (tmp_path / 'whole.log').stat().st_size
    with capsys.disabled():
        print(
            f'\n{kills} kills of {WORKERS} workers, {writing} during a write: {made["supertiles"]} supertiles, there after each '
            f'{there[1:]}; {again} network calls made twice, {again / calls_a_supertile() / kills:.2f} supertiles a kill'
        )
    assert 0 < again <= kills * WORKERS * calls_a_supertile()


def calls_a_supertile():
    """Upper bound on network calls per supertile, from the geometry."""
    places = [PLAN.places(0, a, a + 48) for a in range(0, 48 * 7, 48)]
    most = [max(map(len, phase)) for phase in zip(*places)]
    return sum(-(-(count**2) // BATCH) for count in most)


def _make_shuffled(condition, out, seed):
    tiles = StageArray.tiles
    StageArray.tiles = lambda array: iter(random.Random(seed).sample(list(tiles(array)), array.count()))
    make(condition, out, seconds=0.005, batch=1 + 2 * seed)


@pytest.mark.parametrize('count', [1, 2, 4])
def test_workers_order_and_batches_change_no_byte(smooth_image, count, tmp_path):
    """Each worker takes the supertiles in its own order and with its own batch size."""
    condition = smooth_image(9, 13)
    make(condition, tmp_path / 'whole')
    workers = [start(_make_shuffled, condition, tmp_path / 'out', seed) for seed in range(count)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * count
    assert stored(tmp_path / 'out') == stored(tmp_path / 'whole')


def _make_with_little_room(condition, out, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        make(condition, out)
    except OSError as error:
        sys.exit(3 if 'File too large' in str(error) and '/stage_2/c/' in str(error) else 4)


def test_a_full_disk_is_said_and_costs_nothing_that_is_written(smooth_image, tmp_path):
    """A limit on file size simulates a disk that fills up while a shard is being written."""
    condition, out = smooth_image(9, 13), tmp_path / 'out'
    make(condition, out)
    whole = stored(out)
    missing = list(out.glob('mosaic.zarr/stage_2/c/*/*/0'))[::2]
    limit = min(path.stat().st_size for path in missing) - 1
    for path in missing:
        path.unlink()
    worker = start(_make_with_little_room, condition, out, limit)
    worker.join()
    assert worker.exitcode == 3
    left = stored(out)
    assert left.items() <= whole.items() and len(left) == len(whole) - len(missing)
    assert make(condition, out)['sampled_now'] == len(missing) and stored(out) == whole


def test_a_folder_that_can_not_be_written_is_an_error_of_the_system(smooth_image, tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(OSError, match='file'):
        make(smooth_image(4, 4), tmp_path / 'file' / 'out')
    make(smooth_image(4, 4), tmp_path / 'out')
    shard = tmp_path / 'out/mosaic.zarr/stage_2/c/0/0/0'
    shard.unlink()
    before = stored(tmp_path / 'out')
    shard.parent.rmdir()
    shard.parent.write_text('mine')
    with pytest.raises(OSError, match='stage_2/c/0/0'):
        make(smooth_image(4, 4), tmp_path / 'out')
    assert stored(tmp_path / 'out').items() - before.items() == {(shard.parent.relative_to(tmp_path / 'out'), b'mine')}
