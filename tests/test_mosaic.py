"""A mosaic on disk: its files, and that interruptions, damage and other workers change none of its bytes."""

import contextlib
import json
import multiprocessing
import os
import random
import time
import tracemalloc

import jax
import numpy as np
import pytest

from rsdiff.base import work
from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.folders import claim_folder
from rsdiff.base.work import Claims, share_out
from rsdiff.data.images import read_image, write_image
from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule
from rsdiff.diffusion.solvers import integrate, solver_steps
from rsdiff.sampling.mosaic.cascade import (
    MosaicSettings,
    check_region,
    estimate,
    extent,
    lazy_mosaic,
    sample_mosaic,
    sample_region,
    save_region,
)
from rsdiff.sampling.mosaic.condition import Condition
from rsdiff.sampling.mosaic.field import WindowSampler
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.store import StageArray

SCHEDULE = make_schedule(ScheduleConfig())
WINDOW = 32
PLAN = make_plan('fast', WINDOW, steps=4, phases=3)
SETTINGS = MosaicSettings(gsd_m=160.0, stages=2, plan=PLAN, supertile_px=48)


def predictor(lr):
    enlarged = jax.numpy.repeat(jax.numpy.repeat(lr, 4, 1), 4, 2)
    return lambda x, t: 0.6 * enlarged + 0.3 * jax.numpy.tanh(x - x.mean((1, 2), keepdims=True))


ADVANCE = jax.jit(lambda condition, x, x0, steps, *_: integrate(predictor(condition['lr']), steps, x, x0))


def at(gsd_m):
    return WindowSampler(ADVANCE, lambda condition, x: x, solver_steps(PLAN.solver, SCHEDULE, PLAN.steps), batch=4)


def make(condition, out, settings=SETTINGS, sampler_at=at, **provenance):
    return sample_mosaic(sampler_at, condition, out, settings, {'checkpoint': 'abc'} | provenance, show=False)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def shards(out):
    return {path: content for path, content in files(out).items() if 'c' in path.parts}


@pytest.fixture(scope='module')
def condition(smooth_image):
    return smooth_image(9, 13)


@pytest.fixture(scope='module')
def whole(condition, tmp_path_factory):
    """A finished mosaic of two stages: 36 × 52 px in 1 × 2 supertiles, and 144 × 208 px in 3 × 5."""
    out = tmp_path_factory.mktemp('mosaic') / 'out'
    return out, make(condition, out)


@pytest.mark.bytes
def test_stages_stand_on_each_other(whole, condition):
    out, result = whole
    assert (result['height'], result['width'], result['pixels'], result['gsd_m']) == (144, 208, 144 * 208, 10.0)
    assert result['sampled_now'] == result['supertiles'] == 2 + 15
    first, second = (read_image(out / f'stage_{n}.png') for n in (1, 2))
    np.testing.assert_array_equal(first, SETTINGS.field(at(40.0), condition, 1).region(Box(0, 0, 36, 52)))
    np.testing.assert_array_equal(second, SETTINGS.field(at(10.0), first, 2).region(Box(0, 0, 144, 208)))
    assert not list((out / 'claims').iterdir())


def test_the_group_is_zarr_v3_as_others_read_it(whole):
    zarr = pytest.importorskip('zarr', reason='an independent reader of Zarr v3')
    group = zarr.open_group(whole[0] / 'mosaic.zarr', mode='r')
    for stage in (1, 2):
        array = group[f'stage_{stage}']
        assert array.shards == (48, 48, 3) and array.metadata.dimension_names == ('y', 'x', 'band')
        np.testing.assert_array_equal(array[:], read_image(whole[0] / f'stage_{stage}.png'))
        assert array.attrs['gsd_m'] == 160 / 4**stage


