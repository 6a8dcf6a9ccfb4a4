"""Stacks: several images of one place, of which each row has any number."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from PIL import Image
from scripts import last_line, run_script

from rsdiff.base.errors import BadInput
from rsdiff.data.degradation import DegradationConfig
from rsdiff.data.fields import Field
from rsdiff.data.folder import Entry, read_folder
from rsdiff.data.images import read_image, write_image
from rsdiff.data.inventory import take_inventory
from rsdiff.data.pipeline import DataConfig, batches, make_source
from rsdiff.methods.base import fields_to_read, fields_to_train, prepared_batch
from rsdiff.methods.regression import Regression, RegressionConfig
from rsdiff.models.conditioning import Spatial
from rsdiff.sampling.binding import bind_images, bind_windows
from rsdiff.sampling.images import FolderSettings, ImageSampler, sample_folder
from rsdiff.sampling.mosaic.cascade import MosaicSettings, lazy_mosaic
from rsdiff.sampling.mosaic.condition import Stack, open_field
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.training.mesh import make_mesh

T, LOW = 3, 16
SPATIAL = {'lr': Spatial(), 'frames': Spatial(frames=T, droppable=True)}
LR, FRAMES = fields_to_train(SPATIAL)


def ramp(side, mark=0):
    """Red and green grow with row and column at the same rate in every image of the ground; blue is `mark`."""
    y, x = np.meshgrid(*[(np.arange(side) + 0.5) * 240 / side] * 2, indexing='ij')
    return np.rint(np.stack([y, x, np.full_like(y, mark)], -1)).astype(np.uint8)


BLACK = np.zeros((LOW, LOW, 3), np.uint8)


@pytest.fixture
def make(tmp_path):
    """([frames, one list per row]) → a config that reads the folder. A row of None has neither frames nor `lr`."""

    def make(*rows, lr=True, **options):
        lines = []
        for number, frames in enumerate(rows):
            line: dict[str, Any] = {'file_name': f'image/{number}.png', 'gsd_m': 2.5}
            write_image(tmp_path / line['file_name'], ramp(4 * LOW, 100 + number))
            if lr and frames is not None:
                line['low_res_file_name'] = f'lr/{number}.png'
                write_image(tmp_path / line['low_res_file_name'], ramp(LOW, 200 + number))
            if frames:
                line['frames_file_names'] = [f'frames/{number}/{k}.png' for k in range(len(frames))]
                for name, pixels in zip(line['frames_file_names'], frames):
                    write_image(tmp_path / name, pixels)
            lines.append(line)
        (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
        return DataConfig(**{'source': str(tmp_path), 'size_px': 32, 'validation_share': 0} | options)

    return make


def take(config, fields=(LR, FRAMES), count=16):
    return next(batches(make_source(config, fields=fields), config, 0, count))


def test_a_networks_stack_is_a_field():
    assert fields_to_read(SPATIAL) == (Field('frames', 3, 4, needed=False, frames=T),)
    assert FRAMES.key == 'frames_file_names' and FRAMES.shape(32) == (8, 8, 9) and FRAMES.dtype == np.float32


def test_frames_show_the_ground_of_the_image_in_the_same_turn_and_are_nan_where_there_is_none(make):
    """Row 1 has a black frame, which is skipped; row 2 has more frames than the network takes; row 3 has none."""
    config = make(
        [ramp(LOW, 10), ramp(LOW, 11)],
        [BLACK, ramp(LOW, 21), BLACK],
        [ramp(LOW, mark) for mark in (30, 31, 32, 33, 34)],
        [],
    )
    source = make_source(config, fields=(LR, FRAMES))
    got = next(batches(source, config, 0, 32))
    assert got['frames'].dtype == np.float32 and got['frames'].shape == (32, 8, 8, 3 * T)
    rows, marks = got['image'][:, 0, 0, 2] - 100, {0: [10, 11], 1: [21], 2: [30, 31, 32], 3: []}
    assert {*rows} == {*marks}
    for row, image, lr, frames in zip(rows, got['image'], got['lr'], got['frames']):
        frames = frames.reshape(8, 8, T, 3).transpose(2, 0, 1, 3)
        known = marks[row]
        assert np.isnan(frames[len(known) :]).all()
        for mark, frame in zip(known, (frames + 1) * 127.5):
            np.testing.assert_allclose(frame[..., 2], mark, atol=1e-3)
            np.testing.assert_allclose(frame[..., :2], lr[..., :2], atol=1e-3)
            blocks = image.reshape(8, 4, 8, 4, 3).mean((1, 3))
            assert np.abs(frame[..., :2] - blocks[..., :2]).max() <= 1.01
    condition = prepared_batch(SPATIAL, DegradationConfig(), (), got, jax.random.key(0))['condition']
    np.testing.assert_array_equal(condition['frames'], got['frames'])
    black = {name.rpartition('frames/')[2] for name in source.skipped}
    assert black == {'1/0.png', '1/2.png'}


def test_without_frames_batches_are_what_they_were(make):
    config = make(None, None)
    plain, now = take(config, ()), take(config)
    assert {*plain} == {*now} == {'image', 'gsd_m'}
    assert all(np.array_equal(plain[name], now[name]) for name in plain)


def test_where_all_frames_are_black_the_reference_is_used_alone(make):
    config = make([BLACK, BLACK], [ramp(LOW, 1)])
    got = take(config)
    row = got['image'][:, 0, 0, 2] - 100
    assert np.isnan(got['frames'][row == 0]).all() and not np.isnan(got['frames'][row == 1][..., :3]).any()
    assert (got['lr'][..., 2] == 200 + row[:, None, None]).all()
    needed = make_source(make([BLACK]), fields=(LR, dataclasses.replace(FRAMES, needed=True)))
    with pytest.raises(BadInput, match=r'image/0.png: all 1 images of its frames_file_names are black') as error:
        needed.example(0, np.random.default_rng(0), 32)
    assert '\n' not in str(error.value)


def test_frames_without_a_reference_are_refused_by_name(make):
    with pytest.raises(BadInput, match='image/0.png has frames_file_names, but no low_res_file_name'):
        make_source(make([ramp(LOW)], [ramp(LOW)], lr=False), fields=(LR, FRAMES))


def test_frames_of_several_sizes_are_named(make):
    with pytest.raises(BadInput, match=r'frames/0/1.png: 8×8 px; .*frames/0/0.png of the same row has 16×16'):
        make_source(make([ramp(LOW), ramp(8, 9)]), fields=(LR, FRAMES)).example(0, np.random.default_rng(0), 32)


def test_a_frame_with_gaps_in_a_crop_is_left_out_of_it(make, tmp_path):
    config = make([ramp(LOW, 1), ramp(LOW, 2)], size_px=32)
    alpha = np.where(np.arange(LOW) < LOW // 2, 0, 255) * np.ones((LOW, 1), int)
    Image.fromarray(np.dstack([ramp(LOW, 1), alpha]).astype(np.uint8)).save(tmp_path / 'frames/0/0.png')
    got = take(config, count=32)
    first = np.rint((got['frames'][:, 0, 0, 2] + 1) * 127.5)
    gap = got['image'][..., 1].min((1, 2)) < 120  # the crop reaches into the left half
    assert 0 < gap.sum() < len(gap) and (first[gap] == 2).all() and (first[~gap] == 1).all()
    assert np.isnan(got['frames'][gap][..., 3:]).all()


def test_every_frame_is_part_of_what_was_trained_on(make, tmp_path):
    config = make([ramp(LOW, mark) for mark in range(1, 6)])
    look = lambda: take_inventory(make_source(config, fields=(LR, FRAMES)), config.source).digests
    before = look()
    assert [name for name in before if 'frames' in name] == [f'image/0.png:frames[{k}]' for k in range(5)]
    write_image(tmp_path / 'frames/0/4.png', ramp(LOW, 99))
    assert {name for name, digest in look().items() if digest != before[name]} == {'image/0.png:frames[4]'}


@pytest.mark.parametrize(
    'line, message',
    [
        ('{"file_name": "image/0.png", "frames_file_names": "lr/0.png"}', 'must be a list of strings'),
        ('{"file_name": "image/0.png", "frames_file_names": ["lr/0.png", 3]}', 'must be a list of strings'),
        (
            '{"file_name": "image/0.png", "frames_file_names": ["lr/0.png", "lr/9.png"]}',
            "'lr/9.png', which does not exist",
        ),
        ('{"file_name": "image/0.png", "frames_file_names": ["../0.png"]}', 'leaves the folder'),
        (
            '{"file_name": "image/0.png", "frames_file_names": ["lr/0.png"], "frames_file_name": "lr/0.png"}',
            'are one field',
        ),
    ],
)
def test_a_manifest_is_checked(make, tmp_path, line, message):
    make([])
    (tmp_path / 'metadata.jsonl').write_text(line)
    with pytest.raises(BadInput, match=message) as error:
        read_folder(tmp_path)
    assert '\n' not in str(error.value) and 'metadata.jsonl:1' in str(error.value)


def test_a_table_can_not_hold_lists(make, tmp_path):
    make([])
    (tmp_path / 'metadata.jsonl').unlink()
    (tmp_path / 'metadata.csv').write_text('file_name,frames_file_names\nimage/0.png,lr/0.png\n')
    with pytest.raises(BadInput, match=r'must be a list of strings, as only metadata.jsonl'):
        read_folder(tmp_path)


@dataclasses.dataclass(frozen=True)
class MeanConfig:
    """A network that enlarges the mean of its frames, or `lr`, by repeating pixels."""

    channels: int = 3
    upscale: int = 4
    stride: int = 4
    dtype: str = 'float32'
    fields = SPATIAL


class Mean(nnx.Module):
    def __init__(self, config, *, rngs):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, condition):
        lr = condition['lr']
        frames = condition.get('frames', jnp.full((*lr.shape[:3], 3 * T), jnp.nan))
        frames = frames.reshape(*lr.shape[:3], T, 3)
        mean = jnp.where(jnp.isnan(frames).all(-2), lr, jnp.nanmean(frames, -2))
        return self.gain.value * jnp.repeat(jnp.repeat(mean, 4, 1), 4, 2)


class MeanRegression(Regression):
    make_network = staticmethod(Mean)


@pytest.fixture(scope='module')
def method():
    return MeanRegression(RegressionConfig(model=MeanConfig()), DegradationConfig())  # pyright: ignore


def blue(images):
    """The levels of the last channel."""
    return np.rint((np.asarray(images)[..., 2] + 1) * 127.5)


def test_a_folder_is_sampled_with_the_frames_of_its_rows(tmp_path, method):
    lines = []
    for number, marks in enumerate([(10, 20), (), (0, 40)]):
        write_image(tmp_path / f'in/{number}.png', ramp(8, 100))
        line: dict[str, Any] = {'file_name': f'{number}.png', 'gsd_m': 10, 'frames_file_names': []}
        for mark in marks:
            line['frames_file_names'].append(f'frames/{number}_{mark}.png')
            write_image(tmp_path / 'in' / line['frames_file_names'][-1], ramp(8, mark) * np.uint8(mark > 0))
        lines.append(line)
    (tmp_path / 'in/metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    seen = []
    params = method.init(jax.random.key(0))
    sampler = bind_images(method, params, 1, make_mesh(devices=jax.devices()[:1]), None)
    spy = lambda condition, *rest: seen.append(condition['frames']) or sampler.sample(condition, *rest)
    settings = FolderSettings(1, 32, 1, batch_size=4)
    result = sample_folder(
        ImageSampler(spy, 4, 3, sampler.fields), DegradationConfig(), read_folder(tmp_path / 'in'), tmp_path / 'out',
        settings, {}, show=False,
    )  # fmt: skip
    assert result['images'] == 3 and result['frames_skipped'] == 1
    assert seen[0].shape == (4, 8, 8, 9) and not np.isnan(seen[0][0, ..., :6]).any() and np.isnan(seen[0][1]).all()
    made = [np.asarray(Image.open(tmp_path / f'out/{number}-0.png'))[..., 2].mean() for number in range(3)]
    np.testing.assert_allclose(made, [15, 100, 40], atol=0.51)
    rows = read_folder(tmp_path / 'out')
    assert ['field_frames' in row.extra for row in rows] == [True, False, True]
    assert len(rows[0].extra['field_frames']) == 64
    # --field gives frames to the rows without
    again = sample_folder(
        sampler, DegradationConfig(), read_folder(tmp_path / 'in'), tmp_path / 'all', settings, {}, show=False,
        constants={'frames': [str(tmp_path / 'in/frames/0_20.png')]},
    )  # fmt: skip
    assert again['images'] == 3
    assert np.asarray(Image.open(tmp_path / 'all/1-0.png'))[..., 2].mean() == pytest.approx(20, abs=0.51)


def test_a_mosaic_reads_a_stack(tmp_path, method):
    files = [tmp_path / f'{mark}.png' for mark in (0, 40, 60)]
    for path in files:
        write_image(path, ramp(24, int(path.stem)) * np.uint8(path.stem != '0'))
    stack = open_field(fields_to_read(SPATIAL)[0], files, None, None)
    assert isinstance(stack, Stack) and stack.shape == (24, 24, 9)
    crop = stack[3:7, 5:20]
    assert crop.shape == (4, 15, 9) and np.isnan(crop[..., 6:]).all()
    np.testing.assert_allclose(blue(crop[..., :3]), 40)
    assert open_field(fields_to_read(SPATIAL)[0], files[:1], None, None) is None
    params, plan = method.init(jax.random.key(0)), make_plan('metaearth', 32, 1, timesteps=1)
    bind = lambda images: bind_windows(
        method, params, plan, make_mesh(devices=jax.devices()[:1]), None, 4, images=images
    )
    settings, lr = MosaicSettings(10.0, 1, plan, 64), ramp(24, 100)
    with_frames, alone = (lazy_mosaic(bind(images), lr, settings)[0:96, 0:96] for images in ({'frames': stack}, {}))
    assert (with_frames[..., 2] == 50).all() and (alone[..., 2] == 100).all()
    assert np.array_equal(with_frames[..., :2], alone[..., :2])
    write_image(tmp_path / 'other.png', ramp(20, 3))
    with pytest.raises(BadInput, match='other.png: 20×20 px; .*40.png has 24×24'):
        open_field(fields_to_read(SPATIAL)[0], [files[1], tmp_path / 'other.png'], None, None)
    before = stack.digest()
    write_image(files[2], ramp(24, 61))
    assert open_field(fields_to_read(SPATIAL)[0], files, None, None).digest() != before


CONDITIONS = """
import sys
from pathlib import Path
from absl import flags
from rsdiff.data.fields import Field
from rsdiff.programs import evaluate

