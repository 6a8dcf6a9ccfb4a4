"""Sampling and evaluation by a checkpoint whose network takes a required mask, and a number that may be missing."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from scripts import error_line, last_line, run_script

from rsdiff.data.fields import Field
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image, write_image
from rsdiff.methods.kinds import make_method
from rsdiff.models.conditioning import GSD_M, Number, Spatial
from rsdiff.sampling.binding import bind_images
from rsdiff.training.checkpoint import Trained, release
from rsdiff.training.config import TrainConfig, from_dict, to_dict
from rsdiff.training.mesh import make_mesh

ROOT = Path(__file__).parents[2]
LITTLE = dict(features=8, growth=4, blocks=0)
MODEL = tiny.MODEL | dict(
    spatial={'lr': to_dict(Spatial(**LITTLE)), 'mask': to_dict(Spatial(1, 2, **LITTLE))},
    numbers={'gsd_m': to_dict(GSD_M), 'cloud': to_dict(Number(droppable=True))},
)


def run(*command, ok=True):
    """The last line as an object, or the error line of a command that must fail."""
    done = run_script(*command, env={'XLA_FLAGS': ''})
    return last_line(done) if ok else error_line(done)


@pytest.fixture(scope='module')
def trained():
    """A network with random parameters."""
    config = from_dict(TrainConfig, {'method': {'model': MODEL}, 'data': {'source': 'images', 'size_px': 32}})
    method = make_method(config.method, config.degradation)
    params = tiny.drawn(method)
    return Trained(method, params, config, '', 0)


@pytest.fixture(scope='module')
def folders(trained, tmp_path_factory, smooth_image):
    """(checkpoint, folder of three truths with masks, the first with a cloud cover and a remainder of two rows)."""
    base, lines = tmp_path_factory.mktemp('fields'), []
    release(trained, base / 'checkpoint')
    for number, height in enumerate((34, 32, 32)):
        write_image(base / 'real' / f'{number}.png', smooth_image(height, 32, number))
        mask = np.arange(height * 32).reshape(height, 32) // 8 % 2 * 255
        (base / 'real/mask').mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8)).save(base / f'real/mask/{number}.png')
        lines.append({'file_name': f'{number}.png', 'mask_file_name': f'mask/{number}.png', 'gsd_m': 10})
    lines[0]['cloud'] = 0.5
    (base / 'real/metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return base / 'checkpoint', base / 'real'


@pytest.mark.bytes
def test_rows_of_one_batch_may_lack_a_number(trained):
    """An image with a value gets what the value alone gives, one without it what the network gives without the field."""
    sampler = bind_images(trained.method, trained.params, 1, make_mesh(devices=jax.devices()[:1]))
    assert sampler.fields == (Field('mask', 1, 2), Field('cloud', needed=False))
    keys = jax.random.split(jax.random.key(2), 3)
    condition = {
        'lr': jax.random.uniform(keys[0], (2, 8, 8, 3)),
        'gsd_m': np.float32([10, 10]),
        'mask': jax.random.uniform(keys[1], (2, 16, 16, 1)),
    }
    eps = jax.random.normal(keys[2], (2, 32, 32, 3))
    both = np.asarray(sampler.sample(condition | {'cloud': np.float32([0.5, np.nan])}, eps))
    known = np.asarray(sampler.sample(condition | {'cloud': np.float32([0.5, 0.5])}, eps))
    absent = np.asarray(sampler.sample(condition, eps))
    np.testing.assert_array_equal(both[0], known[0])
    np.testing.assert_allclose(both[1], absent[1], atol=1e-5)
    assert np.abs(both[1] - known[1]).max() > 1e-3


def test_a_folder_is_sampled_with_the_fields_of_its_rows(folders, tmp_path):
    checkpoint, real = folders
    command = ['sample.py', '--checkpoint', checkpoint, '--condition', real, '--degrade', '--steps', 1, '--out']
    assert run(*command, tmp_path / 'rows')['images'] == 3
    rows = read_folder(tmp_path / 'rows')
    assert [row.extra.get('field_cloud') for row in rows] == [0.5, None, None]
    assert run(*command, tmp_path / 'constant', '--field', 'cloud=0.5')['field_cloud'] == 0.5
    same = [np.array_equal(read_image(row.path), read_image(tmp_path / 'constant' / row.file_name)) for row in rows]
    assert same == [True, False, False]
    # one image without a manifest: its fields are flags
    command = ['sample.py', '--checkpoint', checkpoint, '--degrade', '--steps', 1, '--gsd_m', 10]
    command += ['--condition', real / '1.png', '--out']
    assert 'no such file' in run(*command, tmp_path / 'gone', '--field', 'mask=gone.png', ok=False)
    run(*command, tmp_path / 'one', '--field', f'mask={real / "mask/1.png"}')
    assert np.array_equal(read_image(tmp_path / 'one/1-0.png'), read_image(tmp_path / 'rows/1-0.png'))


def test_a_canvas_reads_a_mask_as_training_does(folders, tmp_path, smooth_image):
    checkpoint, _ = folders
    write_image(tmp_path / 'lr.png', smooth_image(8, 8))
    command = ['sample.py', '--checkpoint', checkpoint, '--condition', tmp_path / 'lr.png', '--tiles', '--gsd_m', 40]
    command += ['--plan', 'fast', '--steps', 3]
    classes = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None], 16, 0))
    classes.save(tmp_path / 'grey.png')
    palette = Image.frombytes('P', (16, 16), classes.tobytes())
    palette.putpalette([value for entry in range(256) for value in (255 - entry, 7, entry // 2)])
    palette.save(tmp_path / 'palette.png')
    palette.convert('RGB').save(tmp_path / 'rgb.png')
    for name in ('grey', 'palette'):
        run(*command, '--field', f'mask={tmp_path / name}.png', '--out', tmp_path / name)
    made = [read_image(tmp_path / name / 'stage_1.png') for name in ('grey', 'palette')]
    assert np.array_equal(*made)
    error = run(*command, '--field', f'mask={tmp_path / "rgb.png"}', '--out', tmp_path / 'out', ok=False)
    assert 'rgb.png: it has colours, 3 channels; the field mask has one' in error and not (tmp_path / 'out').exists()
    assert 'the condition lacks mask' in run(*command, '--out', tmp_path / 'out', ok=False)


def test_a_checkpoint_with_fields_is_evaluated(folders, tmp_path):
    checkpoint, real = folders
    command = ['tools/evaluate.py', '--checkpoint', f'made={checkpoint}', '--pairs', real, '--steps', 1]
    command += ['--metrics', 'psnr', '--features', '', '--out', tmp_path / 'out']
    rows = run(*command)['rows']
    assert rows['made']['psnr']['value'] > 0
    first, *others = read_folder(tmp_path / 'out/conditions')
    assert first.numbers == {'cloud': 0.5} and not any(other.numbers for other in others)
    assert np.array_equal(read_image(first.files['mask']), read_image(real / 'mask/0.png')[:32])
    made = [entry.extra for entry in read_folder(tmp_path / 'out/samples/made')]
    assert [row.get('field_cloud') for row in made] == [0.5, None, None] and all('field_mask' in row for row in made)
    assert run(*command)['rows'] == rows
    plain = ['tools/evaluate.py', '--generated', f'same={real}', *command[3:-1], tmp_path / 'plain']
    run(*plain)
    assert not any(entry.files for entry in read_folder(tmp_path / 'plain/conditions')), 'no checkpoint takes them'
