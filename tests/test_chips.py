"""Cutting chips on a grid, dropping and selecting them, and tools/prepare_data.py."""

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
from scripts import error_line, last_line, run_script

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.folders import FolderLock
from rsdiff.data import chips
from rsdiff.data.crops import FolderImages
from rsdiff.data.fingerprints import known_of
from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import box_downscale, read_image, write_image
from rsdiff.data.inventory import take_inventory
from rsdiff.data.pipeline import DataConfig, make_source

ROOT = Path(__file__).parents[1]
LIMITS = chips.Limits()


def test_the_grid_covers_all_but_a_remainder_and_stays_inside():
    covered = np.zeros((70, 101), int)
    for box in chips.grid(70, 101, 16, 16):
        box.crop(covered)[:] += 1
        assert box.crop(covered).shape == (16, 16)
    assert (covered[:64, :96] == 1).all() and covered.sum() == 64 * 96
    assert len(chips.grid(70, 101, 16, 8)) == 7 * 11 and chips.grid(15, 101, 16, 16) == []


@pytest.mark.parametrize(
    'spoil, reason',
    [
        (lambda x: x, None),
        (lambda x: np.where(np.arange(32)[:, None, None] < 20, 0, x), 'black'),
        (lambda x: np.where(np.arange(32)[:, None, None] < 20, 250, x), 'white'),
        (lambda x: np.where(np.arange(32)[:, None, None] < 4, 250, x), None),
        (lambda x: 100 + x // 200, 'constant'),
    ],
)
def test_flaws_are_seen(smooth_image, spoil, reason):
    image = np.clip(smooth_image(32, 32), 30, 220)
    assert chips.flaw(spoil(image).astype(np.uint8), LIMITS) == reason


class Big:
    """A scene larger than memory: blocks are generated when read; records the boxes read."""

    height = width = 100_000
    gsd_m = 1.0

    def __init__(self, gap=None):
        self.boxes, self.gap = [], gap

    def read(self, box):
        self.boxes.append(box)
        rng = np.random.default_rng(box)
        blocks = rng.integers(50, 200, (8, 8, 3), dtype=np.uint8)
        return np.kron(blocks, np.ones(((box.y1 - box.y0) // 8, (box.x1 - box.x0) // 8, 1), np.uint8))

    def nodata(self, box):
        return float(bool(self.gap and box.overlaps(self.gap)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Bigs(FolderImages):
    """Such scenes in place of a folder of images."""

    def __init__(self, *scenes):
        self.scenes = scenes
        self.entries = [Entry(Path(f'{n}.tif'), f'{n}.tif', label='sand') for n in range(len(scenes))]

    def open(self, number):
        return self.scenes[number], 1.0


def test_a_large_scene_is_read_by_windows_and_what_has_gaps_not_at_all():
    scene, survey, done = Big(gap=Box(0, 0, 100_000, 10)), chips.Survey(), []
    found = chips.look(Bigs(scene), 32, 3000, (2, 8), LIMITS, survey, done.append)
    assert {chip.reduction for chip in found} == {2, 8}
    assert max((box.y1 - box.y0) * (box.x1 - box.x0) for box in scene.boxes) == (8 * 32) ** 2
    assert len(scene.boxes) == len(found) and survey.dropped == {'nodata': 17 + 5}
    assert not any(chip.box.overlaps(scene.gap) for chip in found) and sum(done) == pytest.approx(1)


def test_the_same_chip_is_kept_once(tmp_path, smooth_image):
    for name in 'ab':
        write_image(tmp_path / f'{name}.png', smooth_image(32, 64))
    survey = chips.Survey()
    found = chips.look(FolderImages(str(tmp_path), gsd_m=1.0), 32, 32, (1,), LIMITS, survey, lambda _: None)
    assert [chip.number for chip in found] == [0, 0] and survey.dropped == {'duplicate': 2}


def test_small_and_broken_images_are_left_out_and_counted(tmp_path, smooth_image):
    write_image(tmp_path / 'a.png', smooth_image(64, 64))
    write_image(tmp_path / 'b.png', smooth_image(64, 40, 1))
    whole = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'c.png').write_bytes(whole[: len(whole) // 2])
    survey = chips.Survey()
    found = chips.look(FolderImages(str(tmp_path), gsd_m=1.0), 32, 32, (1, 2), LIMITS, survey, lambda _: None)
    assert [(chip.number, chip.reduction) for chip in found] == [(0, 1)] * 4 + [(0, 2)] + [(1, 1)] * 2
    assert survey.too_small[1] == 0 and survey.too_small[2] == 1
    assert [Path(name).name for name in survey.unreadable] == ['c.png']


def test_a_choice_is_even_over_resolutions_and_over_the_list():
    box = Box(0, 0, 1, 1)
    found = [chips.Chip(n, r, box) for n in range(100) for r in (1, 4)] + [chips.Chip(0, 16, box)]
    chosen = chips.choose(sorted(found), 41)
    assert {r: sum(chip.reduction == r for chip in chosen) for r in (1, 4, 16)} == {1: 20, 4: 20, 16: 1}
    assert [chip.number for chip in chosen if chip.reduction == 4] == [*range(0, 100, 5)]
    assert len({*chosen}) == 41 and chips.choose(found, None) == found and chips.choose(found, 1000) == found
    assert len(chips.choose(sorted(found), 2)) == 2


def test_examples_tell_where_they_are_from(tmp_path, smooth_image):
    write_image(tmp_path / 'a/b.png', smooth_image(64, 96))
    write_manifest(tmp_path, [Entry(tmp_path / 'a/b.png', 'a/b.png', 'train', 'field', ('one', 'two'), 2.0)])
    images, box = FolderImages(str(tmp_path), 'train'), Box(0, 32, 64, 96)
    ((key, example),) = chips.examples(images, 'here', '7', [chips.Chip(0, 2, box)], 'png', lambda _: None)
    (tmp_path / 'chip.png').write_bytes(example.pop('image'))
    np.testing.assert_array_equal(read_image(tmp_path / 'chip.png'), box_downscale(box.crop(smooth_image(64, 96)), 2))
    assert key == '7/0/2/0/32' and example == {
        'gsd_m': 4.0,
        'label': 'field',
        'captions': ['one', 'two'],
        'source': 'here',
        'file_name': 'a/b.png',
        'box': (0, 32, 64, 96),
    }


def prepare(*arguments, ok=True):
    """Runs the tool; returns its last line as an object, or its error line."""
    done = run_script('tools/prepare_data.py', *arguments)
    return last_line(done) if ok else error_line(done)


def test_the_tool_writes_what_it_says_and_training_reads_it(image_folder, tmp_path):
    command = [
        '--source',
        f'{image_folder}:train',
        '--validation',
        f'{image_folder}:test',
        '--size_px',
        16,
        '--reductions',
        '1,2,4',
        '--max_chips_per_source',
        20,
        '--out',
        tmp_path / 'out',
    ]
    result = prepare(*command)
    assert result == json.loads((tmp_path / 'out' / 'prepare.json').read_text())
    assert result['splits'] == {'train': 20, 'validation': 20} and result['chips'] == 40
    assert result['sources'][0]['found'] == 8 * 5 and result['images_too_small'] == {'4': 12}
    assert result['gsd_m'] == {'10.0': 12 + 16, '20.0': 8 + 4} and result['bytes'] > 0
    source = make_source(DataConfig(source=str(tmp_path / 'out'), size_px=16))
    assert len(source) == 20 and 'images/' in source.name(0)
    assert prepare(*command) == result, 'finished is finished'
    # exactly the images that the training chips were cut from
    used = {f'images/{source.name(n).split("images/")[1].split(" ")[0]}' for n in range(20)}
    known = known_of(tmp_path / 'out')
    assert {*known.names} == used and not known.unknown and result['trained_on'] == f'{len(used)} images'
    inventory = take_inventory(source, str(tmp_path / 'out'))
    assert inventory.trained_on.names == known.names and len(inventory.digests) == 1
    validation = make_source(DataConfig(source=str(tmp_path / 'out'), split='validation', size_px=16))
    assert 'unknown' in str(take_inventory(validation, str(tmp_path / 'out')).trained_on)
    # missing or truncated shards are made again
    shard = next((tmp_path / 'out').rglob('*train.array_record*'))
    for spoil in (lambda: shutil.rmtree(tmp_path / 'out' / 'chips'), lambda: os.truncate(shard, 100)):
        spoil()
        again = prepare(*command)
        assert {**again, 'seconds': 0, 'files': 0} == {
            **result,
            'seconds': 0,
            'files': 0,
        } and shard.stat().st_size > 100
        assert {*again['files']} == {*result['files']}
    lock = FolderLock(tmp_path / 'out')
    lock.acquire()
    assert 'in use' in prepare(*command, ok=False)
    lock.release()
    for content in b'{"files":', b'[]', b'{"files": 7}', b'\xff':
        (tmp_path / 'out' / 'prepare.json').write_bytes(content)
        assert 'prepare.json' in prepare(*command, ok=False)
    (tmp_path / 'out' / 'prepare.json').write_text(json.dumps(result))
    assert 'other settings (size_px 16 → 32)' in prepare(*command, '--size_px', 32, ok=False)


def test_a_killed_run_leaves_no_dataset_and_the_same_command_makes_it(tmp_path, smooth_image):
    for number in range(20):
        write_image(tmp_path / 'in' / f'{number}.png', smooth_image(256, 256, number))
    command = ['--source', tmp_path / 'in', '--gsd_m', 1, '--size_px', 16, '--out', tmp_path / 'out']
    process = subprocess.Popen(
        [sys.executable, 'tools/prepare_data.py', *map(str, command)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    for _ in range(1200):
        if list((tmp_path / 'out' / 'chips').glob('incomplete*')) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'out' / 'prepare.json').exists(), 'it was over before it could be killed'
    with pytest.raises(BadInput):
        make_source(DataConfig(source=str(tmp_path / 'out')))
    result = prepare(*command)
    assert result['chips'] == len(make_source(DataConfig(source=str(tmp_path / 'out'), validation_share=0)))
    assert result['chips'] + sum(result['dropped'].values()) == 20 * 256
    assert [path.name for path in (tmp_path / 'out' / 'chips').iterdir()] == ['1.0.0']


@pytest.mark.parametrize(
    'change, message',
    [
        ({'--source': 'nowhere'}, 'nowhere: no such folder or image'),
        ({'--source': 'images:val'}, "no image has split 'val'"),
        ({'--source': 'bare'}, 'no gsd_m'),
        ({'--out': 'theirs'}, 'is not output of this program'),
        ({'--size_px': '64'}, 'no chip is left for train'),
        ({'--reductions': '1,x'}, '--reductions is 1,x'),
        ({'--value_range': '3'}, '--value_range is 3'),
    ],
)
def test_the_tool_says_what_is_wrong(image_folder, tmp_path, smooth_image, change, message):
    write_image(tmp_path / 'bare' / 'a.png', smooth_image(32, 32))
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'notes.txt').write_text('keep me')
    arguments = {'--source': 'images:train', '--out': 'out', '--size_px': '16'} | change
    command = [
        x
        for key, value in arguments.items()
        if value is not None
        for x in (key, tmp_path / value if key in ('--source', '--out') else value)
    ]
    assert message in prepare(*command, ok=False)
    assert [path.name for path in (tmp_path / 'theirs').iterdir()] == ['notes.txt']
