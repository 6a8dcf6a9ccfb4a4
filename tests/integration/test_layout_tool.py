"""prepare_data.py --layout: bad input is one line, nothing is lost, and tables say how images were changed."""

import json

import numpy as np
import pytest
from scripts import error_line, last_line, run_script

from rsdiff.data.folder import read_folder
from rsdiff.data.images import box_downscale, write_image


def run(*command, ok=True):
    done = run_script(*command, env={'XLA_FLAGS': ''})
    return last_line(done) if ok else error_line(done)


@pytest.fixture
def pairs(tmp_path, smooth_image):
    folder, lines = tmp_path / 'pairs', []
    for number in range(3):
        sharp = smooth_image(64, 64, number)
        write_image(folder / f'hr/{number}.png', sharp)
        write_image(folder / f'lr/{number}.png', (0.5 * box_downscale(sharp, 4) + 60).astype(np.uint8))
        lines.append({'file_name': f'hr/{number}.png', 'low_res_file_name': f'lr/{number}.png', 'gsd_m': 2.5})
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return folder


def test_a_missing_half_is_listed_and_nothing_is_lost(tmp_path, smooth_image):
    for tile in ('1_1', '2_2', '3_3'):
        write_image(tmp_path / f'in/naip/image/{tile}/rgb.png', smooth_image(128, 128).clip(1))
    write_image(tmp_path / 'in/sentinel2/1_1/tci.png', smooth_image(96, 32).clip(1))
    write_image(tmp_path / 'in/sentinel2/4_4/tci.png', smooth_image(96, 32).clip(1))
    command = ['tools/prepare_data.py', '--layout', 's2naip', '--source', tmp_path / 'in', '--out', tmp_path / 'out']
    error = run(*command, ok=False)
    assert '3 of 4 are incomplete' in error and '--leave_out_incomplete' in error
    for name in ('naip/image/2_2: no sentinel2/2_2', 'naip/image/3_3', 'sentinel2/4_4: no naip/'):
        assert name in error
    assert (tmp_path / 'out/hr/image/1_1.png').is_file()
    assert not any((tmp_path / 'out' / name).exists() for name in ('prepare.json', 'metadata.jsonl'))
    result = run(*command, '--leave_out_incomplete')
    assert result['images'] == 1 and result['frames'] == 3 and len(result['left_out']) == 3
    assert json.loads((tmp_path / 'out/prepare.json').read_text()) == result
    # what is restored is added by the same command
    write_image(tmp_path / 'in/sentinel2/2_2/tci.png', smooth_image(96, 32).clip(1))
    assert run(*command, '--leave_out_incomplete')['images'] == 2
    assert 'other settings' in run(*command, '--match_histograms', ok=False)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--layout', 'worldstrat'], 'no hr_dataset/ and lr_dataset/'),
        (['--layout', 'manifest', '--size_px', 32], '--size_px does not go with --layout'),
        (['--match_histograms'], '--match_histograms needs --layout'),
        (['--layout', 'manifest', '--source', 'other'], '--layout takes one --source'),
        (['--layout', 'manifest', '--max_black', -1], 'no image is left of 3 places'),
    ],
)
def test_bad_input_is_one_line(pairs, tmp_path, options, message):
    command = ['tools/prepare_data.py', '--source', pairs, '--out', tmp_path / 'out', *options]
    assert message in run(*command, ok=False)


def test_matched_radiometry_is_said_in_the_manifest_and_in_the_table(pairs, tmp_path):
    prepare = ['tools/prepare_data.py', '--layout', 'manifest', '--source', pairs, '--match_histograms']
    assert run(*prepare, '--out', tmp_path / 'matched')['radiometry'] == 'matched'
    assert [row.extra['radiometry'] for row in read_folder(tmp_path / 'matched')] == ['matched'] * 3
    evaluate = ['tools/evaluate.py', '--metrics', 'psnr', '--features', '']
    table = run(*evaluate, '--pairs', tmp_path / 'matched', '--out', tmp_path / 'table')
    plain = run(*evaluate, '--pairs', pairs, '--out', tmp_path / 'plain')
    assert 'the histograms of 3 of 3 truths were matched' in (tmp_path / 'table/table.md').read_text()
    assert table['warnings'] and not plain['warnings']
    assert table['rows']['bicubic']['psnr']['value'] > plain['rows']['bicubic']['psnr']['value'] + 3
