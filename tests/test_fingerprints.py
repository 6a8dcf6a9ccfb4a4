"""Images that fingerprints recognise, and images that they do not."""

import concurrent.futures
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.fingerprints import (
    FILE,
    TrainedOn,
    add_fingerprints,
    carry_fingerprints,
    fingerprint,
    known_of,
    near_duplicates,
    orientations,
    read_fingerprints,
    write_fingerprints,
)
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image, write_image

TOOL = Path(__file__).parents[1] / 'tools' / 'fingerprint.py'


@pytest.fixture(scope='module')
def pictures(smooth_image):
    return [smooth_image(96, 128, seed) for seed in range(6)]


def reencoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=70)
    return np.asarray(Image.open(file))


ALTERED = {
    'itself': lambda image: image,
    'jpeg': reencoded,
    'smaller': lambda image: np.asarray(Image.fromarray(image).resize((80, 60), Image.BICUBIC)),
    'brighter': lambda image: np.clip(image * 1.05 + 4, 0, 255).astype(np.uint8),
    'turned': lambda image: np.rot90(image),
    'mirrored': lambda image: image[:, ::-1],
    'transposed': lambda image: image.transpose(1, 0, 2),
}


@pytest.mark.parametrize('change', ALTERED)
def test_each_altered_picture_is_found_as_itself_and_nothing_else(pictures, change):
    queries = np.stack([orientations(np.ascontiguousarray(ALTERED[change](image))) for image in pictures])
    references = np.stack([fingerprint(image) for image in pictures])
    assert near_duplicates(queries, references) == [(n, n) for n in range(len(pictures))]


def test_one_orientation_is_the_picture_itself(pictures):
    assert np.array_equal(orientations(pictures[0])[0], fingerprint(pictures[0]))
    assert len({bits.tobytes() for bits in orientations(pictures[0])}) == 8


def test_flat_water_with_other_noise_is_another_picture():
    rng = np.random.default_rng(0)
    a, b = (np.rint(60 + rng.normal(0, 2, (64, 64, 3))).astype(np.uint8) for _ in range(2))
    assert near_duplicates(orientations(a)[None], fingerprint(b)[None]) == []


def test_among_nothing_nothing_is_found(pictures):
    nothing = np.zeros((0, 160), np.uint8)
    assert near_duplicates(orientations(pictures[0])[None], nothing) == []
    assert near_duplicates(np.zeros((0, 8, 160), np.uint8), fingerprint(pictures[0])[None]) == []


def trained_on(pictures, *unknown):
    return TrainedOn(
        tuple(f'{n}.png' for n in range(len(pictures))), np.stack([fingerprint(one) for one in pictures]), unknown
    )


def equal(a, b):
    return a.names == b.names and a.unknown == b.unknown and np.array_equal(a.fingerprints, b.fingerprints)


def test_they_are_kept_and_carried_along(pictures, tmp_path):
    write_fingerprints(tmp_path / 'run' / FILE, trained_on(pictures, 'a scene'))
    (tmp_path / 'release').mkdir()
    carry_fingerprints(tmp_path / 'run', tmp_path / 'release')
    carry_fingerprints(tmp_path / 'nothing', tmp_path / 'release')
    assert equal(known_of(tmp_path / 'release'), trained_on(pictures, 'a scene'))
    assert known_of(tmp_path / 'nothing') is None


def test_they_add_up_and_what_is_unknown_stays_so(pictures, tmp_path):
    add_fingerprints(tmp_path, trained_on(pictures[:4], 'a scene'))
    everything = add_fingerprints(tmp_path, trained_on(pictures, 'a scene', 'an earlier run'))
    assert equal(everything, trained_on(pictures, 'a scene', 'an earlier run')) and equal(
        known_of(tmp_path), everything
    )
    assert str(TrainedOn()) == '0 images' and str(trained_on(pictures)) == '6 images'
    assert str(everything) == '6 images, and unknown ones (a scene; an earlier run)'
    assert str(TrainedOn(unknown=('a scene',))) == 'unknown (a scene)'