def test_metadata_is_what_the_specification_asks_for(whole):
    group = json.loads((whole[0] / 'mosaic.zarr' / 'zarr.json').read_text())
    assert (group['zarr_format'], group['node_type']) == (3, 'group') and group['attributes']['checkpoint'] == 'abc'
    array = json.loads((whole[0] / 'mosaic.zarr' / 'stage_2' / 'zarr.json').read_text())
    assert (array['node_type'], array['shape'], array['data_type']) == ('array', [144, 208, 3], 'uint8')
    assert [codec['name'] for codec in array['codecs']] == ['sharding_indexed']
    assert array['chunk_grid']['configuration']['chunk_shape'] == [48, 48, 3]


@pytest.mark.bytes
@pytest.mark.parametrize('box', [Box(0, 0, 10, 9), Box(40, 60, 100, 130), Box(143, 207, 144, 208)])
def test_a_region_alone_has_the_bytes_of_the_whole(whole, condition, box, tmp_path):
    picture = read_image(whole[0] / 'stage_2.png')
    np.testing.assert_array_equal(sample_region(at, condition, SETTINGS, box), box.crop(picture))
    np.testing.assert_array_equal(
        lazy_mosaic(at, condition, SETTINGS)[box.y0 : box.y1, box.x0 : box.x1], box.crop(picture)
    )
    saved = save_region(at, condition, tmp_path / 'r', SETTINGS, {}, box.y0, box.x0, box.y1 - box.y0, box.x1 - box.x0)
    np.testing.assert_array_equal(read_image(saved['picture']), box.crop(picture))


@pytest.mark.bytes
@pytest.mark.parametrize('wrap_x', [False, True])
def test_fifty_rectangles_of_two_stages_have_the_bytes_of_the_whole(condition, wrap_x, tmp_path):
    """The condition has an odd size; on a cylinder, also across the seam, against two copies side by side."""
    settings, chance = MosaicSettings(**{**vars(SETTINGS), 'wrap_x': wrap_x}), random.Random(0)
    make(condition, tmp_path / 'out', settings)
    picture = read_image(tmp_path / 'out' / 'stage_2.png')
    beside, lazy, crossing = np.concatenate([picture, picture], 1), lazy_mosaic(at, condition, settings), 0
    for _ in range(50):
        y, x, height, width = (chance.randrange(n) for n in (144, 208, 40, 40))
        box = Box(y, x, min(y + height, 143) + 1, x + width + 1 if wrap_x else min(x + width, 207) + 1)
        np.testing.assert_array_equal(sample_region(at, condition, settings, box), box.crop(beside))
        if box.x1 <= 208:
            np.testing.assert_array_equal(lazy[box.y0 : box.y1, box.x0 : box.x1], box.crop(picture))
        crossing += box.x1 > 208
    assert bool(crossing) == wrap_x
    with pytest.raises(BadInput, match='is not in the canvas'):
        check_region(condition, settings, Box(0, 8, 5, 8 + 209))


def test_a_region_of_a_finished_mosaic_may_lie_beside_it(whole, condition):
    made = save_region(at, condition, whole[0], SETTINGS, {'checkpoint': 'abc'}, 0, 0, 4, 5)
    assert made['pixels'] == 20
    with pytest.raises(BadInput, match="checkpoint 'abc' → 'abd'"):
        save_region(at, condition, whole[0], SETTINGS, {'checkpoint': 'abd'}, 0, 0, 4, 5)


@pytest.mark.parametrize('box', [Box(-1, 0, 5, 5), Box(0, 0, 145, 5), Box(0, 0, 5, 209), Box(3, 3, 3, 9)])
def test_a_region_outside_the_canvas_is_refused(condition, box):
    with pytest.raises(BadInput, match='is not in the canvas, 144 px high and 208 px wide'):
        sample_region(at, condition, SETTINGS, box)


class Stopped(Exception):
    pass


