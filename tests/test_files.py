"""Files are complete or absent despite concurrent writers and power cuts; JSON is checked before use."""

import concurrent.futures
import multiprocessing
import os

import pytest
from etils import epath

from rsdiff.base import files
from rsdiff.base.errors import BadInput


def write_often(path, byte):
    for _ in range(50):
        files.write_bytes_atomically(path, byte * 10_000)


def test_a_file_that_several_processes_write_is_always_whole(tmp_path):
    path, context = tmp_path / 'x.bin', multiprocessing.get_context('spawn')
    files.write_bytes_atomically(path, b'0' * 10_000)
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        writers = [pool.submit(write_often, path, str(n).encode()) for n in range(3)]
        while not all(writer.done() for writer in writers):
            data = path.read_bytes()
            assert len(data) == 10_000 and len({*data}) == 1
        for writer in writers:
            writer.result()
    assert [file.name for file in tmp_path.iterdir()] == ['x.bin']


def test_an_exception_leaves_the_file_before(tmp_path):
    path = tmp_path / 'x.txt'
    files.write_text_atomically(path, 'old')
    with pytest.raises(KeyboardInterrupt):
        with files.replacing(path) as partial:
            partial.write_text('half of the n')
            raise KeyboardInterrupt
    assert path.read_text() == 'old' and [file.name for file in tmp_path.iterdir()] == ['x.txt']


class Disk:
    """The worst-case contents of a folder after a power cut: a file has its flushed bytes or none; the names are those
    of the folder's last flush or the current ones."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.flushed, self.outcomes = folder, {}, []
        self.names = {file.name: file.stat().st_ino for file in folder.iterdir()}
        for file in folder.iterdir():
            self.flushed[file.stat().st_ino] = file.read_bytes()
        flush, rename = os.fsync, os.replace
        monkeypatch.setattr(os, 'fsync', lambda handle: (self.cut(), flush(handle), self.note(handle), self.cut()))
        monkeypatch.setattr(os, 'replace', lambda a, b, **rest: (self.cut(), rename(a, b), self.cut()))

    def note(self, handle):
        """Records a flush of a file, or of the folder's names."""
        inode = os.fstat(handle).st_ino
        if inode == self.folder.stat().st_ino:
            self.names = {file.name: file.stat().st_ino for file in self.folder.iterdir()}
        else:
            os.lseek(handle, 0, os.SEEK_SET)
            self.flushed[inode] = os.read(handle, 1 << 20)

    def cut(self):
        """Records the possible outcomes of a power cut at this moment."""
        now = {file.name: file.stat().st_ino for file in self.folder.iterdir()}
        self.outcomes += [
            {name: self.flushed.get(inode, b'') for name, inode in names.items()} for names in (self.names, now)
        ]


@pytest.mark.parametrize('before', [None, b'old'])
def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, before):
    path = tmp_path / 'x.txt'
    if before is not None:
        path.write_bytes(before)
    disk = Disk(tmp_path, monkeypatch)
    files.write_text_atomically(path, 'new')
    left = [outcome.get('x.txt') for outcome in disk.outcomes]
    assert {*left} == {before, b'new'}
    assert left[-2:] == [b'new', b'new'], 'the call returned before the new name was on disk'


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / 'folder'
    for content in ('old', 'new'):
        with files.replacing_folder(path) as partial:
            (partial / 'deep').mkdir()
            (partial / 'deep' / 'x').write_text(content)
        assert (path / 'deep' / 'x').read_text() == content
    with pytest.raises(ZeroDivisionError):
        with files.replacing_folder(path) as partial:
            (partial / 'x').write_text('half')
            raise ZeroDivisionError
    assert (path / 'deep' / 'x').read_text() == 'new' and [file.name for file in tmp_path.iterdir()] == ['folder']


@pytest.mark.parametrize(
    'spoil',
    [
        lambda path: path.write_bytes(b''),
        lambda path: path.write_bytes(b'hell'),
        lambda path: path.write_bytes(b'hellp'),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_what_was_cut_changed_or_removed_is_not_whole(tmp_path, spoil):
    path = tmp_path / 'x'
    files.write_bytes_atomically(path, b'hello')
    mark = files.stamp(path)
    assert files.is_whole(path, mark) and files.is_whole(path, list(mark))
    spoil(path)
    assert not files.is_whole(path, mark)


@pytest.mark.parametrize('mark', [None, 5, [], ['5', 'x'], [5], {}, [5, None]])
def test_without_a_right_stamp_nothing_is_known_to_be_whole(tmp_path, mark):
    files.write_bytes_atomically(tmp_path / 'x', b'hello')
    assert not files.is_whole(tmp_path / 'x', mark)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": ' + '1' * 5000 + '}',
        '[' * 100_000,
        '{"a":' * 500 + '1' + '}' * 500,
        '{"a": "\\ud800"}',
        '{"\\udc00": 1}',
        b'\xff\xfe{\x00}\x00',
        b'\x80',
        '[]',
        '"x"',
        'null',
        '3',
    ],
)
def test_what_is_no_json_object_is_refused_in_a_line_that_names_the_file(tmp_path, text):
    path = tmp_path / 'settings.json'
    path.write_bytes(text.encode('utf-8') if isinstance(text, str) else text)
    with pytest.raises(BadInput, match='settings.json.*; remove it') as refusal:
        files.read_json(path, 'remove it')
    assert '\n' not in str(refusal.value)


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / 'x.json').write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / 'x.json') == {'a': 1}


def test_what_is_missing_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / 'none.json', tmp_path):
        with pytest.raises(BadInput, match=path.name):
            files.read_json(path)


@pytest.mark.parametrize('value, kind', [(True, int), (True, float), ('1', int), (None, str), (1.5, int), ([], dict)])
def test_a_field_of_another_type_is_refused(value, kind):
    with pytest.raises(BadInput, match="row 3: 'a'"):
        files.field({'a': value}, 'a', kind, 'row 3')


def test_fields_of_the_right_type_and_defaults():
    assert files.field({'a': 2}, 'a', float, '') == 2
    assert files.field({'a': True}, 'a', bool, '') is True
    assert files.field({}, 'a', str, '', None) is None
    with pytest.raises(BadInput, match='missing'):
        files.field({}, 'a', (str, int), '')


def test_bucket_paths_are_written_through_epath(tmp_path):
    path = epath.Path(tmp_path) / 'deep' / 'x.json'
    files.write_json(path, {'a': [1]})
    assert files.read_json(path) == {'a': [1]}
