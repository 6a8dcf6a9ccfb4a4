"""Metric rows: kept across interruptions, on disks and in buckets, and checked when read."""

import json

import pytest
from etils import epath

from rsdiff.base.errors import BadInput
from rsdiff.training.metrics import FILE, Metrics, read_metrics


@pytest.fixture
def bucket():
    """The address of an empty in-memory bucket where append mode overwrites the file, as in gs://."""
    fsspec = pytest.importorskip('fsspec')
    from fsspec.implementations.memory import MemoryFileSystem

    class NoAppend(MemoryFileSystem):
        def _open(self, path, mode='rb', **rest):
            return super()._open(path, mode.replace('a', 'w'), **rest)

    fsspec.register_implementation('s3', NoAppend, clobber=True)
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    MemoryFileSystem.store.clear()
    yield 's3://bucket/run'
    MemoryFileSystem.store.clear()
    epath.backend.fsspec_backend._get_filesystem.cache_clear()


def begin_and_resume(workdir):
    """Writes rows at 10 … 50, stops, continues from a checkpoint at 30; returns what is stored after each row."""
    told = []
    for first, rows in ((0, (10, 20, 30, 40, 50)), (30, (40, 50, 60))):
        metrics = Metrics(workdir, 100, first, show=False)
        metrics.board = None
        for images_seen in rows:
            metrics.write(images_seen, {'loss': images_seen / 100 + first})
            told.append([row['images_seen'] for row in read_metrics(workdir)])
        metrics.close()
    return told


def test_rows_are_kept_when_a_run_continues(tmp_path):
    told = begin_and_resume(tmp_path)
    assert told[4:] == [[10, 20, 30, 40, 50], [10, 20, 30, 40], [10, 20, 30, 40, 50], [10, 20, 30, 40, 50, 60]]
    assert [row['loss'] for row in read_metrics(tmp_path)] == [0.1, 0.2, 0.3, 30.4, 30.5, 30.6]


def test_a_bucket_without_append_keeps_the_same_rows(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr('rsdiff.training.metrics._tensorboard', lambda *_: None)
    epath.Path(bucket).mkdir(parents=True, exist_ok=True)
    (epath.Path(bucket) / 'probe').write_text('a')
    with (epath.Path(bucket) / 'probe').open('a') as file:
        file.write('b')
    assert (epath.Path(bucket) / 'probe').read_text() == 'b'  # the bucket does overwrite
    assert begin_and_resume(bucket) == begin_and_resume(tmp_path)
    assert read_metrics(bucket) == read_metrics(tmp_path)


def test_what_is_not_finite_is_null(tmp_path):
    metrics = Metrics(tmp_path, 100, 0, show=False)
    metrics.write(10, {'psnr': float('inf'), 'losses': [0.5, float('nan')]})
    metrics.close()
    (row,) = (json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / FILE).read_text().splitlines())
    assert row == {'images_seen': 10, 'psnr': None, 'losses': [0.5, None]}


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / FILE).write_bytes(b'{"images_seen": 8}\n{"images_se')
    assert read_metrics(tmp_path) == [{'images_seen': 8}] and read_metrics(tmp_path / 'nowhere') == []


@pytest.mark.parametrize(
    'line',
    [
        b'{"images_se',
        b'7',
        b'{}',
        b'\xff',
        b'{"images_seen": "8"}',
        b'{"images_seen": ' + b'9' * 5000 + b'}',
        b'{"images_seen": null}',
        b'[' * 100_000,
    ],
)
def test_another_line_is_bad_input(tmp_path, line):
    (tmp_path / FILE).write_bytes(b'{"images_seen": 8}\n' + line + b'\n')
    with pytest.raises(BadInput, match=f'{FILE}:2') as raised:
        read_metrics(tmp_path)
    assert '\n' not in str(raised.value)