def stops_after(calls):
    left = [calls]

    def stopping(gsd_m):
        sampler = at(gsd_m)

        def advance(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return sampler.advance(*arguments)

        return WindowSampler(advance, sampler.image, sampler.steps, sampler.batch)

    return stopping


@pytest.mark.bytes
def test_an_interrupted_mosaic_continues_to_the_same_bytes(whole, condition, tmp_path):
    for calls in (1, 30, 60):
        with pytest.raises(Stopped):
            make(condition, tmp_path / 'out', sampler_at=stops_after(calls))
    done = len(shards(tmp_path / 'out'))
    assert 0 < done < 17
    assert make(condition, tmp_path / 'out')['sampled_now'] == 17 - done
    assert shards(tmp_path / 'out') == shards(whole[0])


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage_empty(path):
    path.write_bytes(b'')


def damage_extend(path):
    path.write_bytes(path.read_bytes() + b'x' * 64)


@pytest.mark.bytes
@pytest.mark.parametrize('damage', [damage_cut, damage_empty, damage_extend, lambda path: path.unlink()])
def test_a_damaged_shard_is_made_again_and_no_other(whole, condition, tmp_path, damage):
    make(condition, tmp_path / 'out')
    damage(tmp_path / 'out' / 'mosaic.zarr' / 'stage_2' / 'c' / '1' / '3' / '0')
    assert make(condition, tmp_path / 'out')['sampled_now'] == 1
    assert shards(tmp_path / 'out') == shards(whole[0])


def test_running_again_samples_nothing_and_another_run_is_refused_by_name(whole, condition):
    out, before = whole[0], files(whole[0])
    assert make(condition, out)['sampled_now'] == 0
    spoilt = [
        (dict(seed=1), 'seed 0 → 1'),
        (dict(noise='shared'), 'noise'),
        (dict(wrap_x=True), 'wrap_x False → True'),
        (dict(plan=make_plan('metaearth', WINDOW, 4)), "plan 'fast' → 'metaearth'"),
        (dict(supertile_px=64), 'supertile_px 48 → 64'),
    ]
    for change, message in spoilt:
        with pytest.raises(BadInput, match=message):
            make(condition, out, MosaicSettings(**{**vars(SETTINGS), **change}))
    with pytest.raises(BadInput, match='condition_px'):
        make(condition[:8], out)
    assert files(out) == before


def test_someone_elses_folder_is_not_touched(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(BadInput, match='is not output of this program'):
        claim_folder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_a_black_supertile_is_a_finished_one(tmp_path):
    array = StageArray(tmp_path / 'a', 32, 40, 16)
    array.write((0, 1), np.zeros((16, 16, 3), np.uint8))
    array.write((1, 2), np.zeros((16, 8, 3), np.uint8))
    again = StageArray(tmp_path / 'a', 32, 40, 16)
    assert [tile for tile in again.tiles() if again.is_done(tile)] == [(0, 1), (1, 2)] and again.count() == 6
    with pytest.raises(BadInput, match='not the array that belongs here'):
        StageArray(tmp_path / 'a', 32, 40, 8)


def test_no_cut_of_a_shard_passes_for_a_whole_one(tmp_path):
    array = StageArray(tmp_path / 'a', 40, 40, 40)
    array.write((0, 0), np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    content = array.shard((0, 0)).read_bytes()
    for length in range(0, len(content), 7):
        array.shard((0, 0)).write_bytes(content[:length])
        assert not array.is_done((0, 0))


def test_no_flipped_bit_is_shown(tmp_path):
    """Either the shard does not match its index and is made again, or reading it raises an error that names it."""
    array, pixels = (
        StageArray(tmp_path / 'a', 40, 80, 40),
        np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8),
    )
    for tile in array.tiles():
        array.write(tile, array.box(tile).crop(pixels))
    content, told = array.shard((0, 1)).read_bytes(), 0
    for place in range(0, len(content), 41):
        rotten = bytearray(content)
        rotten[place] ^= 16
        array.shard((0, 1)).write_bytes(rotten)
        if array.is_done((0, 1)):
            with pytest.raises(BadInput, match=r'/c/0/1/0: damaged .*; remove it and run the command again'):
                array[3:20, 30:50]
            told += 1
        np.testing.assert_array_equal(array[3:20, 3:40], pixels[3:20, 3:40])
    assert told > 100


def test_a_rotten_stage_is_named_before_the_next_one_is_made_of_it(whole, condition, tmp_path):
    out = tmp_path / 'out'
    make(condition, out)
    first, last = (out / 'mosaic.zarr' / f'stage_{stage}/c/0/0/0' for stage in (1, 2))
    content = bytearray(first.read_bytes())
    content[len(content) // 4] ^= 1
    first.write_bytes(content)
    last.unlink()
    with pytest.raises(BadInput, match=f'{first}: damaged'):
        make(condition, out)
    first.unlink()
    assert make(condition, out)['sampled_now'] == 2 and shards(out) == shards(whole[0])


def test_work_is_shared_out_and_what_others_hold_is_waited_for(tmp_path, monkeypatch):
    """Another worker claims items 2 and 4 until the second look; by then 4 is finished and 2 is abandoned."""
    claims, there, others = Claims(tmp_path), {1}, contextlib.ExitStack()
    for name in '24':
        assert others.enter_context(Claims(tmp_path).claim(name))
    monkeypatch.setattr(work.time, 'sleep', lambda seconds: (there.add(4), others.close()))
    done = share_out(iter(range(5)), there.__contains__, there.add, lambda item: claims.claim(str(item)))
    assert list(done) == [(0, True), (1, False), (3, True), (2, True), (4, False)] and there == {*range(5)}
    assert not list(tmp_path.iterdir())


processes = multiprocessing.get_context('forkserver')


def _make_slowly(condition, out):
    def slow(gsd_m):
        sampler = at(gsd_m)
        return WindowSampler(
            lambda *arguments: time.sleep(0.05) or sampler.advance(*arguments),
            sampler.image,
            sampler.steps,
            sampler.batch,
        )

    os.environ['XLA_FLAGS'] = ''
    make(condition, out, sampler_at=slow)


@pytest.mark.bytes
def test_killed_workers_beside_others_change_nothing(whole, condition, tmp_path):
    """Two of three are killed while they hold claims; the third, and a fourth started later, finish the mosaic."""
    out = tmp_path / 'out'
    workers = [processes.Process(target=_make_slowly, args=(condition, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    while len(shards(out) if out.exists() else ()) < 3:
        assert any(worker.is_alive() for worker in workers)
        time.sleep(0.02)
    for worker in workers[:2]:
        worker.kill()
    assert len(shards(out)) < 17
    make(condition, out)
    workers[2].join()
    assert workers[2].exitcode == 0
    assert shards(out) == shards(whole[0])


def test_a_million_squared_is_planned_at_once_and_read_anywhere():
    class Endless:
        shape = (62_500, 62_500, 3)

        def __getitem__(self, key):
            rows, columns = (np.arange(part.start, part.stop) for part in key)
            assert rows.size * columns.size < 10_000
            return np.stack(
                [
                    np.broadcast_to(v % 256, (rows.size, columns.size))
                    for v in (rows[:, None], columns, rows[:, None] + columns)
                ],
                -1,
            ).astype(np.uint8)

    settings = MosaicSettings(160.0, 2, PLAN, 1024)
    known = extent(Endless.shape, settings)
    assert known['pixels'] == 10**12 and known['supertiles'] == 977**2 + 245**2
    there = sample_region(at, Endless(), settings, Box(999_990, 500_000, 10**6, 500_010))
    assert there.shape == (10, 10, 3)


def test_the_work_of_a_million_squared_is_a_list_that_nobody_keeps(tmp_path):
    array, claims = StageArray(tmp_path / 'a', 10**6, 10**6, 1024), contextlib.nullcontext(True)
    tracemalloc.start()
    try:
        done = sum(
            1 for _ in share_out(array.tiles(), lambda tile: tile != (976, 976), lambda tile: None, lambda tile: claims)
        )
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done == array.count() == 977**2 and array.box((976, 976)) == Box(999_424, 999_424, 10**6, 10**6)
    assert most < 100_000 and not (tmp_path / 'a' / 'c').exists()


def test_an_estimate_says_what_a_mosaic_then_costs(condition, whole):
    told = estimate(at, condition, SETTINGS)
    made = {key: whole[1][key] for key in told if key in whole[1]}
    assert made.items() <= told.items() and len(made) > 5
    assert told['disk_bytes_at_most'] == 3 * (36 * 52 + 144 * 208) and told['estimated_seconds'] > 0


@pytest.mark.parametrize('side', [0, 8, 1009])
def test_a_supertile_without_sensible_chunks_is_refused(side):
    with pytest.raises(BadInput, match=f'a supertile of {side} px'):
        MosaicSettings(1.0, 1, PLAN, side)


def test_a_condition_of_one_pixel_is_enough(tmp_path):
    settings = MosaicSettings(1.0, 1, PLAN, 48)
    made = make(np.full((1, 1, 3), 128, np.uint8), tmp_path / 'out', settings)
    assert made['pixels'] == 16 and read_image(tmp_path / 'out' / 'stage_1.png').shape == (4, 4, 3)


def test_a_condition_is_read_by_window_and_keeps_its_place_on_earth(tmp_path, condition, whole):
    rasterio = pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    transform = rasterio.Affine(160, 0, 500_000, 0, -160, 4_000_000)
    options = dict(driver='GTiff', width=13, height=9, count=3, dtype='uint8', crs='EPSG:32633', transform=transform)
    with rasterio.open(tmp_path / 'lr.tif', 'w', **options) as file:
        file.write(np.moveaxis(condition, -1, 0))
    opened = Condition(tmp_path / 'lr.tif')
    assert opened.shape == (9, 13, 3) and opened.gsd_m == pytest.approx(160, rel=1e-3)
    np.testing.assert_array_equal(opened[2:5, 3:11], condition[2:5, 3:11])
    sample_mosaic(at, opened, tmp_path / 'out', SETTINGS, {'checkpoint': 'abc'}, opened.georeference, show=False)
    assert shards(tmp_path / 'out') == shards(whole[0])
    attributes = json.loads((tmp_path / 'out/mosaic.zarr/stage_2/zarr.json').read_text())['attributes']
    assert rasterio.crs.CRS.from_wkt(attributes['crs']).to_epsg() == 32633
    assert attributes['transform'] == [10, 0, 500_000, 0, -10, 4_000_000]

    with rasterio.open(tmp_path / 'float.tif', 'w', **options | {'dtype': 'float32'}) as file:
        file.write(np.where(np.arange(13) == 7, np.nan, np.moveaxis(condition, -1, 0) / 255).astype(np.float32))
    floating = Condition(tmp_path / 'float.tif', value_range=(0.0, 1.0))
    np.testing.assert_array_equal(floating[0:9, 0:7], condition[:, :7])
    assert not floating.valid(Box(0, 0, 9, 13))[:, 7].any() and floating.void.void_pixels == 9
    assert floating[0:9, 5:9].min() > 0


def test_the_digest_of_a_condition_sees_its_bytes(tmp_path, condition):
    write_image(tmp_path / 'a.png', condition)
    write_image(tmp_path / 'b.png', condition ^ (np.arange(13) == 12).astype(np.uint8)[:, None])
    assert Condition(tmp_path / 'a.png').digest() != Condition(tmp_path / 'b.png').digest()
    (tmp_path / 'c.png').write_bytes((tmp_path / 'a.png').read_bytes())
    assert Condition(tmp_path / 'a.png').digest() == Condition(tmp_path / 'c.png').digest()