flags.FLAGS([sys.argv[0], '--pairs', sys.argv[1], '--out', sys.argv[2]])
folder, truths = evaluate.references()
fields, out = [Field('frames', 3, 4, needed=False, frames=3)], Path(sys.argv[2])
evaluate.make_conditions(folder, truths, fields, evaluate.digests(folder, truths, fields, out), out)
print('{}')
"""


def test_evaluation_cuts_the_frames_of_each_truth(make, tmp_path, tmp_path_factory):
    config = make([ramp(LOW, 1), BLACK, ramp(LOW, 2), ramp(LOW, 3), ramp(LOW, 4)], [])
    gap = np.full((LOW, LOW, 1), 255, np.uint8)
    gap[0] = 0
    write_image(tmp_path / 'frames/0/2.png', np.concatenate([ramp(LOW, 2), gap], -1))
    remainder = np.concatenate([ramp(4 * LOW, 100), ramp(4 * LOW)[:3]])
    write_image(tmp_path / 'image/0.png', remainder)
    made = tmp_path_factory.mktemp('made')
    (tmp_path / 'conditions.py').write_text(CONDITIONS)
    for _ in range(2):
        last_line(run_script(tmp_path / 'conditions.py', config.source, made))
    first, second = read_folder(made)
    assert first.extra['frames_file_names'] == [f'.fields/frames{k}/image/0.png' for k in ('', 1, 3, 4)]
    assert np.array_equal(read_image(first.stacks['frames'][2]), ramp(LOW, 3))
    assert 'frames_file_names' not in second.extra
    # a changed frame is noticed
    write_image(tmp_path / 'frames/0/4.png', ramp(LOW, 9))
    changed = run_script(tmp_path / 'conditions.py', config.source, made)
    assert changed.returncode and 'has changed since' in changed.stderr


def test_rows_name_stacks_of_any_field():
    extra = {'low_res_file_names': ['b.png'], 'mask_file_name': 'm.png', 'late_file_names': None}
    entry = Entry(Path('x/a.png'), 'a.png', extra=extra)
    assert (
        [*entry.stacks] == ['lr'] and [*entry.files] == ['mask'] and entry.to_json()['low_res_file_names'] == ['b.png']
    )
