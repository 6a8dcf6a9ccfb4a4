import json

import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry, read_folder, write_manifest
from rsdiff.data.images import read_image, write_image
from rsdiff.evaluation import pairs
from rsdiff.evaluation.pairs import Pair


@pytest.fixture
def folder(tmp_path, smooth_image):
    """Three images of 18 × 21 px under names with folders, their conditions, and generated images named by `source`."""
    truths, made = [], []
    for number, name in enumerate(('a/one.jpg', 'a/two.png', 'b/one.png')):
        write_image(tmp_path / 'real' / name, smooth_image(18, 21, number))
        truths.append(Entry(tmp_path / 'real' / name, name))
        write_image(tmp_path / 'condition' / f'{number}.png', smooth_image(4, 5, number))
        write_image(tmp_path / 'made' / f'{number}.png', smooth_image(16, 20, 10 + number))
        made.append(Entry(tmp_path / 'made' / f'{number}.png', f'{number}.png', extra={'source': name}))
    write_manifest(tmp_path / 'real', truths)
    write_manifest(tmp_path / 'made', made)
    return tmp_path


def pair(folder, name='a/two.png', number=1):
    return Pair(Entry(folder / 'real' / name, name), folder / 'condition' / f'{number}.png')


def test_everything_of_a_pair_has_the_size_of_the_cut_truth(folder):
    truth = pair(folder).read_truth()
    assert truth.shape == (16, 20, 3)
    assert (truth == read_image(folder / 'real/a/two.png')[:16, :20]).all()
    (made,) = (entry for entry in read_folder(folder / 'made') if entry.extra['source'] == 'a/two.png')
    for image in (pairs.enlarged(pair(folder)), pairs.repeated(pair(folder)), pairs.read_made(made, pair(folder))):
        assert image.shape == truth.shape
    assert (pairs.repeated(pair(folder))[::4, ::4] == pair(folder).read_condition()).all()


def test_images_find_their_truth_by_source_and_else_by_name(folder, smooth_image):
    truths = read_folder(folder / 'real')
    assert [entry.file_name for entry in pairs.match(folder / 'made', truths)] == ['0.png', '1.png', '2.png']
    assert [entry.file_name for entry in pairs.match(folder / 'made', truths[::-1])] == ['2.png', '1.png', '0.png']
    for name in ('a/one.png', 'a/two.png', 'b/one.png'):  # no manifest; one has a different suffix from its truth
        write_image(folder / 'same' / name, smooth_image(16, 20))
    assert [entry.file_name for entry in pairs.match(folder / 'same', truths)] == [
        'a/one.png',
        'a/two.png',
        'b/one.png',
    ]


def test_the_first_of_several_variants_is_taken(folder):
    manifest = folder / 'made' / 'metadata.jsonl'
    manifest.write_text(manifest.read_text() + json.dumps({'file_name': '0.png', 'source': 'a/two.png'}) + '\n')
    assert [entry.file_name for entry in pairs.match(folder / 'made', read_folder(folder / 'real'))][1] == '1.png'


def test_truths_without_a_partner_are_listed(folder):
    manifest = folder / 'made' / 'metadata.jsonl'
    manifest.write_text(manifest.read_text().splitlines()[1] + '\n')
    with pytest.raises(BadInput, match='2 of 3 reference images have no partner by name: a/one.jpg, b/one.png;'):
        pairs.match(folder / 'made', read_folder(folder / 'real'))


@pytest.mark.parametrize(
    'which, read',
    [('made/1.png', lambda p, e: pairs.read_made(e, p)), ('condition/1.png', lambda p, e: p.read_condition())],
)
def test_an_image_of_another_size_is_named(folder, smooth_image, which, read):
    write_image(folder / which, smooth_image(12, 20))
    with pytest.raises(BadInput, match=rf'{which}: 20×12 px; .*a/two.png'):
        read(pair(folder), pairs.match(folder / 'made', read_folder(folder / 'real'))[1])


def test_a_truth_smaller_than_a_pixel_of_its_condition_is_named(folder, smooth_image):
    write_image(folder / 'real/a/two.png', smooth_image(3, 20))
    with pytest.raises(BadInput, match='a/two.png: 20×3 px; at least 4'):
        pairs.cut_size(folder / 'real/a/two.png')


def test_a_sensors_own_image_must_lie_in_the_folder(folder):
    of = lambda name: pairs.sensor_condition(
        folder / 'real', Entry(folder / 'real/a/two.png', 'a/two.png', extra={'low_res_file_name': name})
    )
    assert of('b/one.png') == folder / 'real/b/one.png'
    assert pairs.sensor_condition(folder, Entry(folder / 'x.png', 'x.png')) is None
    for name, problem in (('../made/1.png', 'leaves'), ('none.png', 'does not exist'), (3, 'must be a file name')):
        with pytest.raises(BadInput, match=problem):
            of(name)
