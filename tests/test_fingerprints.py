"""Pictures that are known again, and pictures that are not."""

import io

import numpy as np
import pytest
from PIL import Image

from rsdiff.data.fingerprints import (FILE, carry_fingerprints, fingerprint, near_duplicates, orientations,
                                      read_fingerprints, write_fingerprints)
from rsdiff.errors import BadInput


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


def test_they_are_kept_and_carried_along(pictures, tmp_path):
    bits = np.stack([fingerprint(image) for image in pictures])
    write_fingerprints(tmp_path / 'run' / FILE, [f'{n}.png' for n in range(6)], bits)
    (tmp_path / 'release').mkdir()
    carry_fingerprints(tmp_path / 'run', tmp_path / 'release')
    carry_fingerprints(tmp_path / 'nothing', tmp_path / 'release')
    names, kept = read_fingerprints(tmp_path / 'release' / FILE)
    assert names == [f'{n}.png' for n in range(6)] and np.array_equal(kept, bits)


def test_another_file_is_bad_input(tmp_path):
    path = tmp_path / FILE
    for content in (None, b'', b'PK\x03\x04 not a zip'):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadInput, match=f'{FILE}: not a file of fingerprints'):
            read_fingerprints(path)
    np.savez(path, names=np.array(['a']), fingerprints=np.zeros((1, 9), np.uint8))
    with pytest.raises(BadInput, match='another kind'):
        read_fingerprints(path)
    np.savez(path, names=np.array([{}], object), fingerprints=np.zeros((1, 160), np.uint8))  # a pickle
    with pytest.raises(BadInput, match='not a file of fingerprints'):
        read_fingerprints(path)