def test_several_who_add_at_once_lose_nothing(pictures, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(
            pool.map(
                lambda n: add_fingerprints(tmp_path, TrainedOn((f'{n}.png',), fingerprint(pictures[n])[None])), range(6)
            )
        )
    assert sorted(known_of(tmp_path).names) == [f'{n}.png' for n in range(6)]


def test_a_file_from_before_there_were_unknown_images_is_read(pictures, tmp_path):
    kept = trained_on(pictures)
    np.savez_compressed(tmp_path / FILE, names=np.asarray(kept.names), fingerprints=kept.fingerprints)
    assert equal(known_of(tmp_path), kept)


def spoilt_files(path):
    """Contents that are not a valid fingerprint file."""
    file, bits = io.BytesIO(), np.zeros((1, 160), np.uint8)
    np.savez_compressed(file, names=np.array(['a']), fingerprints=bits)
    whole = file.getvalue()
    yield from (b'', b'PK\x03\x04 not a zip', b'\x93NUMPY', b'\x80\x04N.')
    yield from (whole[:cut] for cut in range(1, len(whole), 37))
    for n in range(0, len(whole), 11):
        yield whole[:n] + bytes([whole[n] ^ 255]) + whole[n + 1 :]
    for arrays in (
        {'names': np.array(['a']), 'fingerprints': np.zeros((1, 9), np.uint8)},
        {'names': np.array([{}], object), 'fingerprints': bits},  # a pickle
        {'names': np.array([7]), 'fingerprints': bits},
        {'names': np.array('a'), 'fingerprints': bits},
        {'names': np.array(['a']), 'fingerprints': bits.astype(float)},
        {'fingerprints': bits},
        {'names': np.array(['a']), 'fingerprints': bits, 'unknown': np.array([1.5])},
    ):
        file = io.BytesIO()
        np.savez(file, **arrays)
        yield file.getvalue()
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {'descr': '|u1', 'fortran_order': False, 'shape': (1 << 50, 160)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('names.npy', array.getvalue())
        archive.writestr('fingerprints.npy', array.getvalue())
    yield file.getvalue()


def test_another_file_is_bad_input(tmp_path):
    path = tmp_path / FILE
    with pytest.raises(BadInput, match=FILE):
        read_fingerprints(path)
    refused = 0
    for content in spoilt_files(path):
        path.write_bytes(content)
        try:
            read_fingerprints(path)  # a flipped bit in a date is harmless
        except BadInput as error:
            assert FILE in str(error) and '\n' not in str(error)
            refused += 1
    assert refused > 40


def test_the_tool_notes_pictures_and_counts_scenes(image_folder, smooth_image, tmp_path):
    write_image(image_folder / 'a/a0.png', smooth_image(8, 1030))
    (image_folder / 'b/b1.png').write_bytes(b'no image')
    run = lambda split: json.loads(
        subprocess.run(
            [sys.executable, str(TOOL), '--images', f'{image_folder}:{split}', '--out', tmp_path / 'out'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
    )
    result = run('train')
    known = known_of(tmp_path / 'out')
    entries = [entry for entry in read_folder(image_folder, 'train') if entry.file_name not in ('a/a0.png', 'b/b1.png')]
    assert result['images'] == len(known.names) == len(entries) == 6
    assert result['unreadable'] == [str(image_folder / 'b/b1.png')] and known.unknown == (
        '1 scenes larger than 1024 px: images:train/a/a0.png',
    )
    assert list(known.names) == [f'images:train/{entry.file_name}' for entry in entries]
    queries = np.stack([orientations(read_image(entry.path)) for entry in entries])
    assert {(n, n) for n in range(6)} <= {*near_duplicates(queries, known.fingerprints)}
    again = run('test')  # adds to the existing fingerprints
    assert again['images'] == 4 and again['images_in_all'] == 10 and known_of(tmp_path / 'out').unknown == known.unknown
