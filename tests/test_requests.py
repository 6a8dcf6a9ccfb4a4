"""Files and numbers in manifest rows, and rows whose image does not exist yet."""

import dataclasses
import json
import logging

import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import (
    Request,
    field_of,
    file_key,
    read_folder,
    read_requests,
    training_entries,
    write_manifest,
)
from rsdiff.data.images import write_image
from rsdiff.data.pipeline import DataConfig, make_source


@pytest.fixture
def folder(tmp_path, smooth_image):
    """Images a.png, before/a.png, lr/a.png and m.png, without a manifest."""
    for name in ('a.png', 'before/a.png', 'lr/a.png', 'm.png'):
        write_image(tmp_path / 'data' / name, smooth_image(16, 16, sum(map(ord, name))))
    return tmp_path / 'data'


def lines(folder, *rows):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')


FULL = {
    'file_name': 'a.png',
    'low_res_file_name': 'lr/a.png',
    'before_file_name': 'x/.././before/a.png',
    'cloud_mask_file_name': 'm.png',
    'mask_file_name': None,
    'cloud': 0.25,
    'year': 2020,
    'sensor': 'S2',
    'seen': True,
}


@pytest.mark.parametrize('field, key', [('lr', 'low_res_file_name'), ('mask', 'mask_file_name')])
def test_a_field_has_a_key_and_a_key_a_field(field, key):
    assert file_key(field) == key and field_of(key) == field
    assert field_of('file_name') is None and field_of('year') is None


def test_a_row_has_files_by_field_and_numbers_and_keeps_the_rest(folder):
    lines(folder, FULL)
    (entry,) = read_folder(folder)
    assert entry.files == {
        'lr': folder / 'lr/a.png',
        'before': folder / 'before/a.png',
        'cloud_mask': folder / 'm.png',
    }
    assert entry.numbers == {'cloud': 0.25, 'year': 2020.0}
    kept = {key: value for key, value in FULL.items() if key != 'file_name'}
    assert entry.extra == kept | {'before_file_name': 'before/a.png'}, 'as it stood, a name by its plain form'


def test_files_are_relative_to_their_own_manifest(folder, tmp_path):
    above = tmp_path / 'above'
    above.mkdir()
    folder.rename(above / 'train')
    lines(above / 'train', FULL, {'captions': ['a lake'], 'before_file_name': 'a.png'})
    (entry,), (request,) = read_folder(above), read_requests(above)
    assert entry.files['before'] == above / 'train/before/a.png' and entry.folder == above
    assert request.files == {'before': above / 'train/a.png'} and request.folder == above
    assert request.split == entry.split == 'train', 'by the folder that the manifest lies in'


REQUESTS = [
    {'captions': ['a lake', 'water'], 'split': 'validation', 'label': 'lake', 'style': 'winter'},
    {'gsd_m': 10.0},
    {'cloud': 0.5, 'file_name': None},
    {'before_file_name': 'before/a.png', 'mask_file_name': 'm.png', 'text': 'a new road'},
]


def test_a_row_without_an_image_is_a_request(folder, caplog):
    lines(folder, {'file_name': 'a.png', 'split': 'val'}, *REQUESTS)
    with caplog.at_level(logging.WARNING):
        assert [entry.file_name for entry in read_folder(folder)] == ['a.png']
        read_folder(folder)
    assert caplog.text.count('4 rows are requests') == 1
    words, resolution, number, edit = read_requests(folder)
    assert words == Request(folder, 'val', 'lake', ('a lake', 'water'), extra={'style': 'winter'})
    assert resolution.gsd_m == 10 and number.numbers == {'cloud': 0.5}
    assert edit.files == {'before': folder / 'before/a.png', 'mask': folder / 'm.png'} and edit.captions == (
        'a new road',
    )
    assert edit.where.endswith('metadata.jsonl:5')
    assert read_requests(folder, 'dev') == [words]


