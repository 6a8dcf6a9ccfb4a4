"""Several images of each place through the four commands: a row's own frames, fewer of them, and none."""

import json

import numpy as np
import pytest
from scripts import error_line, last_line, run_script

from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image, write_image

FRAMES = {0: 3, 1: 2, 2: 0}  # how many the rows have, in turn


def run(*command, ok=True):
    """The last line as an object, or the error line of a command that must fail."""
    done = run_script(*command, env={'XLA_FLAGS': ''})
    return last_line(done) if ok else error_line(done)


@pytest.fixture(scope='module')
def places(tmp_path_factory, smooth_image):
    """Six images for training and three for tests, one of each number of frames; a frame is the reduced image with noise."""
    folder, rows, noise = tmp_path_factory.mktemp('places') / 'places', [], np.random.default_rng(0)
    for number in range(9):
        image = smooth_image(32, 32, number)
        write_image(folder / f'{number}.png', image)
        names = [f'{number}_{t}.png' for t in range(max(FRAMES[number % 3], 1))]
        for name in names:
            frame = image[2::4, 2::4] + noise.normal(0, 20, (8, 8, 3))
            write_image(folder / 's2' / name, np.clip(frame, 1, 255).astype(np.uint8))
        row = {'file_name': f'{number}.png', 'low_res_file_name': f's2/{names[0]}', 'gsd_m': 2.5}
        row |= {'frames_file_names': [f's2/{name}' for name in names]} if FRAMES[number % 3] else {}
        rows.append(row | {'split': 'train' if number < 6 else 'test'})
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope='module')
def workdir(places, tmp_path_factory):
    """A run of HighResNet, stopped halfway and continued."""
    folder = tmp_path_factory.mktemp('run') / 'run'
    sizes = {'method.model.features': 16, 'method.model.frames': 3, 'data.size_px': 16, 'batch_size': 4}
    sizes |= {
        'validation.examples': 2,
        'validation.grid': 2,
        'data.validation_share': 0,
        'optimizer.final_fraction': 1.0,
    }
    command = ['train.py', '--config', 'highresnet', '--workdir', folder, f'--config.data.source={places}']
    command += [f'--config.{name}={value}' for name, value in sizes.items()]
    assert run(*command, '--config.total_images=8')['images_seen'] == 8
    assert run(*command, '--config.total_images=12')['finished']
    return folder


def test_they_are_taken_by_an_evaluation_a_folder_and_a_canvas(places, workdir, tmp_path):
    evaluate = ['tools/evaluate.py', '--checkpoint', f'made={workdir}', '--pairs', f'{places}:test', '--features', '']
    evaluate += ['--metrics', 'psnr', '--out', tmp_path / 'scores']
    run(*evaluate, '--noconsistency')
    assert 'consistency False → None' in run(*evaluate, ok=False)  # the projection is part of what a result depends on
    conditions, samples = tmp_path / 'scores/conditions', read_folder(tmp_path / 'scores/samples/made')
    assert [len(row.stacks.get('frames', ())) for row in read_folder(conditions)] == [3, 2, 0]

    sample = ['sample.py', '--checkpoint', workdir, '--condition']
    run(*sample, conditions, '--noconsistency', '--out', tmp_path / 'rows')
    for one, other in zip(samples, read_folder(tmp_path / 'rows'), strict=True):
        np.testing.assert_array_equal(read_image(one.path), read_image(other.path))

    # on a canvas, a stack of the condition alone is no stack
    frames = [str(places / f's2/6_{t}.png') for t in range(3)]
    canvas = [*sample, frames[0], '--gsd_m', 10, '--tiles']
    run(*canvas, '--out', tmp_path / '0')
    for count in (1, 3):
        run(*canvas, '--field', f'frames={",".join(frames[:count])}', '--out', tmp_path / f'{count}')
    none, one, three = (read_image(tmp_path / name / 'stage_1.png') for name in '013')
    assert np.array_equal(none, one) and not np.array_equal(one, three)

    error = run(*canvas, '--field', 'frames=gone.png', '--out', tmp_path / 'out', ok=False)
    assert 'gone.png' in error and not (tmp_path / 'out').exists()
