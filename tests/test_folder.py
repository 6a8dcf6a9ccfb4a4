"""Folders as users have them: manifests, classes, splits, links, junk; and which images are trained on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import (
    Entry,
    clean_name,
    opened_entries,
    read_folder,
    training_entries,
    validation_entries,
    validation_share,
    write_manifest,
)
from rsdiff.data.images import write_image
from rsdiff.data.layout import canonical_split
from rsdiff.data.pipeline import DataConfig, make_source

ROOT = Path(__file__).parents[1]


@pytest.fixture
def images(tmp_path, smooth_image):
    """Writes different images under these names to a folder, and returns the folder."""

    def make(*names, folder=tmp_path / 'data'):
        for name in names:
            write_image(folder / name, smooth_image(32, 32, sum(map(ord, name))))
        return folder

    return make


def lines(folder, rows, name='metadata.jsonl'):
    (folder / name).write_text('\n'.join(map(json.dumps, rows)))


def told(folder):
    return [(entry.file_name, entry.split, entry.label) for entry in read_folder(folder)]


SPLITS = [('test/a.png', 'test', 'wood'), ('train/a.png', 'train', 'lake'), ('validation/a.png', 'val', 'wood')]


def test_a_manifest_in_every_split_folder(images):
    folder = images(*(name for name, _, _ in SPLITS))
    for name, _, label in SPLITS:
        lines(
            folder / Path(name).parent,
            [{'file_name': 'a.png', 'label': label, 'gsd_m': 2, 'mask_file_name': 'a.png', 'text': 'seen from above'}],
        )
    assert told(folder) == SPLITS
    entry = read_folder(folder, 'dev')[0]
    assert entry.extra == {'mask_file_name': 'validation/a.png'} and entry.captions == ('seen from above',)
    assert entry.gsd_m == 2


@pytest.mark.parametrize('head', ['', '\ufeff'])
def test_a_table_in_every_split_folder_or_one_for_all(images, head):
    folder = images(*(name for name, _, _ in SPLITS))
    for name, _, label in SPLITS:
        text = f'{head}file_name,label,gsd_m,caption,from\r\na.png,{label},0.3,"one, two",\r\n'
        (folder / name).with_name('metadata.csv').write_text(text, encoding='utf-8')
    assert told(folder) == SPLITS
    assert {(e.gsd_m, e.captions, tuple(e.extra)) for e in read_folder(folder)} == {(0.3, ('one, two',), ())}
    for path in folder.glob('*/metadata.csv'):
        path.unlink()
    (folder / 'metadata.csv').write_text(
        head + 'file_name,label\n' + '\n'.join(f'{name},{label}' for name, _, label in SPLITS)
    )
    assert told(folder) == SPLITS


def test_class_folders_with_and_without_splits(images):
    flat = images('lake/a.png', 'wood/b.png')
    assert told(flat) == [('lake/a.png', None, 'lake'), ('wood/b.png', None, 'wood')]
    parted = images('train/lake/a.png', 'train/wood/b.png', 'valid/lake/c.png', folder=flat.with_name('parted'))
    assert told(parted) == [
        ('train/lake/a.png', 'train', 'lake'),
        ('train/wood/b.png', 'train', 'wood'),
        ('valid/lake/c.png', 'val', 'lake'),
    ]
    deep = images('a/b/c.png', 'd/e.png', folder=flat.with_name('deep'))
    assert {entry.label for entry in read_folder(deep)} == {None}


def test_one_manifest_above_split_folders_takes_their_names(images):
    folder = images('train/a.png', 'test/b.png')
    lines(folder, [{'file_name': 'train/a.png'}, {'file_name': 'test/b.png'}])
    assert [entry.split for entry in read_folder(folder)] == ['train', 'test']
    lines(folder, [{'file_name': 'train/a.png', 'split': 'val'}, {'file_name': 'test/b.png', 'split': 'train'}])
    assert [entry.split for entry in read_folder(folder)] == ['val', 'train'], 'what is said goes before names'


def test_a_class_that_is_called_train_is_one_if_the_manifest_says_so(images):
    folder = images('train/a.png', 'bus/b.png')
    with pytest.raises(BadInput, match=r'train/ may be a split, with bus/b.png in none, or train/ may be a class'):
        read_folder(folder)
    lines(folder, [{'file_name': 'train/a.png', 'label': 'train'}, {'file_name': 'bus/b.png', 'label': 'bus'}])
    assert told(folder) == [('train/a.png', None, 'train'), ('bus/b.png', None, 'bus')]


@pytest.mark.parametrize(
    'files, message',
    [
        (
            {'metadata.jsonl': '{"file_name": "train/a.png"}', 'metadata.csv': 'file_name\ntrain/a.png'},
            'metadata.jsonl and metadata.csv',
        ),
        (
            {'metadata.jsonl': '{"file_name": "train/a.png"}', 'train/metadata.jsonl': '{"file_name": "a.png"}'},
            'metadata.jsonl and .*train/metadata.jsonl',
        ),
        (
            {'train/metadata.jsonl': '{"file_name": "a.png", "split": "test"}'},
            "'test' by its line and 'train' by its folder",
        ),
        ({'train/metadata.parquet': 'x'}, 'metadata.parquet: not supported'),
    ],
)
def test_two_readings_are_refused_with_both_named(images, files, message):
    folder = images('train/a.png', 'test/b.png')
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        read_folder(folder)


def test_junk_is_no_data(images, tmp_path):
    folder = images(
        'lake/a.png',
        'wood/b.png',
        'lake/.ipynb_checkpoints/a-checkpoint.png',
        '.Trash/c.png',
        '__MACOSX/d.png',
        'run/samples/step.png',
        'made/x.png',
    )
    (folder / 'lake/._a.png').write_bytes(b'\0\5\x16\7')
    (folder / 'x.tif').mkdir()
    (folder / 'run/config.json').write_text('{"generator": {}}')
    (folder / 'made/settings.json').write_text('{"mode": "folder", "sources_sha256": "0"}')
    (folder / 'wood/settings.json').write_text('{"labels": 3}')
    assert [name for name, _, _ in told(folder)] == ['lake/a.png', 'wood/b.png']
    images('samples/step.png')
    (folder / 'config.json').write_text('{"generator": {}}')
    assert [name for name, _, _ in told(folder)] == ['lake/a.png', 'wood/b.png']


def test_links_work_alike_with_and_without_a_manifest(images, tmp_path):
    target = images('lake/a.png', 'wood/b.png')
    folder = tmp_path / 'linked'
    folder.mkdir()
    for name in ('lake', 'wood'):
        (folder / name).symlink_to(target / name)
    (target / 'lake/again').symlink_to(target)
    assert {name for name, _, _ in told(target)} == {'lake/a.png', 'wood/b.png'}, 'a circle ends'
    (target / 'lake/again').unlink()
    expected = [('lake/a.png', None, 'lake'), ('wood/b.png', None, 'wood')]
    assert told(folder) == expected
    lines(folder, [{'file_name': name, 'label': label} for name, _, label in expected])
    assert told(folder) == expected


def test_the_cache_of_hugging_face(images, tmp_path):
    blobs, snapshot = tmp_path / 'cache/blobs', tmp_path / 'cache/snapshots/0a1b'
    (snapshot / 'train').mkdir(parents=True)
    images('a.png', folder=tmp_path)
    blobs.mkdir()
    shutil.move(tmp_path / 'a.png', blobs / 'deadbeef')
    (blobs / 'feed').write_text('{"file_name": "a.png", "gsd_m": 1}')
    (snapshot / 'train/a.png').symlink_to('../../../blobs/deadbeef')
    assert told(snapshot) == [('train/a.png', 'train', None)]
    (snapshot / 'train/metadata.jsonl').symlink_to('../../../blobs/feed')
    assert told(snapshot) == [('train/a.png', 'train', None)] and read_folder(snapshot)[0].gsd_m == 1
    with pytest.raises(BadInput, match='one of its snapshots/ .0a1b'):
        read_folder(tmp_path / 'cache')
    (blobs / 'deadbeef').unlink()
    (snapshot / 'train/metadata.jsonl').unlink()
    with pytest.raises(BadInput, match='a broken link'):
        read_folder(snapshot)


@pytest.mark.parametrize(
    'line, message',
    [
        (b'{"file_name": "a.png", "label": "\\ud800"}', 'text'),
        (b'{"file_name": "a.png", "year": ' + 5000 * b'1' + b'}', '5000 digits'),
        (b'{"file_name": "a.png", "x": ' + 9000 * b'[' + 9000 * b']' + b'}', 'deep'),
        (b'{"file_name": "a.png", "label": "\xff"}', 'UTF-8'),
        (b'{"file_name": "a.png", "label": ["lake"]}', 'label is'),
        (b'{"file_name": "a.png", "label": true}', 'label is'),
        (b'{"file_name": ["a.png"]}', 'file_name'),
        (b'{"file_name": ""}', 'is not a valid file name'),
        (b'{"file_name": "a.png", "mask_file_name": "../m.png"}', 'mask_file_name is'),
        (b'{"file_name": "x.tif"}', 'is a folder'),
        *(
            (b'{"file_name": "a.png", "gsd_m": ' + number + b'}', 'gsd_m is|not JSON')
            for number in (b'1e300', b'1e999', b'Infinity', b'NaN', b'-1', b'1e-9', b'true')
        ),
    ],
)
def test_hostile_lines_are_named(images, line, message):
    folder = images('a.png')
    (folder / 'x.tif').mkdir()
    (folder / 'metadata.jsonl').write_bytes(b'\xef\xbb\xbf{"file_name": "a.png"}\n\n' + line + b'\n')
    with pytest.raises(BadInput, match=message) as error:
        read_folder(folder)
    assert 'metadata.jsonl:3' in str(error.value) and '\n' not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    'text, message',
    [
        ('file;label\na.png;x', '"file_name"'),
        ('file_name,label\na.png', '1 cells'),
        ('file_name,gsd_m\na.png,inf', 'gsd_m is inf'),
        ('file_name,gsd_m\na.png,nan', 'gsd_m is nan'),
        ('file_name,gsd_m\na.png,ten', 'gsd_m is ten'),
        ('file_name,label\n"a.png,x', 'not CSV'),
        ('file_name,label\n/etc/hostname,x', 'leaves the folder'),
        ('file_name,label\na.png,\udcff', 'not UTF-8'),
    ],
)
def test_hostile_tables_are_named(images, text, message):
    folder = images('a.png')
    (folder / 'metadata.csv').write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(BadInput, match=message) as error:
        read_folder(folder)
    assert 'metadata.csv' in str(error.value) and '\n' not in str(error.value)


def test_a_name_that_goes_round_but_stays_inside_is_its_plain_one(images):
    folder = images('a.png')
    (folder / 'metadata.jsonl').write_text('{"file_name": "b/.././a.png"}')
    assert [entry.file_name for entry in read_folder(folder)] == ['a.png']


@pytest.mark.parametrize(
    'name, cleaned',
    [
        ('a/b.png', 'a/b.png'),
        ('../../b.png', 'b.png'),
        ('/etc/b.png', 'etc/b.png'),
        ('a/./../b.png', 'a/b.png'),
        ('C:\\x\\b.png', 'x/b.png'),
        ('..\\b.png', 'b.png'),
        ('..', 'unnamed'),
        ('', 'unnamed'),
        ('a\nb.png', 'a_b.png'),
        ('..a.png', '..a.png'),
        ('Ärger 1.png', 'Ärger 1.png'),
    ],
)
def test_a_cleaned_name_stays_inside(name, cleaned):
    assert clean_name(name) == cleaned
    assert clean_name(cleaned) == cleaned


def test_a_cleaned_name_is_one_that_can_be_written(tmp_path):
    names = {clean_name(300 * 'ä' + f'{number}.png') for number in range(2)}
    assert len(names) == 2
    for name in names:
        (tmp_path / name).write_text('')


@pytest.mark.parametrize('name', ['val', 'validation', 'valid', 'dev', 'Validation'])
def test_names_of_the_validation_split_are_one(images, name):
    assert canonical_split(name) == 'val'
    folder = images('a.png', 'b.png')
    lines(
        folder,
        [{'file_name': 'a.png', 'split': 'train', 'gsd_m': 1}, {'file_name': 'b.png', 'split': name, 'gsd_m': 1}],
    )
    for asked in ('val', 'valid', 'validation', 'dev'):
        assert [entry.file_name for entry in read_folder(folder, asked)] == ['b.png']
    config = DataConfig(source=str(folder))
    train, unseen = make_source(config), make_source(config, validation=True)
    assert (train.name(0), unseen.name(0)) == (str(folder / 'a.png'), str(folder / 'b.png'))
    assert len(train) == len(unseen) == 1


def test_a_folder_alone_is_its_train_split_where_it_is_trained_on(images, caplog):
    folder = images('train/a.png', 'val/b.png', 'test/c.png')
    assert [e.split for e in training_entries(folder)] == ['train'] and 'are training data' in caplog.text
    assert [e.split for e in validation_entries(folder)] == ['val']
    assert [e.split for e in opened_entries(folder)] == ['test', 'train', 'val'] and 'all 3 images' in caplog.text
    shutil.rmtree(folder / 'train')
    with pytest.raises(BadInput, match='its splits are test, val, and none is train'):
        training_entries(folder)


@pytest.mark.parametrize('split', [None, 'train'])
def test_without_a_validation_split_a_share_is_drawn_and_not_trained_on(tmp_path, smooth_image, split, caplog):
    entries = []
    for number in range(60):
        write_image(tmp_path / f'{number}.png', smooth_image(16, 16, number % 50))  # the last ten are copies
        entries.append(Entry(tmp_path / f'{number}.png', f'{number}.png', split, gsd_m=1.0))
    write_manifest(tmp_path, entries)
    config = DataConfig(source=str(tmp_path), size_px=16)
    names = lambda source: {source.name(number).rpartition('/')[2] for number in range(len(source))}
    train, unseen = names(make_source(config)), names(make_source(config, validation=True))
    assert not train & unseen and len(train | unseen) == 60 and 1 <= len(unseen) <= 15
    assert (
        f'validates on {len(unseen)} of 60 images (data.validation_share 0.1), which are not trained on' in caplog.text
    )
    assert all((f'{n}.png' in unseen) == (f'{n + 50}.png' in unseen) for n in range(10))
    some = [entry for entry in reversed(entries) if entry.file_name in train | {*list(unseen)[:1]}]
    kept = {entry.file_name for entry, out in zip(some, validation_share(some, 0.1)) if out}
    assert kept <= unseen, 'an image does not change sides because others are gone'


def test_one_image_validates_on_itself_and_says_so(images, caplog):
    config = DataConfig(source=str(images('a.png')), gsd_m=1.0)
    assert len(make_source(config)) == len(make_source(config, validation=True)) == 1
    assert 'validates on the 1 images that it trains on' in caplog.text


def case(number, out):
    maker = next((ROOT.parent / 'shared/cases').glob(f'{number}_*.py'), None)
    if maker is None:
        pytest.skip('the shared cases are not here')
    subprocess.run([sys.executable, maker, out], check=True)


def test_the_splits_of_case_06(tmp_path):
    case('06', tmp_path)
    for name in ('hf_per_split', 'hf_csv', 'class_folders'):
        found = read_folder(tmp_path / name)
        assert [sum(e.split == split for e in found) for split in ('train', 'val', 'test')] == [8, 4, 6]
        assert all(e.label in e.file_name and e.split in e.file_name for e in found)
    assert {e.label for e in read_folder(tmp_path / 'class_folders_flat')} == {'forest', 'river'}


def test_in_case_18_no_test_image_is_trained_on(tmp_path):
    case('18', tmp_path)
    config = DataConfig(source=str(tmp_path / 'real'))
    for validation, split in ((False, 'train'), (True, 'val')):
        source = make_source(config, validation)
        assert all(f'_{split}_' in source.name(number) for number in range(len(source))) and len(source)


def test_prepare_data_takes_train_and_names_its_own_flags(images, tmp_path):
    folder = images('train/a.png', 'test/c.png', 'dev/b.png')

    def run(*more):
        command = [
            sys.executable,
            'tools/prepare_data.py',
            '--source',
            folder,
            '--size_px=16',
            '--out',
            tmp_path / 'out',
            *more,
        ]
        return subprocess.run(
            command, cwd=ROOT, text=True, capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}
        )

    refused = run()
    assert refused.returncode == 2 and '(--gsd_m)' in refused.stderr and 'config' not in refused.stderr
    result = json.loads(run('--gsd_m=1', '--validation', folder).stdout.splitlines()[-1])
    assert [source['images'] for source in result['sources']] == [1, 1] and result['splits'] == {
        'train': 4,
        'validation': 4,
    }