def test_what_reads_images_refuses_a_folder_of_requests(folder):
    lines(folder, *REQUESTS)
    for read in (read_folder, training_entries, lambda where: make_source(DataConfig(source=str(where)))):
        with pytest.raises(BadInput, match='its [34] rows are requests|none is train'):
            read(folder)
    lines(folder, {'file_name': 'a.png'})
    with pytest.raises(BadInput, match='every row has a "file_name"'):
        read_requests(folder)


def test_both_are_written_as_they_were_read(folder):
    lines(folder, FULL, *REQUESTS)
    before = read_folder(folder) + read_requests(folder)
    write_manifest(folder, before)
    assert read_folder(folder) + read_requests(folder) == before
    written = (folder / 'metadata.jsonl').read_bytes()
    write_manifest(folder, read_folder(folder) + read_requests(folder))
    assert (folder / 'metadata.jsonl').read_bytes() == written
    request = dataclasses.replace(before[-1], captions=('a bridge',))
    write_manifest(folder, [request])
    assert read_requests(folder) == [request]


def test_a_table_says_the_same(folder):
    (folder / 'metadata.csv').write_text(
        'file_name,before_file_name,mask_file_name,cloud,sensor,text\n'
        'a.png,before/a.png,,0.25,S2,\n'
        ',before/a.png,m.png,,,"a road, new"\n'
        ',,,1e-1,,\n'
    )
    (entry,), (edit, number) = read_folder(folder), read_requests(folder)
    assert entry.files == {'before': folder / 'before/a.png'} and entry.numbers == {'cloud': 0.25}
    assert {*edit.files} == {'before', 'mask'} and edit.captions == ('a road, new',) and not edit.numbers
    assert number.numbers == {'cloud': 0.1}
    (folder / 'metadata.csv').unlink()
    write_manifest(folder, [entry, edit, number])
    assert read_folder(folder) == [entry] and read_requests(folder) == [edit, number]
    (folder / 'metadata.jsonl').unlink()
    (folder / 'metadata.csv').write_text('text,gsd_m\na lake,2\n')
    assert read_requests(folder)[0].gsd_m == 2.0


@pytest.mark.parametrize(
    'row, message',
    [
        ({'mask_file_name': 'gone.png'}, "mask_file_name is 'gone.png', which does not exist"),
        ({'mask_file_name': 'before'}, 'mask_file_name is .* is a folder'),
        ({'mask_file_name': '../x.png'}, 'mask_file_name is .* leaves the folder'),
        ({'mask_file_name': '/etc/hostname'}, 'mask_file_name is .* leaves the folder'),
        ({'mask_file_name': ''}, 'mask_file_name is .* is not a valid file name'),
        ({'mask_file_name': 3}, 'mask_file_name is .*; it must be a string'),
        ({'my mask_file_name': 'm.png'}, "'my mask_file_name' names no field"),
        ({'_file_name': 'm.png'}, "'_file_name' names no field"),
        ({'lr_file_name': 'm.png', 'low_res_file_name': 'm.png'}, 'lr_file_name and low_res_file_name are one field'),
    ],
)
@pytest.mark.parametrize('start', [{'file_name': 'a.png'}, {'captions': ['a lake']}])
def test_a_bad_name_is_told_with_its_line_and_field(folder, start, row, message):
    lines(folder, {'file_name': 'a.png'}, start | row)
    with pytest.raises(BadInput, match=message) as error:
        read_folder(folder)
    assert 'metadata.jsonl:2' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'row', [{}, {'label': 'lake', 'split': 'train'}, {'captions': []}, {'mask_file_name': None}, {'style': 'old\n'}]
)
def test_a_row_with_nothing_to_go_by_is_refused(folder, row):
    lines(folder, {'file_name': 'a.png'}, row)
    with pytest.raises(BadInput, match='metadata.jsonl:2: no "file_name", nor captions, numbers or files'):
        read_folder(folder)


def test_a_request_of_another_split_than_its_folder_is_refused(tmp_path):
    lines(tmp_path / 'train', {'captions': ['a lake'], 'split': 'test'})
    with pytest.raises(BadInput, match="metadata.jsonl:1 has split 'test' by its line and 'train' by its folder"):
        read_requests(tmp_path)
